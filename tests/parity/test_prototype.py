"""PCM as the paper and as the released code define it: position, step 0, where the gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from networks import authors_uvit
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes
from vap.generators.vap.method import Method, VapModelParams, VapNet, VapTrainParams
from vap.generators.vap.prototype import (
    PrototypeCondition,
    ReleasedPrototypeCondition,
    feature_variance,
    masked_mean,
)
from vap.training.batch import Batch, Condition

SHAPES = Shapes(size=8, channels=3, num_classes=4, context_dim=6, context_tokens=5)
MODEL = {
    "width": 32,
    "depth": 4,
    "heads": 4,
    "patch": 2,
    "mlp_ratio": 4.0,
    "final_init": "published",
    "linear_init": "published",
    "prototype_tokens": 3,
    "label_token": True,
}
TRAIN = {
    "steps": 1,
    "batch_size": 2,
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


def network(pcm: str = "paper", **changes: object) -> VapNet:
    torch.manual_seed(0)
    return VapNet(VapModelParams.model_validate({**MODEL, "pcm": pcm, **changes}), SHAPES)


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 3, 8, 8, generator=generator),
        torch.tensor([10, 900]),
        torch.tensor([1, 4]),  # 4 is the null class
        torch.randn(2, 5, 6, generator=generator),
        torch.tensor([[True] * 5, [True] * 2 + [False] * 3]),
    )


def block(kind: type[nn.Module] = PrototypeCondition) -> nn.Module:
    torch.manual_seed(0)
    return kind(32, 4, 4, 3)


def features(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    encoded, hidden = torch.randn(2, 2, n, 32, generator=generator)
    return encoded.requires_grad_(), hidden.requires_grad_()


def touched(module: nn.Module) -> set[str]:
    """First part of the names of the parameters that have a gradient other than zero."""
    return {
        name.split(".")[0]
        for name, p in module.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }


# ── paper ───────────────────────────────────────────────────────────────────────────────────────


def test_at_step_0_the_network_is_the_one_without_pcm() -> None:
    net, given = network("paper"), inputs()
    assert torch.equal(net(*given), net.uvit(*given))
    assert net.recon is not None


def test_zero_layer_is_zero_after_the_whole_network_is_initialised() -> None:
    pcm = network("paper").pcm
    assert isinstance(pcm, PrototypeCondition)
    assert not pcm.inject.weight.any()
    assert not pcm.inject.bias.any()
    assert pcm.cross_attn.q.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert pcm.prototypes.weight.std().item() == pytest.approx(1.0, rel=0.15)  # N(0, 1), authors


def test_the_linear_layers_may_begin_by_their_width_and_the_zero_layer_stays_zero() -> None:
    pcm = network("paper", linear_init="xavier").pcm
    assert isinstance(pcm, PrototypeCondition)
    assert not pcm.inject.weight.any()
    assert pcm.cross_attn.q.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.2)
    released = network("released", linear_init="xavier").pcm
    assert released.q.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_the_zero_layer_learns_at_the_first_step_and_the_prior_at_the_second() -> None:
    net, given = network("paper"), inputs()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net(*given).square().mean().backward()
    assert touched(net.pcm) == {"inject"}
    optimizer.step()
    optimizer.zero_grad()
    net(*given).square().mean().backward()
    assert {"inject", "prototypes", "cross_attn", "self_attn"} <= touched(net.pcm)


def test_recon_loss_trains_prototypes_and_their_attention_alone() -> None:
    net = network("paper")
    net(*inputs())
    net.recon[0].backward()
    assert touched(net) == {"pcm"}
    assert touched(net.pcm) == {"prototypes", "cross_attn", "norm_query"}


def test_recon_loss_detaches_query_and_target() -> None:
    encoded, hidden = features()
    block()(encoded, hidden, torch.tensor([0, 1]))[1].backward()
    assert encoded.grad is None
    assert hidden.grad is None


def test_recon_loss_equals_equation_3_by_hand() -> None:
    pcm, (encoded, hidden) = block(), features()
    label = torch.tensor([2, 0])
    p = pcm.prototypes.weight[label].reshape(2, 3, 32)
    a = pcm.cross_attn
    q = a.q(pcm.norm_query(encoded)).reshape(2, 6, 4, 8)
    k, v = a.k(p).reshape(2, 3, 4, 8), a.v(p).reshape(2, 3, 4, 8)
    weights = (torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(8)).softmax(-1)
    reconstruction = a.proj(torch.einsum("bhlm,bmhd->blhd", weights, v).reshape(2, 6, 32))
    expected = (reconstruction - encoded).square().mean()
    torch.testing.assert_close(pcm(encoded, hidden, label)[1], expected)


def test_prototypes_learn_and_their_target_does_not_collapse() -> None:
    net, given = network("paper"), inputs()
    features_of: list[Tensor] = []
    net.uvit.in_blocks[-1].register_forward_hook(lambda _m, _a, out: features_of.append(out))
    prior = [p for n, p in net.pcm.named_parameters() if n.split(".")[0] in ("prototypes", "cross_attn")]
    optimizer = torch.optim.Adam(prior, lr=0.02)
    losses = []
    for _ in range(60):
        net(*given)
        optimizer.zero_grad()
        net.recon[0].backward()
        optimizer.step()
        losses.append(net.recon[0].item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(features_of[0], features_of[-1])


def test_training_on_the_whole_loss_does_not_shrink_the_target() -> None:
    """The collapse that a target with gradients invites: F_e to 0, L_recon to 0."""
    net, given = network("paper"), inputs()
    features_of: list[Tensor] = []
    net.uvit.in_blocks[-1].register_forward_hook(lambda _m, _a, out: features_of.append(out))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(40):
        denoising = (net(*given) - given[0]).square().mean()
        optimizer.zero_grad()
        (denoising + 10 * net.recon[0]).backward()
        optimizer.step()
    assert features_of[-1].var() > 0.5 * features_of[0].var()


def test_null_class_has_a_row_of_its_own() -> None:
    pcm, (encoded, hidden) = block(), features()
    assert pcm.prototypes.weight.shape == (5, 3 * 32)
    null = pcm(encoded, hidden, torch.tensor([4, 4]))[1]
    assert all(not torch.isclose(null, pcm(encoded, hidden, torch.tensor([c, c]))[1]) for c in range(4))
    null.backward()
    rows = pcm.prototypes.weight.grad.abs().sum(1) > 0
    assert rows.tolist() == [False] * 4 + [True]


def test_masked_mean_ignores_padding() -> None:
    values = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = (values[0, :2].mean() + values[1, :1].mean()) / 2  # of the images' means
    assert masked_mean(values, mask[:, None, None]) == expected
    assert masked_mean(values, None) == values.mean()


@pytest.mark.parametrize("pcm", ["paper", "released"])
def test_padding_changes_neither_output_nor_loss(pcm: str) -> None:
    net, (x, t, label, context, mask) = network(pcm), inputs()
    if pcm == "paper":  # give the prior something to say
        nn.init.normal_(net.pcm.inject.weight, std=0.1)
    with torch.no_grad():
        out, loss = net(x, t, label, context, mask), net.recon[0]
        junk = torch.where(mask[..., None], context, 50.0)
        torch.testing.assert_close(net(x, t, label, junk, mask), out, atol=1e-5, rtol=0)
        torch.testing.assert_close(net.recon[0], loss, atol=1e-5, rtol=0)


def test_feature_variance_leaves_padding_out() -> None:
    encoded = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(feature_variance(encoded), encoded.var(correction=0))
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])[:, None, None]
    mean = (encoded[0].mean() + encoded[1, :2].mean()) / 2
    by_hand = ((encoded[0] - mean).square().mean() + (encoded[1, :2] - mean).square().mean()) / 2
    torch.testing.assert_close(feature_variance(encoded, mask), by_hand)


def test_the_log_shows_prototypes_that_say_nothing_and_features_that_collapse() -> None:
    net, (x, t, label, context, mask) = network("paper"), inputs()
    method = Method(
        VapModelParams.model_validate({**MODEL, "pcm": "paper"}),
        VapTrainParams.model_validate({**TRAIN, "alpha": 1.0}),
    )
    batch = Batch(x, Condition(label, context, mask), t, torch.zeros_like(x))

    def logs() -> dict[str, Tensor]:
        return method.loss(net, batch, Schedule("linear", 1000, 1e-4, 0.02))[1]

    nn.init.zeros_(net.pcm.cross_attn.proj.weight)  # a reconstruction that is zero everywhere
    found = logs()
    assert found["recon_share"] > 0.99
    assert found["feature_std"] > 0.1
    net.uvit.in_blocks[-1].register_forward_hook(lambda _m, _a, out: 1e-6 * out)
    assert logs()["feature_std"] < 1e-5


# ── released ────────────────────────────────────────────────────────────────────────────────────


def test_released_size_is_the_authors() -> None:
    """64,998,564 parameters in their code, which has layer norms that nothing uses."""
    uvit = authors_uvit()
    with torch.device("meta"):
        pcm = ReleasedPrototypeCondition(512, 8, 7, 512)
    total = sum(p.numel() for m in (uvit, pcm) for p in m.parameters())
    assert 0 <= 64_998_564 - total <= 2 * 1024


def test_released_z_is_not_zero() -> None:
    net, given = network("released"), inputs()
    for layer in (net.pcm.z1, net.pcm.z2):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not torch.equal(net(*given), net.uvit(*given))


def test_released_recon_loss_reaches_the_encoder() -> None:
    net = network("released")
    net(*inputs())
    net.recon[0].backward()
    assert touched(net) == {"pcm", "uvit"}
    assert touched(net.pcm) == {"prototypes", "q", "k", "v"}
    assert {"in_blocks", "mid_block"} <= touched(net.uvit)
    assert "out_blocks" not in touched(net.uvit)


def test_released_equations_by_hand() -> None:
    pcm, (encoded, hidden) = block(ReleasedPrototypeCondition), features()
    label = torch.tensor([2, 0])
    p = pcm.prototypes.weight[label].reshape(2, 3, 32)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (f.reshape(2, -1, 4, 8) for f in (q, k, v))
        weights = (torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(8)).softmax(-1)
        return torch.einsum("bhlm,bmhd->blhd", weights, v).reshape(2, -1, 32)

    q = pcm.q(hidden)
    loss = 0.5 * (attend(q, pcm.k(p), pcm.v(p)) - q).square().mean()
    a = pcm.cross_attn
    x = hidden + pcm.z1(a.proj(attend(a.q(hidden), a.k(p), a.v(p))))
    x = x + pcm.z2(pcm.mlp(pcm.norm(x)))
    out, found = pcm(encoded, hidden, label)
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(out, x)


# ── both ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pcm", ["paper", "released"])
def test_pcm_stands_between_the_middle_and_the_output_blocks(pcm: str) -> None:
    net = network(pcm)
    seen: dict[str, Tensor] = {}
    net.uvit.in_blocks[-1].register_forward_hook(lambda _m, _a, out: seen.update(encoded=out))
    net.uvit.mid_block.register_forward_hook(lambda _m, _a, out: seen.update(mid=out))
    net.pcm.register_forward_hook(lambda _m, args, out: seen.update(args=args, out=out[0]))
    net.uvit.out_blocks[0].register_forward_pre_hook(lambda _m, args: seen.update(next=args[0]))
    net(*inputs())
    assert seen["args"][0] is seen["encoded"]
    assert seen["args"][1] is seen["mid"]
    assert seen["next"] is seen["out"]
    assert seen["out"].shape[1] == 2 + 5 + 16  # all tokens: time, label, context, patches


def test_loss_is_denoising_plus_alpha_recon() -> None:
    x0, t, label, context, mask = inputs()
    batch = Batch(x0, Condition(label, context, mask), t, torch.randn_like(x0))
    schedule = Schedule("scaled_linear", 1000, 0.00085, 0.012)
    net = network("paper")
    model = VapModelParams.model_validate({**MODEL, "pcm": "paper"})
    for alpha in (0.0, 2.5):
        train = VapTrainParams.model_validate({**TRAIN, "alpha": alpha})
        loss, logs = Method(model, train).loss(net, batch, schedule)
        expected = logs["denoising_loss"] + alpha * logs["recon_loss"]
        torch.testing.assert_close(loss.detach(), expected)
        assert not any(value.requires_grad for value in logs.values())


def test_without_pcm_there_is_no_recon_loss() -> None:
    net = network("none")
    net(*inputs())
    assert net.recon is None
    with pytest.raises(ValueError, match="class could not enter"):
        network("none", label_token=False)
