"""The networks, their weights, augmentation and training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from downstream_toy import CLASSES, params, write_prepared
from safetensors.torch import load_file, save_file

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.common.progress import Progress
from vap.datasets.share import real_rows
from vap.downstream import fit as module
from vap.downstream.classifier import Classifier
from vap.downstream.data import ImagePool
from vap.downstream.fit import augment, fit, predict
from vap.params import AugmentParams
from vap.training.plain import warmup_cosine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(num_classes: int = 2, **changes: Any) -> Classifier:
    torch.manual_seed(0)
    own = params(**{f"network__{key}": value for key, value in changes.items()}).downstream.classifier["net"]
    return Classifier("net", own, num_classes)


# ── networks and weights ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("model", "size"), [("test_resnet", 48), ("test_maxvit", 64), ("test_vit", 32)])
def test_a_network_takes_the_size_that_it_is_given(model: str, size: int) -> None:
    net = build(3, model=model, image_size=size).eval()
    assert net(torch.rand(2, 3, size, size)).shape == (2, 3)


def test_images_are_normalised_as_the_networks_weights_want_them() -> None:
    net = build().eval()
    config = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (config.mean, config.std))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(images), net.net((images - mean) / std))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_another_class_count_lose_their_head_alone(suffix: str) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_resnet", num_classes=10).state_dict()
    file = Path(f"weights{suffix}")
    if suffix == ".pth":
        torch.save({"state_dict": source, "epoch": 3}, file)
    else:
        save_file(source, file)
    plain, loaded = build().net.state_dict(), build(weights=str(file)).net.state_dict()
    head = {"fc.weight", "fc.bias"}
    assert all(torch.equal(loaded[key], source[key]) for key in source.keys() - head)
    assert all(torch.equal(loaded[key], plain[key]) for key in head)
    same = build(10, weights=str(file)).net.state_dict()
    assert all(torch.equal(same[key], source[key]) for key in source)


def test_positions_of_a_maxvit_are_resized_to_its_windows() -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_maxvit").state_dict()  # for 160 pixels: windows of 5
    save_file(source, "weights.safetensors")
    loaded = build(model="test_maxvit", image_size=64, weights="weights.safetensors").net.state_dict()
    changed = {key for key in loaded if loaded[key].shape != source[key].shape and not key.startswith("head")}
    assert changed
    assert all(key.endswith("relative_position_bias_table") for key in changed)
    assert torch.equal(loaded["stem.conv1.weight"], source["stem.conv1.weight"])


def test_weights_that_do_not_fit_are_one_line() -> None:
    right = timm.create_model("test_resnet", num_classes=10).state_dict()
    cases = {
        "other.safetensors": timm.create_model("test_vit", num_classes=10).state_dict(),
        "less.safetensors": {key: value for key, value in right.items() if key != "conv1.0.weight"},
        "shape.safetensors": {**right, "conv1.0.weight": torch.zeros(1, 3, 3, 3)},
        "head.safetensors": {key: value for key, value in right.items() if key.startswith("fc")},
    }
    for name, tensors in cases.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, name)
    Path("text.safetensors").write_text("no weights")
    Path("text.pth").write_text("no weights")
    torch.save([1, 2], "list.pth")
    words = {
        "other.safetensors": "no tensor .* more differences; expected weights of timm's test_resnet",
        "less.safetensors": "no tensor conv1.0.weight; expected",
        "shape.safetensors": r"conv1.0.weight of shape \(1, 3, 3, 3\), not",
        "head.safetensors": "no tensor .* more differences",
        "text.safetensors": "no readable weights",
        "text.pth": "no readable weights",
        "list.pth": "a list of other things",
        "absent.pth": "no such file",
    }
    for name, told in words.items():
        with pytest.raises(VapError, match=f"^{name}: found {told}") as caught:
            build(weights=name)
        assert "\n" not in str(caught.value)


def test_a_model_or_a_size_that_is_not_there_is_one_line() -> None:
    with pytest.raises(VapError, match=r"downstream\.classifier\.net\.model: found 'densenet122'"):
        build(model="densenet122")
    with pytest.raises(VapError, match=r"downstream\.classifier\.net\.image_size: found 100 ") as caught:
        build(model="test_maxvit", image_size=100)
    assert "\n" not in str(caught.value)


# ── augmentation and schedule ───────────────────────────────────────────────────────────────────────

NONE = {"flip_horizontal": False, "flip_vertical": False, "shift": 0.0, "color": 0.0}


def augmented(images: torch.Tensor, seed: int = 0, **changes: Any) -> torch.Tensor:
    return augment(images, AugmentParams(**{**NONE, **changes}), torch.Generator().manual_seed(seed))


def test_each_augmentation_is_what_it_says() -> None:
    images = torch.randint(
        0, 256, (40, 3, 12, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    plain = images.float() / 255
    assert torch.allclose(augmented(images), plain, atol=1e-6)
    for key, axis in (("flip_horizontal", 3), ("flip_vertical", 2)):
        found = augmented(images, **{key: True})
        mirrored = (found - plain.flip(axis)).abs().amax((1, 2, 3)) < 1e-5
        same = (found - plain).abs().amax((1, 2, 3)) < 1e-5
        assert (mirrored ^ same).all()
        assert 8 < mirrored.sum() < 32
    assert torch.equal(augmented(images, color=0.3), augmented(images, color=0.3))
    assert not torch.equal(augmented(images, color=0.3), augmented(images, 1, color=0.3))
    found = augmented(images, color=0.3)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - plain).abs().amax((1, 2, 3)).min() > 0.001  # every image has its own change


def test_a_shift_repeats_the_edge() -> None:
    ramp = torch.arange(10, dtype=torch.uint8).expand(30, 3, 10, 10).contiguous()
    found = (
        (augmented(ramp, shift=0.2) * 255).round().long()[:, 0]
    )  # rows are alike, so it is seen in columns
    moves = found[:, 0, 4] - 4
    assert set(moves.tolist()) == {-2, -1, 0, 1, 2}
    for image, move in zip(found, moves, strict=True):
        assert image[0].tolist() == (torch.arange(10) + move).clamp(0, 9).tolist()


def test_the_learning_rate_rises_and_falls_to_0() -> None:
    rates = [warmup_cosine(step, 100, 10, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0 == max(rates)
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.01
    assert warmup_cosine(0, 1, 0, 2.0) == 2.0


# ── training ────────────────────────────────────────────────────────────────────────────────────────


def trained(folder: str = "state", **changes: Any) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
    """Weights, test probabilities and test labels."""
    chosen = params(**changes)
    own = chosen.downstream.classifier["net"]
    file = ArrowFile(write_prepared(), "prepared")
    pools = [
        ImagePool([(file, real_rows(file, split))], CLASSES, own.image_size) for split in ("train", "test")
    ]
    torch.manual_seed(0)
    net = Classifier("net", own, 2)
    n_real = len(pools[0])
    fit(
        net,
        pools[0],
        n_real,
        own,
        chosen.downstream,
        Path(folder),
        section="x",
        seed=0,
        device=CPU,
        label="toy",
    )
    with Progress("test", 10, "img") as progress:
        return net.state_dict(), predict(net, pools[1], 3, CPU, progress), pools[1].labels


def test_a_classifier_learns_what_is_plain_to_see() -> None:
    _, probabilities, labels = trained(network__steps=25)
    assert probabilities.shape == (10, 2)
    assert np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == labels).all()


def test_the_same_bytes_twice_and_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    whole, probabilities, _ = trained("a")
    again, _, _ = trained("b")
    assert all(torch.equal(whole[key], again[key]) for key in whole)

    original, seen = module.step_generator, []

    def dies(seed: int, step: int) -> torch.Generator:
        seen.append(step)
        if step == 5 and len(seen) == 6:
            raise KeyboardInterrupt
        return original(seed, step)

    monkeypatch.setattr(module, "step_generator", dies)
    with pytest.raises(KeyboardInterrupt):
        trained("c")
    resumed, after, _ = trained("c")
    assert seen == [0, 1, 2, 3, 4, 5, 4, 5]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert probabilities.tobytes() == after.tobytes()
    assert load_file("c/step-00000004/model.safetensors").keys() == whole.keys()


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    with pytest.raises(VapError, match=r"toy, step \d: found a loss that is not finite"):
        trained(network__lr=1e30)


def test_every_training_setting_changes_the_weights(fresh_accelerate: None) -> None:
    plain, _, _ = trained("plain")
    for i, change in enumerate(
        (
            {"network__lr": 5e-3},
            {"weight_decay": 0.5},
            {"warmup": 0.5},
            {"label_smoothing": 0.2},
            {"augment": {**NONE, "shift": 0.2}},
            {"precision": "bf16"},
        )
    ):
        AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision a process
        other, _, _ = trained(f"other{i}", **change)
        assert any(not torch.equal(plain[key], other[key]) for key in plain), change
