"""Features and metrics: photographs, Gaussians worked by hand, sets with a known answer.

tests/parity/test_metrics_*.py compare them with torch-fidelity, timm and scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vap.common.errors import VapError
from vap.metrics import kernel
from vap.metrics.features import features_of, load_extractor, weights_file
from vap.metrics.fidelity import (
    frechet_distance,
    frechet_distance_by_class,
    inception_score,
    intervals,
    measure,
)
from vap.metrics.kernel import kernel_inception_distance, neighbour_metrics, pair_metrics
from vap.metrics.networks import load_in_order, read_weights
from vap.metrics.prd import f_beta, prd_curve, prd_scores
from vap.params import EvaluateParams

Image = np.ndarray


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def extractor() -> Any:
    return load_extractor("efficientnet-lite0", weights_file("efficientnet-lite0", None))


def photo(name: str) -> Image:
    """A photograph of scikit-image's, uint8 [H, W, 3]; skips the test where it is not installed."""
    import skimage.data

    try:
        return np.asarray(getattr(skimage.data, name)())
    except Exception as error:
        pytest.skip(f"scikit-image has no {name} here ({error})")


def textures(seed: int, n: int, hue: Sequence[float], size: int = 32) -> list[Image]:
    """Smooth random patterns of one hue, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for _ in range(n):
        a, b, phase = rng.uniform(1, 9, 3)
        level = 0.5 + 0.4 * np.sin(a * x * 3 + phase) * np.cos(b * y * 3)
        noise = rng.normal(0, 0.03, (size, size, 3))
        images.append(np.clip(255 * (level[..., None] * hue + noise), 0, 255).astype(np.uint8))
    return images


SKIN, GREY, GREEN = (1.0, 0.7, 0.6), (0.8, 0.8, 0.8), (0.0, 1.0, 0.1)


# ── features ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "classes", "top"),
    [("chelsea", {281, 282, 285}, 3), ("coffee", {967}, 2)],  # cats; espresso
)
def test_the_extractor_classifies(extractor: Any, name: str, classes: set[int], top: int) -> None:
    image = photo(name)
    side = min(image.shape[:2])
    row, column = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = image[row : row + side, column : column + side]
    logits = features_of([square], extractor, 1)["logits"][0]
    assert classes & set(logits.topk(top).indices.tolist())
    flipped = features_of([square[:, ::-1]], extractor, 1)["logits"][0]
    assert classes & set(flipped.topk(top).indices.tolist())


def test_features_do_not_depend_on_the_batch(extractor: Any) -> None:
    images = textures(1, 3, SKIN) + textures(2, 2, GREY)
    images[4][:] = images[4][..., :1]  # grey levels as RGB
    whole = features_of(iter(images), extractor, 5)
    assert {k: (tuple(v.shape), v.dtype) for k, v in whole.items()} == {
        "pooled": ((5, 1280), torch.float32),
        "logits": ((5, 1000), torch.float32),
    }
    assert all(v.isfinite().all() and not v.requires_grad for v in whole.values())
    for size in (1, 2, 64):
        parts = features_of(iter(images), extractor, size)
        for name, features in whole.items():
            torch.testing.assert_close(parts[name], features, rtol=1e-5, atol=1e-5)


def test_images_are_streamed(extractor: Any) -> None:
    drawn: list[int] = []
    most = 0

    def source() -> Iterator[Image]:
        for i, image in enumerate(textures(3, 5, SKIN)):
            drawn.append(i)
            yield image

    class Watch:
        def advance(self, n: int) -> None:
            nonlocal most
            most = max(most, len(drawn))
            drawn.clear()

    features_of(source(), extractor, 2, Watch())  # type: ignore[arg-type]
    assert most == 2


@pytest.mark.parametrize(
    "images",
    [
        [],
        [np.zeros((8, 8, 3), np.float32)],
        [np.zeros((8, 8), np.uint8)],
        [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)],
    ],
)
def test_wrong_images_are_refused(extractor: Any, images: list[Image]) -> None:
    with pytest.raises(ValueError, match=r"image|uint8"):
        features_of(images, extractor, 4)


def test_weights_that_do_not_fit_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def refused(expected: str, features: str = "inception", path: Path = path) -> None:
        with pytest.raises(VapError) as error:
            load_extractor(features, path)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)

    refused("no such file")
    path.write_bytes(b"not weights")
    refused("no readable weights")
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"not weights")
    refused("no readable weights", "timm:test_vit", other)
    torch.save({"code": print}, path)  # would call what it names, were it a reduce
    refused("objects of the kind print, which could run code")
    torch.save([1, 2], path)
    refused("a list")
    torch.save({"fc.weight": torch.zeros(3)}, path)
    for features in ("inception", "vgg16", "timm:test_vit"):
        refused("weights of another network", features)
    refused("1 tensors", "efficientnet-lite0")
    refused("expected a model of timm", "timm:no_such_net")
    with pytest.raises(VapError, match=r"1 tensors.*the 2 of Linear"):
        load_in_order(torch.nn.Linear(2, 2), path)
    assert read_weights(path)["fc.weight"].shape == (3,)
    with pytest.raises(VapError, match=r"evaluate.features_path: found null"):
        weights_file("inception", None)
    with pytest.raises(VapError, match=r"'vgg'.*vgg16 or timm:NAME"):
        weights_file("vgg", "x")


# ── Fréchet distance, Inception Score ───────────────────────────────────────────────────────────


def gaussian(mean: Sequence[float], root: Sequence[Sequence[float]]) -> Tensor:
    """Four points of that mean and, with n - 1, of covariance root rootᵀ: (4, 2) float64."""
    signs = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    return math.sqrt(1.5) * signs @ torch.tensor(root, dtype=torch.float64).T + torch.tensor(mean)


def test_frechet_distance_by_hand() -> None:
    x = gaussian([0, 0], [[2, 0], [0, 1]])  # covariance [[4, 0], [0, 1]]
    y = gaussian([3, -1], [[1.5, 0.5], [0.5, 1.5]])  # [[2.5, 1.5], [1.5, 2.5]]
    torch.testing.assert_close(torch.cov(y.T), torch.tensor([[2.5, 1.5], [1.5, 2.5]]).double())
    # |m|² = 10; traces 5 + 5; tr of the root of a 2 x 2 matrix M is sqrt(tr M + 2 sqrt(det M)),
    # here of M = S_x S_y: tr 12.5, det 4 * 4
    assert frechet_distance(x, y) == pytest.approx(10 + 10 - 2 * math.sqrt(12.5 + 8), rel=1e-12)
    assert frechet_distance(x, x + 2) == pytest.approx(8, rel=1e-12)
    one = torch.tensor([[-1.0], [1.0]]), torch.tensor([[5.0], [11.0]])  # N(0, 2), N(8, 18)
    assert frechet_distance(*one) == pytest.approx(64 + (math.sqrt(18) - math.sqrt(2)) ** 2)


@pytest.mark.parametrize("rank", [24, 9])
def test_frechet_distance_by_either_way_and_in_parts(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many images the covariance is decomposed where it is regular, else the images are."""
    rng = torch.Generator().manual_seed(3)
    mixing = torch.randn(rank, 24, generator=rng)
    x, y = (torch.randn(n, rank, generator=rng) @ mixing * scale for n, scale in ((301, 1), (250, 1.3)))
    whole = frechet_distance(x, y)
    squares = [torch.cov(z.double().T) for z in (x, y)]
    roots = torch.linalg.eigvals(squares[0] @ squares[1]).real.clamp(min=0).sqrt().sum()
    traces = squares[0].trace() + squares[1].trace()
    expected = (x.double().mean(0) - y.double().mean(0)).square().sum() + traces - 2 * roots
    assert whole == pytest.approx(float(expected), rel=1e-5)
    monkeypatch.setattr("vap.metrics.fidelity.ROWS", 50)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-9)
    monkeypatch.setattr("vap.metrics.fidelity.CONDITION", 2.0)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-9)


def test_frechet_distance_a_class_by_hand() -> None:
    x = torch.cat([gaussian([0, 0], [[1, 0], [0, 1]]), gaussian([5, 5], [[2, 0], [0, 1]]), torch.zeros(2, 2)])
    y = torch.cat([gaussian([5, 8], [[1, 0], [0, 1]]), gaussian([0, 2], [[1, 0], [0, 1]]), torch.ones(1, 2)])
    given = {"pooled": torch.cat([x, torch.full((3, 2), 99.0)])}  # three more of "a": only four are matched
    labels = [*"aaaabbbbcc", *"aaa"]
    found = frechet_distance_by_class(given, {"pooled": y}, labels, [*"bbbbaaaac"], [*"abcd"], least=4)
    assert list(found) == [*"abcd"]
    assert found["a"] == {"n": 7, "n_reference": 4, "n_matched": 4, "fid": pytest.approx(4)}
    assert found["b"] == {"n": 4, "n_reference": 4, "n_matched": 4, "fid": pytest.approx(9 + 1)}
    assert found["c"] == {"n": 2, "n_reference": 1, "n_matched": None, "fid": None}
    assert found["d"] == {"n": 0, "n_reference": 0, "n_matched": None, "fid": None}


def test_inception_score_counts_the_classes() -> None:
    logits = 100 * torch.eye(6)[torch.arange(60) % 6]  # six classes, each certain and as frequent
    assert inception_score(logits, 1, 0) == (pytest.approx(6), 0)
    assert inception_score(torch.zeros(20, 4), 5, 0) == (pytest.approx(1), pytest.approx(0))


# ── neighbours ──────────────────────────────────────────────────────────────────────────────────


def settings(**changes: Any) -> EvaluateParams:
    """Small, of efficientnet-lite0."""
    values = {
        "features": "efficientnet-lite0",
        "features_path": None,
        "prc_features": None,
        "prc_features_path": None,
        "reference": "train",
        "n": 6,
        "neighbours": 3,
        "isc_splits": 1,
        "kid_subsets": 10,
        "kid_subset_size": 10,
        "prd": False,
        "bootstrap": 10,
        "class_n": 2,
        "batch_size": 4,
    }
    return EvaluateParams.model_validate(values | changes)


def sets(generated: Tensor, reference: Tensor, **changes: Any) -> dict[str, Any]:
    """`measure` of pooled features alone."""
    return measure({"pooled": generated}, {"pooled": reference}, settings(**changes), 0)


def test_neighbours_on_a_line_by_hand() -> None:
    """k = 1; real 0, 1, 10: reach 1, 1, 9. Generated 0.5, 1.5, 40, 41.5: reach 1, 1, 1.5, 1.5."""
    real = torch.tensor([[0.0], [1], [10]])
    made = torch.tensor([[0.5], [1.5], [40], [41.5]])
    assert neighbour_metrics(made, real, 1) == {
        "precision": 2 / 4,  # 0.5 and 1.5
        "recall": 2 / 3,  # 0 by 0.5; 1 by both; 10 by none
        "density": (2 + 2) / (1 * 4),  # 0.5 in the balls of 0 and 1; 1.5 in those of 1 and 10
        "coverage": 3 / 3,  # all three balls hold one
    }


def test_mode_collapse_costs_recall_and_noise_costs_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 8, generator=rng) + shift for shift in (-10, 10))
    reference = torch.cat([left, right])
    collapsed = torch.randn(80, 8, generator=rng) - 10  # one of two modes, well drawn
    found = sets(collapsed, reference, prd=True)
    assert found["precision"] > 0.8
    assert found["density"] > 0.8
    assert found["recall"] < 0.55
    assert found["coverage"] < 0.55
    assert found["prd_f1_8"] > 0.8 > 0.6 > found["prd_f8"]  # precise; half of it recalled
    noisy = torch.cat([reference, reference + 1000])  # both modes, and as many that are neither
    found = sets(noisy, reference, prd=True)
    assert found["precision"] == 0.5
    assert found["density"] < 0.7
    assert found["recall"] == found["coverage"] == 1.0
    assert found["prd_f8"] > 0.8 > 0.6 > found["prd_f1_8"]


def test_a_set_equals_itself() -> None:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(50, 200, generator=rng)
    found = sets(features, features.clone(), prd=True)
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == found["coverage"] == 1.0
    assert found["prd_f8"] == found["prd_f1_8"] == pytest.approx(1)
    assert found["isc_mean"] is None
    assert sets(features, features)["prd_f8"] is None


def test_copies_of_one_image_are_one() -> None:
    """Reach 0: rounding must not decide whether an image is in a ball."""
    rng = torch.Generator().manual_seed(2)
    one = torch.rand(1, 300, generator=rng) * 30
    real = torch.cat([one.repeat(6, 1), torch.rand(5, 300, generator=rng) * 30])
    found = neighbour_metrics(one.repeat(9, 1), real, 3)
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(6 / 11)


@pytest.mark.parametrize("block", [7, 16, 30])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(4)
    x, y = torch.rand(30, 12, generator=rng), torch.rand(41, 12, generator=rng) * 1.2
    whole = pair_metrics(x, y, 3, 20, 10, 0)
    monkeypatch.setattr(kernel, "BLOCK", block)
    near, kid = pair_metrics(x, y, 3, 20, 10, 0)
    assert near == whole[0]
    assert kid.mean == pytest.approx(whole[1].mean, rel=1e-5)
    assert kid.std == pytest.approx(whole[1].std, rel=1e-5)
    assert near == neighbour_metrics(x, y, 3)
    assert kid == kernel_inception_distance(x, y, 20, 10, 0)


def test_kid_of_few_images() -> None:
    rng = torch.Generator().manual_seed(5)
    x, y = torch.randn(30, 6, generator=rng), torch.randn(21, 6, generator=rng)
    assert kernel_inception_distance(x, y, 5, 21, 0).size == 21
    assert kernel_inception_distance(x, y, 5, 22, 0).size == 10  # half of the smaller set
    nothing = kernel_inception_distance(x[:3], y, 5, 22, 0)
    assert (nothing.mean, nothing.std, nothing.size) == (None, None, 1)


# ── PRD ─────────────────────────────────────────────────────────────────────────────────────────


def test_prd_by_hand() -> None:
    real, made = np.array([0.5, 0.5, 0]), np.array([1.0, 0, 0])  # one of two modes
    precision, recall = prd_curve(made, real)
    assert (precision[500], recall[500]) == (pytest.approx(0.5), pytest.approx(0.5))  # slope 1
    assert precision.max() == pytest.approx(1)
    assert recall.max() == pytest.approx(0.5)
    # all precise where the slope is 2 or more: (1, 1/2)
    assert f_beta(precision, recall, 1 / 8) == pytest.approx((1 + 1 / 64) * 0.5 / (1 / 64 + 0.5), rel=1e-3)
    assert f_beta(precision, recall, 8) == pytest.approx(65 * 0.5 / (64 + 0.5), rel=1e-3)
    precision, recall = prd_curve(np.array([1.0, 0]), np.array([0, 1.0]))
    assert f_beta(precision, recall, 8) == 0


def test_prd_is_drawn_by_seed_and_balanced() -> None:
    rng = torch.Generator().manual_seed(6)
    x, y = torch.randn(60, 5, generator=rng), torch.randn(90, 5, generator=rng)
    assert prd_scores(x, y, 0) == prd_scores(x, y, 0) != prd_scores(x, y, 1)
    same = torch.cat([x, x]), x  # as many of each are compared
    assert min(prd_scores(*same, 0)) > 0.6


# ── intervals ───────────────────────────────────────────────────────────────────────────────────


def draw(n: int, rng: torch.Generator, scale: float = 1.0) -> Tensor:
    """Features of rank about 6 in 40 dimensions: (n, 40)."""
    mixing = torch.randn(6, 40, generator=torch.Generator().manual_seed(7))
    return torch.randn(n, 6, generator=rng) @ mixing * scale + 0.3 * torch.randn(n, 40, generator=rng)


def test_intervals_hold_what_repeated_draws_give() -> None:
    """The mean over fresh sets of the same size lies in at least 17 of 20 intervals; of a normal metric
    they would be 3.9 standard deviations of these sets wide, and they are no wider than twice that."""
    rng = torch.Generator().manual_seed(8)
    names = ("fid", "precision", "recall")

    def once() -> tuple[dict[str, float], Tensor, Tensor]:
        x, y = draw(120, rng, 1.3), draw(100, rng)
        return {"fid": frechet_distance(x, y), **neighbour_metrics(x, y, 3)}, x, y

    fresh = [once()[0] for _ in range(60)]
    mean, spread = (
        {name: float(how([one[name] for one in fresh])) for name in names} for how in (np.mean, np.std)
    )
    held = dict.fromkeys(names, 0)
    widths: dict[str, list[float]] = {name: [] for name in names}
    for i in range(20):
        found, x, y = once()
        low_high = intervals(found, (x, y), (x, y), 3, 40, i)
        for name in names:
            low, high = (low_high[f"{name}_{side}"] for side in ("low", "high"))
            assert low is not None
            assert high is not None
            assert low <= found[name] <= high
            held[name] += low <= mean[name] <= high
            widths[name].append(high - low)
    assert min(held.values()) >= 17, held
    for name in names:
        assert 3 < np.mean(widths[name]) / spread[name] < 8


def test_an_interval_holds_its_value_where_halves_find_neighbours_and_the_whole_finds_none() -> None:
    """Radii of half a set are wider, so that recall is above 0 in some halves and 0 in the whole."""
    rng = torch.Generator().manual_seed(14)
    x, y = draw(60, rng), draw(60, rng) + 2.9
    found = {"fid": frechet_distance(x, y), **neighbour_metrics(x, y, 3)}
    assert found["recall"] == 0
    got = intervals(found, (x, y), (x, y), 3, 200, 0)
    assert (got["recall_low"], got["recall_high"]) == (0, 0)


def test_intervals_are_drawn_by_seed_and_may_be_left_out() -> None:
    rng = torch.Generator().manual_seed(9)
    x, y = draw(30, rng), draw(20, rng)
    first = sets(x, y)
    assert sets(x, y) == first
    assert 0 <= first["fid_low"] < first["fid"] < first["fid_high"]
    assert first["precision_high"] <= 1
    for absent in (sets(x, y, bootstrap=0), sets(x, y[:7])):
        assert absent["fid_low"] is absent["fid_high"] is absent["recall_high"] is None
        assert absent["fid"] > 0


def test_features_that_are_no_numbers_give_nan() -> None:
    features = torch.ones(5, 3)
    features[2, 1] = math.inf
    assert math.isnan(frechet_distance(features, torch.randn(5, 3)))
