"""LDM's U-Net: its published size, how the class enters it, and its saved weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.diffusion.schedule import Schedule
from vap.generators.base import Method, Shapes, load_method
from vap.generators.ldm.network import ClassEmbedder, LatentUNet, norm_groups
from vap.params import MethodParams
from vap.training.batch import Batch, Condition

MODEL: dict[str, Any] = {
    "width": 16,
    "multipliers": [1, 2],
    "res_blocks": 1,
    "attention": [1],
    "head_channels": 8,
    "context_dim": 12,
}
TRAIN = {
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
}


def tiny(size: int = 8, seed: int = 0, **changes: Any) -> LatentUNet:
    torch.manual_seed(seed)
    return LatentUNet(size=size, channels=4, num_classes=5, **{**MODEL, **changes}).eval()


def stirred(net: nn.Module) -> Any:
    """The same with random weights where it begins with zeros."""
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.1)
    return net


def method(**model: Any) -> Method[Any]:
    entry = {"model": MODEL | model, "train": TRAIN, "sample": {"guidance_scale": 1.0, "sampler": None}}
    return load_method("ldm", {"ldm": MethodParams.model_validate(entry)})


def inputs(batch: int = 3, size: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, 4, size, size, generator=generator),
        "t": torch.tensor([1, 500, 1000])[:batch],
        "label": torch.tensor([0, 4, 5])[:batch],
    }


# ── the published configuration ─────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def published() -> LatentUNet:
    """cin-ldm-vq-f8 of CompVis/latent-diffusion, with a null class, without memory for its weights."""
    with torch.device("meta"):
        return LatentUNet(
            size=32,
            channels=4,
            num_classes=1000,
            width=256,
            multipliers=[1, 2, 4],
            res_blocks=2,
            attention=[0, 1, 2],
            head_channels=32,
            context_dim=512,
        )


def test_size_of_the_published_configuration(published: LatentUNet) -> None:
    # diffusers' count, computed here; CompVis' own code was not run
    assert sum(p.numel() for p in published.unet.parameters()) == 394_984_196
    assert sum(p.numel() for p in published.classes.parameters()) == 1001 * 512


def test_heads_and_context_of_the_published_configuration(published: LatentUNet) -> None:
    levels = published.unet.down_blocks
    for level, channels in zip(levels, (256, 512, 1024), strict=True):
        assert len(level.attentions) == len(level.resnets) == 2
        for transformer in level.attentions:
            (block,) = transformer.transformer_blocks  # depth 1
            assert (block.attn2.heads, block.attn2.to_q.out_features) == (channels // 32, channels)
            assert block.attn2.to_k.in_features == 512
    assert all(len(level.attentions) == 3 for level in published.unet.up_blocks)
    assert published.unet.conv_norm_out.num_groups == 32


# ── shapes ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention": []},
        {"attention": [0, 1]},
        {"multipliers": [1], "attention": [0]},
        {"multipliers": [1, 2, 4], "attention": [2], "res_blocks": 2},
        {"width": 24},
    ],
)
def test_output_has_the_inputs_shape(size: int, changes: dict[str, Any]) -> None:
    out = stirred(tiny(size, **changes))(**inputs(size=size))
    assert out.shape == (3, 4, size, size)
    assert out.isfinite().all()
    assert out.any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 6, "multipliers": [1, 2, 4]}, "side 6 cannot be halved 2 times"),
        ({"attention": [2]}, "attention at level 2; the levels are 0 to 1"),
        ({"head_channels": 5}, "width 16 is no multiple of head_channels 5"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_channels": 5}, r"method.ldm.model: .*'width' 16 must be a multiple of 'head_channels' 5"),
        ({"attention": [2]}, r"method.ldm.model: .*'attention' names level 2 of 2"),
        ({"width": 20}, r"method.ldm.model.width: found 20"),
        ({"depth": 2}, r"method.ldm.model.depth: found an unknown key"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(VapError, match=words):
        method(**changes)


# ── conditions ──────────────────────────────────────────────────────────────────────────────────


def test_at_first_the_output_and_every_residual_branch_are_zero() -> None:
    net = tiny()
    assert not net(**inputs()).any()
    resnet = net.unet.down_blocks[0].resnets[0]
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(resnet(x, torch.randn(1, 64)), x)
    transformer = net.unet.mid_block.attentions[0]
    x = torch.randn(1, 32, 4, 4)
    assert torch.equal(transformer(x, torch.randn(1, 1, 12), return_dict=False)[0], x)


@pytest.mark.parametrize("name", ["x", "t", "label"])
@pytest.mark.parametrize("attention", [[], [0, 1]])
def test_every_input_matters(name: str, attention: list[int]) -> None:
    net, given = stirred(tiny(attention=attention)), inputs()
    other = {**given, name: given[name].flip(0)}
    assert (net(**given) - net(**other)).abs().max() > 1e-3


def test_the_class_is_a_context_of_one_token_and_the_null_class_its_last_row() -> None:
    classes = ClassEmbedder(5, 12)
    assert classes(torch.tensor([0, 5])).shape == (2, 1, 12)
    net, given = stirred(tiny()), inputs(1)
    null = {**given, "label": torch.tensor([5])}
    before = net(**null)
    assert (before - net(**given)).abs().max() > 1e-3
    with torch.no_grad():
        net.classes.embedding.weight[:5] += 1  # the classes' rows
    assert torch.equal(net(**null), before)


def test_time_is_counted_from_0() -> None:
    net, times = tiny(), []
    net.unet.time_proj.register_forward_pre_hook(lambda _m, args: times.append(args[0].tolist()))
    net(**inputs())
    assert times == [[0, 499, 999]]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    net, given = stirred(tiny()), inputs()
    alone = {k: v[1:2] for k, v in given.items()}
    torch.testing.assert_close(net(**alone), net(**given)[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("width", "groups"), [(8, 1), (32, 4), (120, 15), (128, 32), (136, 17), (192, 32), (256, 32)]
)
def test_no_norm_is_over_so_few_channels_that_it_forgets_the_time(width: int, groups: int) -> None:
    assert norm_groups(width) == groups
    assert width % groups == 0
    assert width // groups >= 4


# ── learning and saving ─────────────────────────────────────────────────────────────────────────


def test_every_weight_learns_but_the_scores_of_a_single_token() -> None:
    own = method()
    net = stirred(own.build(Shapes(size=8, channels=4, num_classes=5)).double())
    schedule = Schedule("scaled_linear", 1000, 0.00085, 0.012)
    given = inputs()
    noise = torch.randn(3, 4, 8, 8).double()
    batch = Batch(given["x"].double(), Condition(given["label"]), given["t"], noise)
    loss, logs = own.loss(net, batch, schedule)
    loss.backward()
    assert set(logs) == {"uneven_error"}
    still = {n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-13}
    # over one token softmax is 1: queries, keys and the norm before them decide nothing
    assert {n.rsplit(".", 2)[-2] for n in still} == {"to_q", "to_k", "norm2"}
    assert all(".attn2." in n or ".norm2." in n for n in still)


def test_weights_survive_safetensors(tmp_path: Path) -> None:
    net, other = stirred(tiny()), tiny(seed=1)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(other(**inputs()), net(**inputs()))
    assert {name for name, _ in net.named_parameters()} == set(net.state_dict())  # the EMA holds it all
