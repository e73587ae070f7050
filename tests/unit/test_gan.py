"""The adversarial loop: what a step does, that pieces and processes change nothing but rounding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy import settings, write_prepared

import vap.generators.train as stage
from vap.common.errors import VapError
from vap.generators.base import load_method
from vap.generators.stylegan import training as gan
from vap.generators.stylegan.training import GanLearner, blurred
from vap.params import PARAMS_FILE, Params
from vap.training.loop import make_accelerator
from vap.training.seeds import REAL

PREPARED = Path("data/prepared/own.arrow")


@pytest.fixture(autouse=True)
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None, fresh_accelerate: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(PREPARED)


def own(**changes: Any) -> Params:
    return settings(methods=["stylegan"], learns_from={"images": ["stylegan"]}, **changes)


def learner(**changes: Any) -> GanLearner:
    params = own(**changes)
    method = load_method("stylegan", params.method)
    data = method.data("own")
    from vap.generators.base import Shapes

    torch.manual_seed(0)
    make = method.learner(
        lambda: method.build(Shapes(data.shape[1], 3, 2)), data, params.train, params.compute, 0
    )
    found = make(make_accelerator("cpu", params.train.precision))
    assert isinstance(found, GanLearner)
    return found


def weights(**changes: Any) -> dict[str, torch.Tensor]:
    return load_file(stage.run(own(**changes), "own", "stylegan") / "model.safetensors")


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_each_network_learns_in_its_own_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learner()
    finish, moved = found._finish, []

    def watched(name: str) -> torch.Tensor:
        other = {"generator": "discriminator", "discriminator": "generator"}[name]
        assert all(p.grad is None for p in getattr(found, other).parameters() if p.requires_grad)
        before = {n: [p.detach().clone() for p in getattr(found, n).parameters()] for n in (name, other)}
        norm = finish(name)
        moved.append(
            [
                any(
                    (p != old).any() for p, old in zip(getattr(found, n).parameters(), before[n], strict=True)
                )
                for n in (name, other)
            ]
        )
        return norm

    monkeypatch.setattr(found, "_finish", watched)
    found.step(found.batch(0, slice(None)), 0)
    assert moved == [[True, False]] * 3  # generator, discriminator, its R1
    moved.clear()
    found.step(found.batch(1, slice(None)), 1)
    assert moved == [[True, False]] * 2  # r1_interval is 3


def test_losses_are_the_non_saturating_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learner(method__stylegan__train__ada_target=None)
    logits = {"fake": torch.tensor([0.5, -1.0, 2.0, 0.0]), "real": torch.tensor([1.0, 0.3, -0.2, 0.1])}

    class Judge(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            real = torch.equal(images, given.real)
            return logits["real" if real else "fake"] + self.p + 0 * images.sum((1, 2, 3))

    found.discriminator = Judge()  # type: ignore[assignment]
    found.optimizers["discriminator"] = torch.optim.SGD(found.discriminator.parameters(), lr=0.0)
    given = found.batch(1, slice(None))
    logs = found.step(given, 1)
    minus_log = lambda x: -torch.sigmoid(x).log()  # noqa: E731
    assert float(logs["loss"]) == pytest.approx(float(minus_log(logits["fake"]).mean()), rel=1e-5)
    expected = minus_log(-logits["fake"]).mean() + minus_log(logits["real"]).mean()
    assert float(logs["d_loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert float(logs["real_sign"]) == 0.5


def test_r1_is_the_squared_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    found = learner(method__stylegan__train__ada_target=None, method__stylegan__train__r1_gamma=4.0)
    given = found.batch(0, slice(None))
    before = {name: value.clone() for name, value in found.discriminator.state_dict().items()}
    found._regularize(given, 0)
    found.discriminator.load_state_dict(before)
    real = given.real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(found.discriminator(real, given.label).sum(), real)
    assert found.r1 == pytest.approx(float(gradient.square().sum((1, 2, 3)).mean()), rel=1e-4)


def test_pieces_change_nothing_but_rounding() -> None:
    assert_near(weights(compute__micro_batch=4), weights(method__stylegan__train__batch_size=4))
    whole = weights(method__stylegan__train__batch_size=8)
    assert_near(weights(method__stylegan__train__batch_size=8, compute__micro_batch=4), whole)


def test_two_processes_train_what_one_trains() -> None:
    changes = {"method__stylegan__train__batch_size": 8, "method__stylegan__train__steps": 4}
    one = weights(**changes)
    log = Path("results/models/own/stylegan/train.csv")
    losses = np.genfromtxt(log, delimiter=",", names=True)
    data = own(compute__processes=2, **changes).model_dump(mode="json")
    PARAMS_FILE.write_text(yaml.safe_dump(data, sort_keys=False))
    command = [sys.executable, "-m", "vap", "train", "own", "stylegan"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert_near(load_file("results/models/own/stylegan/model.safetensors"), one)
    found = np.genfromtxt(log, delimiter=",", names=True)
    for name in ("loss", "d_loss", "real_sign", "r1", "augment_p"):
        np.testing.assert_allclose(found[name], losses[name], atol=1e-4)


def test_the_average_is_of_the_generator_with_its_buffers() -> None:
    found = weights()
    assert "w_avg" in found
    assert any("magnitude_ema" in name for name in found)
    assert not any("discriminator" in name for name in found)


def test_augmentation_is_asked_for_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[slice, int]] = []
    monkeypatch.setattr(
        gan,
        "augment",
        lambda x, p, g, part, total: asked.append((part, total)) or x,  # type: ignore[func-returns-value]
    )
    found = learner()
    found.step(found.batch(1, slice(None)), 1)
    assert asked == [(slice(0, 4), 4)] * 3
    asked.clear()
    without = learner(method__stylegan__train__ada_target=None)
    without.step(without.batch(1, slice(None)), 1)
    assert not asked


def test_blur_fades_out() -> None:
    found = learner(method__stylegan__train__blur_sigma=2.0, method__stylegan__train__blur_fade_kimg=0.04)
    assert [found._blur(step) for step in (0, 5, 10, 20)] == [2.0, 1.0, 0.0, 0.0]  # 4 images a step
    images = torch.zeros(1, 3, 33, 33)
    images[:, :, 16, 16] = 1
    spread = blurred(images, 2.0)
    torch.testing.assert_close(spread.sum((2, 3)), torch.ones(1, 3))
    assert float(spread[0, 0, 16, 18] / spread[0, 0, 16, 16]) == pytest.approx(0.5, rel=1e-4)  # 2^-(x/sigma)²
    assert blurred(images, 0.3) is images


@pytest.mark.parametrize("config", ["t", "r"])
def test_bf16_trains_near_fp32(config: str) -> None:
    """The generator is float32 whatever is asked for; the discriminator's last blocks are too."""
    changes = {"method__stylegan__model__config": config, "method__stylegan__train__steps": 4}
    full = weights(**changes)
    AcceleratorState._reset_state(True)
    half = weights(**changes, train__precision="bf16")
    assert all(value.dtype == torch.float32 for value in half.values())
    assert any(not torch.equal(half[name], full[name]) for name in full)
    for name in ("w_avg", "z_to_w.layers.0.weight"):
        torch.testing.assert_close(half[name], full[name], atol=0.05, rtol=0.05)


def test_what_follows_the_large_maps_is_float32_under_autocast() -> None:
    net = learner(method__stylegan__model__image_size=16).discriminator
    seen: dict[str, torch.dtype] = {}
    for name in ("from_rgb", "conv", "out"):
        net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, found, name=name: seen.__setitem__(name, found.dtype)
        )
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))
    assert seen == {"from_rgb": torch.bfloat16, "conv": torch.float32, "out": torch.float32}


def test_the_mean_of_w_is_float32_under_autocast() -> None:
    net = learner().generator
    z, label = torch.randn(4, net.z_dim), torch.zeros(4, dtype=torch.long)
    plain = net(z, label, truncation_psi=0.7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(z, label, truncation_psi=0.7), plain)


def test_a_discriminator_that_is_no_number_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    original = GanLearner._judge

    def judge(self: GanLearner, *arguments: Any) -> torch.Tensor:
        _images, _label, step, stream, _piece = arguments
        found = original(self, *arguments)
        return found * torch.nan if step == 5 and stream == REAL else found

    monkeypatch.setattr(GanLearner, "_judge", judge)
    with pytest.raises(VapError, match=r"step 6: found a d_loss that is not.*last good: step-00000003"):
        weights()


def test_groups_stay_whole_on_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = make_accelerator("cpu", "fp32")
    monkeypatch.setattr(type(accelerator), "num_processes", property(lambda _self: 2))
    with pytest.raises(VapError, match=r"batch_size: found 12; expected a multiple of 8: whole groups of 4"):
        learner(method__stylegan__train__batch_size=12)
    learner(method__stylegan__train__batch_size=16)


def test_gradients_are_cut_where_asked() -> None:
    assert any(
        not torch.equal(value, other)
        for value, other in zip(
            weights().values(), weights(method__stylegan__train__grad_clip=1e-6).values(), strict=True
        )
    )


def test_a_loss_scaler_is_refused() -> None:
    with pytest.raises(VapError, match=r"train.precision: found fp16; expected bf16 or fp32"):
        learner(train__precision="fp16")


def test_a_size_that_is_no_power_of_two_is_one_line() -> None:
    with pytest.raises(VapError, match=r"'image_size' 24 must be a power of two"):
        weights(method__stylegan__model__image_size=24)


def test_images_that_are_too_small_are_one_line() -> None:
    with pytest.raises(VapError, match=r"method.stylegan.model.image_size: found 32; expected at most 16"):
        weights(method__stylegan__model__image_size=32)
