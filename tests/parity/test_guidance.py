"""Guidance in one pass over both halves is guidance in two."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vap.diffusion.guidance import guided, guided_together
from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes
from vap.generators.settings import TransformerTrainParams
from vap.generators.uvit.method import Method as UViTMethod
from vap.generators.uvit.method import UViTParams
from vap.generators.vap.method import Method as VapMethod
from vap.generators.vap.method import VapModelParams, VapTrainParams
from vap.training.batch import Condition

MODEL = {
    "width": 32,
    "depth": 2,
    "heads": 4,
    "patch": 2,
    "mlp_ratio": 4.0,
    "final_init": "published",
    "linear_init": "published",
}
TRAIN = {
    "steps": 1,
    "batch_size": 1,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "betas": [0.9, 0.9],
    "warmup_steps": 0,
    "ema_decay": 0.0,
    "condition_dropout": 0.0,
    "grad_clip": None,
    "predicts": "noise",
    "start_from": None,
}
B, CLASSES = 3, 4
SCHEDULE = Schedule("scaled_linear", 1000, 0.00085, 0.012)


def uvit(predicts: str = "noise") -> tuple[UViTMethod, Condition, Condition]:
    method = UViTMethod(
        UViTParams.model_validate(MODEL),
        TransformerTrainParams.model_validate({**TRAIN, "predicts": predicts}),
    )
    return method, Condition(torch.tensor([0, 3, 1])), Condition(torch.full((B,), CLASSES))


def vap() -> tuple[VapMethod, Condition, Condition]:
    model = {**MODEL, "pcm": "paper", "prototype_tokens": 2, "label_token": True}
    method = VapMethod(
        VapModelParams.model_validate(model), VapTrainParams.model_validate({**TRAIN, "alpha": 1.0})
    )
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 4 + [False]])
    condition = Condition(torch.tensor([0, 3, 1]), torch.randn(B, 5, 6) * mask[..., None], mask)
    null = Condition(
        torch.full((B,), CLASSES),
        torch.randn(1, 2, 6).expand(B, -1, -1),
        torch.ones(B, 2, dtype=torch.bool),
    )
    return method, condition, null


@pytest.mark.parametrize("make", [uvit, vap])
@torch.no_grad()
def test_one_pass_is_two_passes(make: object) -> None:
    torch.manual_seed(0)
    method, condition, null = make()  # type: ignore[operator]
    net = method.build(Shapes(8, 3, CLASSES, 6, 7)).eval()
    for p in net.parameters():
        p.normal_(std=0.1)
    x, t = torch.randn(B, 3, 8, 8), torch.tensor([1.0, 400.0, 1000.0])
    two = guided(method.predictor(net, condition, null, SCHEDULE), 2.5)
    both = null.joined(condition)
    pair = method.predictor(net, both, both, SCHEDULE)
    passes: list[int] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        passes.append(len(x))
        return pair(x, t, False)

    torch.testing.assert_close(guided_together(predict, 2.5)(x, t), two(x, t), atol=1e-4, rtol=1e-4)
    assert passes == [2 * B]


def test_guidance_is_done_in_the_latents_precision() -> None:
    x = torch.zeros(2, 1, 1, 1)

    def half(x: Tensor, t: Tensor, unconditional: bool) -> Tensor:
        return torch.full_like(x, 1.0 if unconditional else 1.0078125).bfloat16()  # neighbours in bfloat16

    expected = 1 + 1.5 * 0.0078125  # between two bfloat16 numbers
    assert guided(half, 1.5)(x, x).flatten().tolist() == [expected] * 2

    def joint(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([half(x[:2], t, True), half(x[2:], t, False)])

    assert guided_together(joint, 1.5)(x, x).flatten().tolist() == [expected] * 2


def test_a_learned_variance_is_the_conditional_one() -> None:
    """DiT's published sampling mixes the noise alone."""

    def predict(x: Tensor, t: Tensor, unconditional: bool) -> Tensor:
        return torch.cat([x * 2, x * 0 + 7], 1) if unconditional else torch.cat([x * 4, x * 0 + 9], 1)

    def together(x: Tensor, t: Tensor) -> Tensor:
        halves = zip(x.chunk(2), t.chunk(2), (True, False), strict=True)
        return torch.cat([predict(*half) for half in halves])

    x, t = torch.randn(2, 3, 4, 4), torch.ones(2)
    for found in (guided(predict, 1.5)(x, t), guided_together(together, 1.5)(x, t)):
        torch.testing.assert_close(found, torch.cat([x * 5, x * 0 + 9], 1))


@torch.no_grad()
def test_the_sampler_gets_the_noise_of_a_network_that_predicts_the_velocity() -> None:
    torch.manual_seed(0)
    method, condition, null = uvit("velocity")
    net = method.build(Shapes(8, 3, CLASSES)).eval()
    for p in net.parameters():
        p.normal_(std=0.1)
    x, t = torch.randn(B, 3, 8, 8), torch.tensor([1.0, 400.5, 1000.0])
    found = method.predictor(net, condition, null, SCHEDULE)(x, t, False)
    v = net(x, t, condition.label)
    assert torch.equal(found, SCHEDULE.noise_of_velocity(v, x, t))
    assert not torch.allclose(found, v)
