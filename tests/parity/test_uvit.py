"""U-ViT against the official code's facts: sizes, token order, long skips; and masking against padding."""

from __future__ import annotations

import math

import pytest
import torch
from networks import authors_uvit
from torch import Tensor, nn

from vap.generators.uvit.network import Attention, PatchEmbed, UViT, timestep_embedding


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def tiny(seed: int = 0, **changes: object) -> UViT:
    """A small text- and class-conditional network; 9 context tokens of 6 at most."""
    torch.manual_seed(seed)
    settings = {
        "size": 8,
        "channels": 3,
        "patch": 2,
        "width": 32,
        "depth": 4,
        "heads": 4,
        "num_classes": 5,
        "context_dim": 6,
        "context_tokens": 9,
    }
    return UViT(**{**settings, **changes}).eval()  # type: ignore[arg-type]


def inputs(context: int = 5, batch: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, 3, 8, 8, generator=generator),
        "t": torch.tensor([1, 500, 1000])[:batch],
        "label": torch.tensor([0, 4, 5])[:batch],
        "context": torch.randn(batch, context, 6, generator=generator),
    }


# ── size ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [
        pytest.param(512, 12, 8, 44.3, id="S"),
        pytest.param(512, 16, 8, 57.9, id="S-deep"),
        pytest.param(768, 16, 12, 130.1, id="M"),
        pytest.param(1024, 20, 16, 285.7, id="L"),
        pytest.param(1152, 28, 16, 499.7, id="H"),
    ],
)
def test_class_conditional_sizes(width: int, depth: int, heads: int, millions: float) -> None:
    with torch.device("meta"):
        net = UViT(size=32, channels=4, patch=2, width=width, depth=depth, heads=heads, num_classes=7)
    assert round(parameters(net) / 1e6, 1) == millions


def test_text_conditional_size_and_tokens() -> None:
    net = authors_uvit()
    assert round(parameters(net) / 1e6, 1) == 58.4
    assert net.pos_embed.shape[1] == 1 + 256 + 256  # time, text, patches: 513


def test_names_are_the_official_codes() -> None:
    names = set(tiny().state_dict())
    assert {
        "pos_embed",
        "patch_embed.proj.weight",
        "label_emb.weight",
        "context_embed.weight",
        "in_blocks.1.attn.qkv.weight",
        "mid_block.mlp.fc1.bias",
        "out_blocks.0.skip_linear.weight",
        "decoder_pred.weight",
        "final_layer.weight",
    } <= names
    assert "in_blocks.0.attn.qkv.bias" not in names  # qkv_bias=False
    assert "in_blocks.0.skip_linear.weight" not in names


# ── layers, by hand ─────────────────────────────────────────────────────────────────────────────


def test_the_final_convolution_begins_as_the_identity_or_as_published() -> None:
    x = torch.randn(2, 3, 8, 8)
    identity = tiny(final_init="identity").final_layer
    torch.testing.assert_close(identity(x), x)
    published = tiny(final_init="published").final_layer
    bound = (3 * 9) ** -0.5  # torch's start of a convolution: uniform, by its inputs
    assert published.weight.abs().max() <= bound
    assert published.weight.std() > bound / 2
    with pytest.raises(ValueError, match="final_init"):
        tiny(final_init="zero")


def test_the_linear_layers_begin_as_published_or_by_their_width() -> None:
    published = tiny(linear_init="published").mid_block.mlp.fc1
    assert published.weight.std().item() == pytest.approx(0.02, rel=0.1)
    xavier = tiny(linear_init="xavier").mid_block.mlp.fc1
    assert xavier.weight.std().item() == pytest.approx((2 / sum(xavier.weight.shape)) ** 0.5, rel=0.1)
    assert xavier.bias.count_nonzero() == 0


def test_timestep_embedding_is_cos_then_sin() -> None:
    found = timestep_embedding(torch.tensor([7.0]), 6)[0]
    angles = [7 * 10_000 ** (-i / 3) for i in range(3)]
    expected = torch.tensor([*map(math.cos, angles), *map(math.sin, angles)])
    torch.testing.assert_close(found, expected)


def test_attention_equals_softmax_by_hand_with_a_mask() -> None:
    torch.manual_seed(0)
    layer, x = Attention(12, 3), torch.randn(2, 7, 12)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    q, k, v = layer.qkv(x).reshape(2, 7, 3, 3, 4).unbind(2)  # (B, L, heads, d)
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(4)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    by_hand = layer.proj(torch.einsum("bhlm,bmhd->blhd", weights, v).reshape(2, 7, 12))
    torch.testing.assert_close(layer(x, mask), by_hand)


def test_patches_are_rows_first() -> None:
    torch.manual_seed(0)
    embed, x = PatchEmbed(2, 3, 4), torch.zeros(1, 3, 8, 8)
    blank = embed(x)
    x[0, :, 5, 2] = 1.0  # row 5, column 2: patch (2, 1) of a 4 x 4 grid
    changed = (embed(x) != blank).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [2 * 4 + 1]


def test_unpatchify_order_is_the_official_one() -> None:
    """einops of the official code: B (h w) (p1 p2 C) -> B C (h p1) (w p2)."""
    net = tiny()
    tokens = torch.randn(1, net.extras - 4 + net.num_patches, 12)  # 5 context tokens of 9

    class Fixed(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return tokens[:, -h.shape[1] :]

    net.decoder_pred, net.final_layer = Fixed(), nn.Identity()  # type: ignore[assignment]
    found = net(**inputs(batch=1))[0]
    patches = tokens[0, -16:]
    for c in range(3):
        for y in range(8):
            for x in range(8):
                token = patches[(y // 2) * 4 + x // 2]
                assert found[c, y, x] == token[((y % 2) * 2 + x % 2) * 3 + c]


# ── the whole network ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"patch": 1},
        {"patch": 4, "depth": 2},
        {"num_classes": 0},
        {"context_dim": None, "context_tokens": 0},
    ],
)
def test_output_has_the_inputs_shape(changes: dict[str, object]) -> None:
    net, given = tiny(**changes), inputs()
    if not net.num_classes:
        given.pop("label")
    if net.context_embed is None:
        given.pop("context")
    out = net(**given)
    assert out.shape == given["x"].shape
    assert out.isfinite().all()


@pytest.mark.parametrize("name", ["x", "t", "label", "context"])
def test_every_input_matters(name: str) -> None:
    net, given = tiny(), inputs()
    other = dict(given)
    other[name] = given[name].flip(0) if name in ("t", "label") else given[name] + 1
    assert (net(**given) - net(**other)).abs().max() > 1e-3


def test_long_skips_are_used_last_in_first_out() -> None:
    net = tiny(depth=6)
    made: list[Tensor] = []
    used: list[Tensor] = []
    for block in net.in_blocks:
        block.register_forward_hook(lambda _m, _a, out: made.append(out))
    for block in net.out_blocks:
        block.register_forward_pre_hook(lambda _m, args: used.append(args[1]))
    net(**inputs())
    assert len(made) == 3
    assert all(a is b for a, b in zip(used, reversed(made), strict=True))


def test_skip_is_concatenated_behind_the_stream() -> None:
    block = tiny().out_blocks[0]
    x, skip = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    weight, bias = block.skip_linear.weight, block.skip_linear.bias  # type: ignore[union-attr]
    merged = x @ weight[:, :32].T + skip @ weight[:, 32:].T + bias
    merged = merged + block.attn(block.norm1(merged))
    merged = merged + block.mlp(block.norm2(merged))
    torch.testing.assert_close(block(x, skip), merged)


# ── context ─────────────────────────────────────────────────────────────────────────────────────


def test_padding_changes_nothing() -> None:
    net, given = tiny(), inputs(context=5)
    real = torch.tensor([5, 2, 4])
    mask = torch.arange(5)[None] < real[:, None]
    with torch.no_grad():
        short = net(**given, mask=mask)
        junk = 100 * torch.randn(3, 9, 6)
        longer = torch.where(
            (torch.arange(9) < real[:, None])[..., None],
            nn.functional.pad(given["context"], (0, 0, 0, 4)),
            junk,
        )
        padded = {**given, "context": longer}
        torch.testing.assert_close(
            net(**padded, mask=torch.arange(9) < real[:, None]), short, atol=1e-5, rtol=0
        )
        assert (net(**padded) - short).abs().max() > 1e-3  # the mask is what does it


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, given = tiny(), inputs(context=5)
    mask = torch.arange(5)[None] < torch.tensor([[5], [2], [4]])
    with torch.no_grad():
        together = net(**given, mask=mask)[1:2]
        alone = {k: v[1:2] for k, v in given.items()}
        alone["context"] = alone["context"][:, :2]
        torch.testing.assert_close(net(**alone, mask=mask[1:2, :2]), together, atol=1e-5, rtol=0)


def test_order_of_context_tokens_counts_through_their_positions_alone() -> None:
    net, given = tiny(), inputs(context=5)
    swapped = {**given, "context": given["context"][:, [3, 1, 4, 0, 2]]}
    with torch.no_grad():
        assert (net(**given) - net(**swapped)).abs().max() > 1e-4
        net.pos_embed[:, 2 : 2 + 9] = 0  # behind time and label
        torch.testing.assert_close(net(**given), net(**swapped), atol=1e-5, rtol=0)


def test_too_many_context_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"10 context tokens.*for 9"):
        tiny()(**inputs(context=10))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch": 3}, "8 cannot be cut into patches of side 3"),
        ({"depth": 3}, "depth 3 is odd"),
        ({"heads": 5}, "32 is no multiple of heads 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)
