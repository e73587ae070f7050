"""CBDM: its loss term by term against the paper's equations, its U-Net against DDPM's published size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.diffusion.sampler import sample
from vap.diffusion.schedule import Schedule
from vap.generators.base import Method, Shapes, load_method
from vap.generators.cbdm.network import PixelUNet
from vap.generators.diffusion import DiffusionMethod
from vap.params import MethodParams, SampleParams
from vap.training.batch import Batch, Condition

SCHEDULE = Schedule("linear", 1000, 1e-4, 0.02)
CLASSES = 3
MODEL = {
    "image_size": 8,
    "width": 8,
    "multipliers": [1, 2],
    "res_blocks": 1,
    "attention": [1],
    "dropout": 0.0,
}
TRAIN: dict[str, Any] = {
    "tau": 1.0,
    "schedule": None,
    "steps": 1,
    "batch_size": 4,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "warmup_steps": 0,
    "ema_decay": 0.99,
    "condition_dropout": 0.1,
    "grad_clip": None,
    "predicts": "noise",
    "flip": False,
}


def method(train: dict[str, Any] | None = None, **model: Any) -> Method[Any]:
    entry = {
        "model": MODEL | model,
        "train": TRAIN | (train or {}),
        "sample": {"guidance_scale": 1.0, "sampler": None},
    }
    return load_method("cbdm", {"cbdm": MethodParams.model_validate(entry)})


class Stub(nn.Module):
    """Predicts a · x + b[class]: both terms of the loss can be worked by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))
        self.b = nn.Parameter(torch.tensor([0.1, -0.4, 0.7, 0.0]))
        self.unet = nn.Module()
        self.unet.config = type("Config", (), {"num_class_embeds": CLASSES + 1})()  # type: ignore[assignment]

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.a * x + self.b[label][:, None, None, None]


def batch(label: list[int], other: list[int], t: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    shape = (len(label), 3, 4, 4)
    return Batch(
        torch.rand(shape, generator=generator) * 2 - 1,
        Condition(torch.tensor(label)),
        torch.tensor(t),
        torch.randn(shape, generator=generator),
        torch.tensor(other),
    )


def loss_of(net: nn.Module, given: Batch, **train: Any) -> tuple[Tensor, dict[str, Tensor]]:
    found = method(train)
    assert isinstance(found, DiffusionMethod)
    return found.loss(net, given, SCHEDULE)


def test_the_loss_is_the_papers() -> None:
    given, net = batch([0, 2, 1], [1, 2, 0], [1000, 500, 10]), Stub()
    loss, logs = loss_of(net, given, tau=2.0)
    x = SCHEDULE.add_noise(given.x0, given.noise, given.t)
    simple = (net(x, given.t, given.condition.label) - given.noise).square().mean()
    b = net.b.detach()
    apart = (b[[0, 2, 1]] - b[[1, 2, 0]]).square()  # |h - h'|² of every pixel
    weight = 2.0 * torch.tensor([1000.0, 500.0, 10.0]) / 1000
    expected = (weight * 1.25 * apart).mean()
    torch.testing.assert_close(logs["balancing"], expected)
    torch.testing.assert_close(loss, simple + expected)


def test_each_term_moves_one_side_alone() -> None:
    """d|h - sg(h')|²/dh and d|sg(h) - h'|²/4 /dh': with one class a side each has its own gradient."""
    given, net = batch([0], [1], [1000]), Stub()
    loss, logs = loss_of(net, given)
    loss.backward()
    x = SCHEDULE.add_noise(given.x0, given.noise, given.t)
    gap = float((net.b[0] - net.b[1]).detach())
    residual = float((net(x, given.t, given.condition.label) - given.noise).mean().detach())
    assert net.b.grad is not None
    assert float(net.b.grad[0]) == pytest.approx(2 * residual + 2 * gap, rel=1e-4)  # not 2.5 gap
    assert float(net.b.grad[1]) == pytest.approx(-0.25 * 2 * gap, rel=1e-4)
    assert not logs["balancing"].requires_grad


def test_an_image_without_class_has_no_balancing_term() -> None:
    net = Stub()
    both, _ = loss_of(net, batch([0, CLASSES], [1, 1], [1000, 1000]))
    _, logs = loss_of(net, batch([0, CLASSES], [1, 1], [1000, 1000]))
    alone = float((net.b[0] - net.b[1]).square() * 1.25 / 2)  # of two images one
    assert float(logs["balancing"]) == pytest.approx(alone, rel=1e-5)
    assert float(both) > alone


def test_tau_zero_is_plain_ddpm() -> None:
    loss, logs = loss_of(Stub(), batch([0, 1], [1, 2], [900, 3]), tau=0.0)
    assert float(logs["balancing"]) == 0
    torch.testing.assert_close(loss.detach(), logs["denoising_loss"])


def test_parameters_are_ddpms() -> None:
    """35.7 M, as Ho et al. print for CIFAR-10 (appendix B), and the rows of the classes."""
    net = PixelUNet(
        size=32, num_classes=10, width=128, multipliers=[1, 2, 2, 2], res_blocks=2, attention=[1], dropout=0.1
    )
    classes = 11 * 512
    assert sum(p.numel() for p in net.parameters()) - classes == 35_746_307  # google/ddpm-cifar10-32


def test_a_fresh_network_predicts_zero_and_knows_the_class_once_it_has_learned() -> None:
    torch.manual_seed(0)
    net = method().build(Shapes(8, 3, CLASSES))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([5, 900])
    assert not net(x, t, torch.tensor([0, 1])).any()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    first, second, null = (net(x, t, torch.full((2,), c)) for c in (0, 1, CLASSES))
    assert (first - second).abs().max() > 1e-4
    assert (first - null).abs().max() > 1e-4


def test_images_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="side 10 cannot be halved 2 times"):
        method(image_size=10, multipliers=[1, 1, 1], attention=[]).build(Shapes(10, 3, CLASSES))
    with pytest.raises(VapError, match="names level 2 of 2"):
        method(attention=[2])


def test_its_own_schedule_and_sampler_go_before_the_shared_ones() -> None:
    entry = {
        "model": MODEL,
        "train": TRAIN
        | {"schedule": {"kind": "linear", "timesteps": 50, "beta_start": 0.01, "beta_end": 0.2}},
        "sample": {
            "guidance_scale": 1.0,
            "sampler": {
                "sampler": "ddpm",
                "order": 1,
                "spacing": "uniform",
                "variance": "beta",
                "steps": 50,
            },
        },
    }
    found = load_method("cbdm", {"cbdm": MethodParams.model_validate(entry)})
    shared: Any = SampleParams(
        n=1,
        batch_size=1,
        sampler="dpmpp",
        order=2,
        spacing="quadratic",
        variance="posterior",
        steps=7,
        labels="uniform",
        precision="fp32",
    )
    assert found.schedule(None).timesteps == 50  # type: ignore[arg-type, union-attr]
    assert isinstance(found, DiffusionMethod)
    assert found.sampling(shared).sampler == "ddpm"
    other = method()
    assert isinstance(other, DiffusionMethod)
    assert other.sampling(shared) is shared


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp"])
def test_data_stay_in_their_range(sampler: str) -> None:
    def wild(x: Tensor, t: Tensor) -> Tensor:
        return -3 * x

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {
        "sampler": sampler,
        "steps": 6,
        "step_noise": lambda k: torch.full_like(x, 0.1 * k),
    }
    free = sample(wild, SCHEDULE, x, **how)
    kept = sample(wild, SCHEDULE, x, **how, data_range=1.0)
    assert free.abs().max() > 1.5
    assert kept.abs().max() <= 1.0


def test_other_classes_come_as_often_as_in_training() -> None:
    from vap.training.data import TrainingData

    class Counts:
        counts = torch.tensor([70, 0, 30]).numpy()

    places = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    found = TrainingData.labels_at(Counts(), places)  # type: ignore[arg-type]
    assert torch.bincount(found, minlength=3).tolist() == [700, 0, 300]
