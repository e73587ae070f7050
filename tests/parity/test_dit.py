"""DiT against the published facts: sizes, names, positions, adaLN-Zero, the loss with a learned variance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.diffusion.loss import denoising_errors
from vap.diffusion.schedule import Schedule
from vap.generators.base import Method, Shapes, load_method
from vap.generators.dit.method import variational_bound
from vap.generators.dit.network import Block, DiT, LabelEmbedder, TimeEmbedder, sincos_positions
from vap.generators.official import write
from vap.params import MethodParams
from vap.training.batch import Batch, Condition

SCHEDULE = Schedule("scaled_linear", 1000, 0.00085, 0.012)
SHAPES = Shapes(size=8, channels=4, num_classes=5)


def tiny(seed: int = 0, **changes: Any) -> DiT:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "size": 8,
        "channels": 4,
        "patch": 2,
        "width": 32,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 4.0,
        "num_classes": 5,
        "learn_sigma": False,
    }
    return DiT(**{**settings, **changes}).eval()


def stirred(net: DiT) -> DiT:
    """The same with random weights where it begins with zeros."""
    for p in net.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.2)
    return net


def method(start_from: Path | None = None, **model: Any) -> Method[Any]:
    settings = {"width": 32, "depth": 2, "heads": 4, "patch": 2, "mlp_ratio": 4.0, "learn_sigma": False}
    train = {
        "steps": 1,
        "batch_size": 1,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "betas": [0.9, 0.99],
        "warmup_steps": 0,
        "ema_decay": 0.9,
        "condition_dropout": 0.1,
        "grad_clip": None,
        "predicts": "noise",
        "start_from": None if start_from is None else str(start_from),
    }
    entry = {"model": settings | model, "train": train, "sample": {"guidance_scale": 1.0, "sampler": None}}
    return load_method("dit", {"dit": MethodParams.model_validate(entry)})


def inputs(batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, 4, 8, 8, generator=generator),
        "t": torch.tensor([1, 500, 1000])[:batch],
        "label": torch.tensor([0, 4, 5])[:batch],
    }


# ── size and names ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [
        pytest.param(384, 12, 6, 32.6, id="S"),
        pytest.param(768, 12, 12, 129.7, id="B"),
        pytest.param(1024, 24, 16, 457.1, id="L"),
        pytest.param(1152, 28, 16, 674.0, id="XL"),
    ],
)
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_sizes_at_patch_2_and_7_classes(
    width: int, depth: int, heads: int, millions: float, learn_sigma: bool
) -> None:
    with torch.device("meta"):
        net = tiny(size=32, width=width, depth=depth, heads=heads, num_classes=7, learn_sigma=learn_sigma)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


def test_names_are_the_official_codes() -> None:
    block = {
        f"blocks.{i}.{layer}.{part}"
        for i in range(2)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")
        for part in ("weight", "bias")
    }
    outside = {
        f"{layer}.{part}"
        for layer in (
            "x_embedder.proj",
            "t_embedder.mlp.0",
            "t_embedder.mlp.2",
            "final_layer.linear",
            "final_layer.adaLN_modulation.1",
        )
        for part in ("weight", "bias")
    }
    names = block | outside | {"pos_embed", "y_embedder.embedding_table.weight"}
    assert set(tiny().state_dict()) == names
    assert {n for n, p in tiny().named_parameters() if not p.requires_grad} == {"pos_embed"}


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
@pytest.mark.parametrize("learn_sigma", [False, True])
def test_output_has_the_inputs_shape_or_twice_its_channels(patch: int, learn_sigma: bool) -> None:
    out = stirred(tiny(patch=patch, learn_sigma=learn_sigma))(**inputs())
    assert out.shape == (3, 8 if learn_sigma else 4, 8, 8)
    assert out.isfinite().all()


# ── layers, by hand ─────────────────────────────────────────────────────────────────────────────


def test_positions_are_the_column_then_the_row() -> None:
    found = sincos_positions(3, 8)
    assert found.shape == (1, 9, 8)
    for row in range(3):
        for column in range(3):
            expected: list[float] = []
            for place in (column, row):
                angles = [place * 10_000 ** (-i / 2) for i in range(2)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            torch.testing.assert_close(found[0, 3 * row + column], torch.tensor(expected))


def test_time_is_counted_from_0_and_embedded_in_256_frequencies() -> None:
    torch.manual_seed(0)
    embedder = TimeEmbedder(6)
    angles = [41 * 10_000 ** (-i / 128) for i in range(128)]
    wave = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
    first, _, second = embedder.mlp
    torch.testing.assert_close(
        embedder(torch.tensor([41]))[0], second(nn.functional.silu(first(wave))), atol=1e-5, rtol=1e-4
    )

    net, times = tiny(), []
    net.t_embedder.register_forward_pre_hook(lambda _m, args: times.append(args[0].tolist()))
    net(**inputs())
    assert times == [[0, 499, 999]]


def test_block_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    block, x, c = Block(8, 2, 4.0), torch.randn(2, 5, 8), torch.randn(2, 8)
    for p in block.parameters():
        nn.init.normal_(p, std=0.3)

    def norm(v: Tensor) -> Tensor:
        return (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    linear = block.adaLN_modulation[1]
    shift1, scale1, gate1, shift2, scale2, gate2 = linear(c * c.sigmoid())[:, None].split(8, dim=-1)
    q, k, v = block.attn.qkv(norm(x) * (1 + scale1) + shift1).reshape(2, 5, 3, 2, 4).unbind(2)
    weights = (torch.einsum("blhd,bmhd->bhlm", q, k) / 2).softmax(-1)
    h = x + gate1 * block.attn.proj(torch.einsum("bhlm,bmhd->blhd", weights, v).reshape(2, 5, 8))
    inner = block.mlp.fc1(norm(h) * (1 + scale2) + shift2)
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    torch.testing.assert_close(block(x, c), h + gate2 * block.mlp.fc2(gelu), atol=1e-5, rtol=1e-4)


def test_unpatchify_order_is_the_official_one() -> None:
    """Of a token: row in the patch, column in the patch, channel."""
    net = tiny(learn_sigma=True)
    tokens = torch.randn(1, 16, 2 * 2 * 8)

    class Fixed(nn.Module):
        def forward(self, _x: Tensor, _c: Tensor) -> Tensor:
            return tokens

    net.final_layer = Fixed()  # type: ignore[assignment]
    found = net(**inputs(1))[0]
    for c in range(8):
        for y in range(8):
            for x in range(8):
                place = ((y % 2) * 2 + x % 2) * 8 + c
                assert found[c, y, x] == tokens[0, (y // 2) * 4 + x // 2, place]


# ── initial weights ─────────────────────────────────────────────────────────────────────────────


def test_at_first_the_blocks_are_the_identity_and_the_output_is_zero() -> None:
    net = tiny()
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    for block in net.blocks:
        assert torch.equal(block(x, c), x)
    assert not net(**inputs()).any()


def test_initial_weights_are_the_published_ones() -> None:
    net = tiny(width=128, num_classes=50)
    qkv = net.blocks[0].attn.qkv  # type: ignore[union-attr]
    limit = math.sqrt(6 / (128 + 3 * 128))  # Glorot, uniform
    assert limit * 0.98 < float(qkv.weight.detach().abs().max()) <= limit  # type: ignore[union-attr]
    assert not qkv.bias.any()  # type: ignore[union-attr]
    patches = net.x_embedder.proj.weight.detach()
    assert 0.95 * math.sqrt(6 / (16 + 128)) < float(patches.abs().max()) <= math.sqrt(6 / (16 + 128))
    for weight in (net.y_embedder.embedding_table.weight, net.t_embedder.mlp[0].weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)  # type: ignore[union-attr]


# ── conditions ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["x", "t", "label"])
def test_every_input_matters(name: str) -> None:
    net, given = stirred(tiny()), inputs()
    other = {**given, name: given[name].flip(0)}
    assert (net(**given) - net(**other)).abs().max() > 1e-3


def test_a_dropped_label_is_the_row_behind_the_classes() -> None:
    table = LabelEmbedder(5, 8)
    assert table.embedding_table.weight.shape == (6, 8)
    net, given = stirred(tiny()), inputs(1)
    null = net(**{**given, "label": torch.tensor([5])})
    assert (null - net(**given)).abs().max() > 1e-3
    with torch.no_grad():
        net.y_embedder.embedding_table.weight[:5] += 1  # the classes' rows
    assert torch.equal(net(**{**given, "label": torch.tensor([5])}), null)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, given = stirred(tiny()), inputs()
    alone = {k: v[1:2] for k, v in given.items()}
    torch.testing.assert_close(net(**alone), net(**given)[1:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_the_sampler_gets_the_noise_and_behind_it_a_learned_variance(learn_sigma: bool) -> None:
    own = method(learn_sigma=learn_sigma)
    net, given = stirred(own.build(SHAPES)), inputs()  # type: ignore[arg-type]
    null = torch.full((3,), 5)
    predict = own.predictor(net, Condition(given["label"]), Condition(null), SCHEDULE)
    assert own.learns_variance == learn_sigma
    assert net(**given).shape[1] == (8 if learn_sigma else 4)
    assert torch.equal(predict(given["x"], given["t"], False), net(**given))
    assert torch.equal(predict(given["x"], given["t"], True), net(given["x"], given["t"], null))


# ── the loss with a learned variance ────────────────────────────────────────────────────────────


def batch(t: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, len(t), 4, 8, 8, generator=generator)
    return Batch(x0, Condition(torch.arange(len(t)) % 6), torch.tensor(t), noise)


def bound_by_hand(
    noise_pred: Tensor, place: Tensor, x0: Tensor, t: int, noise: Tensor, schedule: Schedule
) -> float:
    """Bits per element of one image, in float64, by way of the two means (Nichol and Dhariwal, 2021)."""
    bar, before = float(schedule.alpha_bar[t]), float(schedule.alpha_bar[t - 1])
    beta = 1 - bar / before
    noise_pred, place, x0, noise = (v.double() for v in (noise_pred, place, x0, noise))
    x_t = math.sqrt(bar) * x0 + math.sqrt(1 - bar) * noise

    def posterior_mean(data: Tensor) -> Tensor:
        a = math.sqrt(before) * beta / (1 - bar)
        b = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        return a * data + b * x_t

    x0_pred = (x_t - math.sqrt(1 - bar) * noise_pred) / math.sqrt(bar)
    mean, true_mean = posterior_mean(x0_pred), posterior_mean(x0)
    if t == 1:
        beta2 = 1 - float(schedule.alpha_bar[2] / schedule.alpha_bar[1])
        true_variance = beta2 * beta / (1 - float(schedule.alpha_bar[2]))
    else:
        true_variance = beta * (1 - before) / (1 - bar)
    f = (place + 1) / 2
    variance = beta**f * true_variance ** (1 - f)
    if t > 1:
        nats = (variance / true_variance).log() / 2 - 0.5
        nats = nats + (true_variance + (true_mean - mean) ** 2) / (2 * variance)
    else:
        normal = torch.distributions.Normal(mean, variance.sqrt())
        upper = torch.where(x0 > 0.999, torch.inf, x0 + 1 / 255)
        lower = torch.where(x0 < -0.999, -torch.inf, x0 - 1 / 255)
        nats = -(normal.cdf(upper) - normal.cdf(lower)).clamp_min(1e-12).log()
    return float(nats.mean()) / math.log(2)


@pytest.mark.parametrize("t", [1, 2, 17, 500, 1000])
def test_variational_bound_is_the_published_formula_in_float64(t: int) -> None:
    b = batch([t, t])
    generator = torch.Generator().manual_seed(3)
    near = b.noise + 0.01 * torch.randn(b.noise.shape, generator=generator)  # of t = 1, no bin is empty
    place = torch.randn(b.x0.shape, generator=generator)
    found = variational_bound(near, place, b.x0, b.t, b.noise, SCHEDULE)
    expected = [bound_by_hand(near[i], place[i], b.x0[i], t, b.noise[i], SCHEDULE) for i in range(2)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_the_bound_is_weighed_by_the_number_of_steps() -> None:
    """0.001 times a sum over T steps: of fewer steps, each counts for less."""
    short = Schedule("linear", 100, 1e-3, 0.2)
    b = batch([30])
    found = variational_bound(b.noise + 0.1, 0 * b.x0, b.x0, b.t, b.noise, short)
    by_hand = bound_by_hand(b.noise[0] + 0.1, 0 * b.x0[0], b.x0[0], 30, b.noise[0], short)
    assert float(found) == pytest.approx(0.1 * by_hand, rel=1e-4)


def test_the_true_posterior_has_no_divergence() -> None:
    b = batch([2, 300, 1000])
    found = variational_bound(b.noise, -torch.ones_like(b.x0), b.x0, b.t, b.noise, SCHEDULE)
    torch.testing.assert_close(found, torch.zeros(3), atol=1e-6, rtol=0)


def test_hybrid_loss_is_both_parts_and_logs_them() -> None:
    own = method(learn_sigma=True)
    net = stirred(own.build(SHAPES))  # type: ignore[arg-type]
    b = batch([1, 40, 700])
    loss, logs = own.loss(net, b, SCHEDULE)
    noise_pred, place = net(SCHEDULE.add_noise(b.x0, b.noise, b.t), b.t, b.condition.label).chunk(2, 1)
    simple = (noise_pred - b.noise).square().mean()
    bound = variational_bound(noise_pred, place, b.x0, b.t, b.noise, SCHEDULE).mean()
    torch.testing.assert_close(loss, simple + bound)
    torch.testing.assert_close(logs["denoising_loss"], simple.detach())
    torch.testing.assert_close(logs["vlb"], bound.detach())


def test_the_bound_does_not_move_the_mean() -> None:
    """The gradient of the noise's half of the last layer is that of L_simple alone."""
    own, b, gradients = method(learn_sigma=True), batch([5, 40, 700]), []
    for part in ("hybrid", "simple"):
        net = stirred(tiny(learn_sigma=True))
        if part == "hybrid":
            loss = own.loss(net, b, SCHEDULE)[0]
        else:
            loss = denoising_errors(
                lambda x, t: net(x, t, b.condition.label)[:, :4],  # noqa: B023
                SCHEDULE,
                b.x0,
                b.t,
                b.noise,
            ).mean()
        loss.backward()
        grad = net.final_layer.linear.weight.grad
        assert grad is not None
        gradients.append(grad.reshape(4, 2, 4, 32))  # (p·p, noise or variance, C, D)
    hybrid, simple = gradients
    torch.testing.assert_close(hybrid[:, 0], simple[:, 0])
    assert hybrid[:, 1].abs().max() > 0
    assert not simple[:, 1].any()


@pytest.mark.parametrize("learn_sigma", [False, True])
def test_every_weight_learns(learn_sigma: bool) -> None:
    own = method(learn_sigma=learn_sigma)
    net = stirred(own.build(SHAPES))  # type: ignore[arg-type]
    own.loss(net, batch([1, 3, 40, 500, 700, 1000]), SCHEDULE)[0].backward()
    still = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == {"pos_embed"}


# ── weights of others ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["dit.safetensors", "dit.pt"])
def test_written_weights_are_taken_over(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = stirred(tiny())
    write(theirs, tmp_path / name)
    own = method(tmp_path / name)
    net = own.build(SHAPES)
    assert own.start_from == tmp_path / name
    own.take_over(net, tmp_path / name)
    assert torch.equal(net(**inputs()), theirs(**inputs()))
    assert "tensors taken" in capsys.readouterr().err


def test_other_classes_and_another_size_keep_what_the_file_cannot_give(tmp_path: Path) -> None:
    write(stirred(tiny(num_classes=1000)), tmp_path / "dit.pt")
    own = method(tmp_path / "dit.pt")
    net = own.build(Shapes(size=12, channels=4, num_classes=5))
    assert isinstance(net, DiT)
    labels = net.y_embedder.embedding_table.weight.detach().clone()
    own.take_over(net, tmp_path / "dit.pt")
    assert torch.equal(net.y_embedder.embedding_table.weight, labels)
    assert torch.equal(net.pos_embed, sincos_positions(6, 32))
    assert net(torch.randn(1, 4, 12, 12), torch.tensor([3]), torch.tensor([0])).any()


def test_a_network_without_variance_takes_the_noise_of_one_with(tmp_path: Path) -> None:
    theirs = stirred(tiny(learn_sigma=True))
    write(theirs, tmp_path / "dit.pt")
    own = method(tmp_path / "dit.pt")
    net = own.build(SHAPES)
    own.take_over(net, tmp_path / "dit.pt")
    torch.testing.assert_close(net(**inputs()), theirs(**inputs())[:, :4])


def test_weights_of_another_width_or_network_are_one_line(tmp_path: Path) -> None:
    write(tiny(width=64), tmp_path / "wide.pt")
    with pytest.raises(VapError, match=r"expected \(.*a DiT of width 32 and depth 2"):
        method().take_over(tiny(), tmp_path / "wide.pt")
    torch.save({"pos_emb": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(VapError, match="a tensor pos_emb and 0 more unknown"):
        method().take_over(tiny(), tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 3}, "8 cannot be cut into patches of side 3"),
        ({"heads": 5}, "32 is no multiple of heads 5"),
        ({"width": 30, "heads": 5}, "width 30 is no multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)
