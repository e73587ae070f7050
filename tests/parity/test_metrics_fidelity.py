"""The metrics and their features against torch-fidelity, timm and torchvision, called directly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vap.metrics.features import features_of, load_extractor, weights_file
from vap.metrics.fidelity import frechet_distance, inception_score, measure
from vap.metrics.kernel import kernel_inception_distance, neighbour_metrics, pair_metrics
from vap.params import EvaluateParams

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(seed: int, n: int, hue: Sequence[float]) -> list[np.ndarray]:
    """Smooth random patterns of one hue, uint8 [32, 32, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] / 32
    made = []
    for _ in range(n):
        a, b, phase = rng.uniform(1, 9, 3)
        level = 0.5 + 0.4 * np.sin(a * x * 3 + phase) * np.cos(b * y * 3)
        pixels = level[..., None] * hue + rng.normal(0, 0.03, (32, 32, 3))
        made.append(np.clip(255 * pixels, 0, 255).astype(np.uint8))
    return made


class Images(torch.utils.data.Dataset):
    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.images[i]).permute(2, 0, 1)


def batch_of(images: Sequence[np.ndarray]) -> Tensor:
    return torch.stack([Images(images)[i] for i in range(len(images))])


def low_rank(n: int, d: int, rng: torch.Generator, scale: float = 1.0) -> Tensor:
    """Features like a network's: not negative, of a dozen strong directions, (n, d)."""
    mixing = torch.randn(12, d, generator=torch.Generator().manual_seed(5)) / 12**0.5
    return torch.relu(torch.randn(n, 12, generator=rng) @ mixing * scale + 0.3) + 0.1 * torch.rand(
        n, d, generator=rng
    )


# ── metrics ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def registered() -> Any:
    """Our EfficientNet-Lite0, known to torch-fidelity by that name; and the network itself."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    net = load_extractor("efficientnet-lite0", weights_file("efficientnet-lite0", None))

    class Registered(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(("pooled", "logits"), net(images), strict=True))
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "pooled"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor("efficientnet-lite0", Registered)
    return net


def test_the_same_images_give_torch_fidelitys_numbers(registered: Any) -> None:
    from torch_fidelity import calculate_metrics

    generated = images(5, 8, (1.0, 0.7, 0.6)) + images(6, 8, (0.0, 1.0, 0.1))
    reference = images(7, 14, (1.0, 0.7, 0.6))
    expected = calculate_metrics(
        input1=Images(generated),
        input2=Images(reference),
        cuda=False,
        batch_size=5,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="efficientnet-lite0",
        isc_splits=3,
        kid_subsets=7,
        kid_subset_size=9,
        prc_neighborhood=2,
        rng_seed=11,
        samples_shuffle=True,
        save_cpu_ram=True,  # and no workers
        cache=False,
        verbose=False,
    )
    settings = EvaluateParams(
        features="efficientnet-lite0",
        features_path=None,
        prc_features=None,
        prc_features_path=None,
        reference="train",
        n=16,
        neighbours=2,
        isc_splits=3,
        kid_subsets=7,
        kid_subset_size=9,
        prd=False,
        bootstrap=0,
        class_n=2,
        batch_size=16,
    )
    ours = (features_of(part, registered, 16) for part in (generated, reference))
    found: dict[str, Any] = measure(*ours, settings, seed=11)
    for name, theirs, tolerance in (
        ("fid", "frechet_inception_distance", 1e-6),
        ("isc_mean", "inception_score_mean", 1e-6),
        ("isc_std", "inception_score_std", 1e-6),
        ("precision", "precision", 1e-6),
        ("recall", "recall", 1e-6),
        ("kid_mean", "kernel_inception_distance_mean", 1e-5),  # torch-fidelity's own float32 rounding
        ("kid_std", "kernel_inception_distance_std", 1e-5),
    ):
        assert found[name] == pytest.approx(expected[theirs], rel=tolerance), name
    assert 0 < found["precision"] < 1
    assert found["fid"] > 50  # large beside the rounding of torch-fidelity, about 3e-5


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


@pytest.mark.parametrize(("n", "m", "size"), [(120, 90, 40), (300, 500, 300)])
def test_kernel_distance_is_torch_fidelitys(n: int, m: int, size: int) -> None:
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = torch.Generator().manual_seed(n)
    x, y = low_rank(n, 64, rng, 1.1), low_rank(m, 64, rng)
    options = {"kid_subsets": 30, "kid_subset_size": size, "rng_seed": 3, "verbose": False}
    # of double features it computes in double; its float32 is off by some 1e-6 of the distance
    theirs = kid_features_to_metric(x.double(), y.double(), **options)
    expected = [theirs[f"kernel_inception_distance_{part}"] for part in ("mean", "std")]
    double = kernel_inception_distance(x.double(), y.double(), 30, size, 3)
    assert [double.mean, double.std] == pytest.approx(expected, rel=1e-9)
    single = kernel_inception_distance(x, y, 30, size, 3)
    assert [single.mean, single.std] == pytest.approx(expected, rel=1e-6, abs=5e-8)  # of kernels of about 5
    assert (double.size, single.size) == (size, size)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_are_torch_fidelitys(k: int) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = torch.Generator().manual_seed(k)
    x, y = low_rank(230, 64, rng, 1.1), low_rank(310, 64, rng)
    for whole in (False, True):
        theirs = prc_features_to_metric(x, y, prc_neighborhood=k, save_cpu_ram=whole, verbose=False)
        found = neighbour_metrics(x, y, k)
        assert found["precision"] == pytest.approx(theirs["precision"], rel=1e-6)
        assert found["recall"] == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0.1 < found["precision"] < 0.95


@pytest.mark.parametrize("splits", [1, 4, 7])
def test_inception_score_is_torch_fidelitys(splits: int) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 3 * torch.randn(53, 20, generator=torch.Generator().manual_seed(splits))
    theirs = isc_features_to_metric(logits, splits, shuffle=True, rng_seed=2)
    expected = [theirs[f"inception_score_{part}"] for part in ("mean", "std")]
    assert inception_score(logits, splits, 2) == pytest.approx(expected, rel=1e-9)


# ── features ────────────────────────────────────────────────────────────────────────────────────


def test_efficientnet_is_timms() -> None:
    import timm

    path = weights_file("efficientnet-lite0", None)
    net = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(path, weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    given = images(0, 2, (1.0, 0.7, 0.6))
    x = torch.nn.functional.interpolate(batch_of(given).float(), (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        logits = net.eval()((x / 255 - 0.5) / 0.5)
        pooled = net.forward_head(net.forward_features((x / 255 - 0.5) / 0.5), pre_logits=True)
    ours = load_extractor("efficientnet-lite0", path)
    found = features_of(given, ours, 2)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-5, atol=2e-5)
    assert not [part for part in ours.modules() if "BatchNorm" in type(part).__name__]  # folded


def test_inception_is_torch_fidelitys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as module

    layers = ["2048", "logits_unbiased"]
    with monkeypatch.context() as patch:  # random weights: no file, no download
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = module.FeatureExtractorInceptionV3("inception-v3-compat", layers)
    torch.save(theirs.state_dict(), tmp_path / "inception.pth")
    ours = load_extractor("inception", tmp_path / "inception.pth")
    given = images(4, 2, (1.0, 0.7, 0.6))
    found = features_of(given, ours, 1)
    pooled, logits = theirs(batch_of(given))
    assert found["pooled"].shape == (2, 2048)
    assert found["logits"].shape == (2, 1008)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["logits"], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_vgg16_is_torch_fidelitys_own(tmp_path: Path) -> None:
    """Half a gigabyte of random weights."""
    import torchvision
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    path = tmp_path / "vgg16.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.vgg16().state_dict(), path)
    theirs = FeatureExtractorVGG16("vgg16", ["fc2_relu"], feature_extractor_weights_path=str(path))
    given = images(4, 2, (1.0, 0.7, 0.6))
    found = features_of(given, load_extractor("vgg16", path), 1)
    assert list(found) == ["pooled"]
    assert found["pooled"].shape == (2, 4096)
    torch.testing.assert_close(found["pooled"], theirs(batch_of(given))[0], rtol=1e-5, atol=1e-5)
    assert found["pooled"].min() == 0  # after the ReLU


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_network_of_timm(name: str, suffix: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    whole = timm.create_model(name).eval()  # with its classifier, as published weights have it
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(whole.state_dict(), path)
    given = images(4, 3, (1.0, 0.7, 0.6))
    found = features_of(given, load_extractor(f"timm:{name}", path), 2)
    config = timm.data.resolve_data_config({}, model=whole)
    size = config["input_size"][1:]
    x = torch.nn.functional.interpolate(
        batch_of(given).float(), size, mode=config["interpolation"], antialias=True
    )
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        logits = whole((x / 255 - mean) / std)
    assert list(found) == ["pooled"]
    torch.testing.assert_close(whole.get_classifier()(found["pooled"]), logits, rtol=1e-4, atol=1e-5)


# ── memory ──────────────────────────────────────────────────────────────────────────────────────

PEAK = """
import re, torch
from pathlib import Path
torch.set_num_threads(1)
from vap.metrics import fidelity, kernel
n, d = {n}, {d}
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
x, y = (torch.rand(n, d) for _ in range(2))
before = peak()
kernel.pair_metrics(x, y, 3, 100, 1000, 0)
fidelity.frechet_distance(x, y)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_blocks_not_pairs() -> None:
    """20,000 images a side: their 1,200 MB of squared distances are never there together."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(n=20_000, d=16)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert float(done.stdout) < 300  # MB; 16 a block, 8 for either set's subsets


def test_one_sweep_gives_what_two_give() -> None:
    rng = torch.Generator().manual_seed(1)
    x, y = low_rank(80, 32, rng), low_rank(70, 32, rng)
    near, kid = pair_metrics(x, y, 3, 9, 20, 0)
    assert near == neighbour_metrics(x, y, 3)
    assert kid == kernel_inception_distance(x, y, 9, 20, 0)
