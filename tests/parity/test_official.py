"""Weights of the official U-ViT code: the same names, shapes and token order; what is taken, what refused."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.generators.base import Shapes
from vap.generators.official import read, start_from, write
from vap.generators.uvit.network import UViT
from vap.generators.vap.method import VapModelParams, VapNet


def uvit(seed: int = 0, **changes: object) -> UViT:
    torch.manual_seed(seed)
    settings = {"size": 8, "channels": 4, "patch": 2, "width": 16, "depth": 4, "heads": 2, "num_classes": 5}
    return UViT(**{**settings, **changes}).eval()  # type: ignore[arg-type]


def vap_net(seed: int = 0, **changes: int) -> VapNet:
    torch.manual_seed(seed)
    params: dict[str, object] = {
        "width": 16,
        "depth": 4,
        "heads": 2,
        "patch": 2,
        "mlp_ratio": 4.0,
        "prototype_tokens": 2,
    }
    params["final_init"] = params["linear_init"] = "published"
    shapes = Shapes(
        **{"size": 8, "channels": 4, "num_classes": 5, "context_dim": 6, "context_tokens": 7, **changes}
    )
    return VapNet(
        VapModelParams.model_validate({**params, "pcm": "paper", "label_token": True}), shapes
    ).eval()


def official_class_forward(w: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor, heads: int) -> Tensor:
    """The published class-conditional network, written out from its description: label, time, patches."""
    D = w["pos_embed"].shape[-1]
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(D // 2) / (D // 2))
    time = torch.cat([angles.cos(), angles.sin()], -1)[:, None]
    patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=2)
    h = torch.cat([w["label_emb.weight"][y][:, None], time, patches.flatten(2).mT], 1) + w["pos_embed"]

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"])

    def block(name: str, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            x = linear(f"{name}.skip_linear", torch.cat([x, skip], -1))
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        q, k, v = (f.unflatten(-1, (heads, -1)).transpose(1, 2) for f in qkv.chunk(3, -1))
        attended = (q @ k.mT / math.sqrt(D // heads)).softmax(-1) @ v
        x = x + linear(f"{name}.attn.proj", attended.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        return x + linear(f"{name}.mlp.fc2", hidden)

    skips = []
    for i in range(2):
        h = block(f"in_blocks.{i}", h)
        skips.append(h)
    h = block("mid_block", h)
    for i in range(2):
        h = block(f"out_blocks.{i}", h, skips.pop())
    h = linear("decoder_pred", norm("norm", h))[:, 2:]
    h = h.reshape(-1, 4, 4, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
    return F.conv2d(h, w["final_layer.weight"], w["final_layer.bias"], padding=1)


def given() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3, 900]), torch.tensor([1, 5])


def test_official_weights_give_the_official_networks_output(tmp_path: Path) -> None:
    theirs = {name: torch.randn_like(value) * 0.2 for name, value in uvit().state_dict().items()}
    torch.save(theirs, tmp_path / "imagenet.pth")
    net = uvit(seed=9)
    start_from(net, tmp_path / "imagenet.pth")
    x, t, y = given()
    torch.testing.assert_close(net(x, t, y), official_class_forward(theirs, x, t, y, 2), atol=1e-4, rtol=1e-4)


def test_a_file_without_the_last_convolution_gives_its_own_function(tmp_path: Path) -> None:
    """U-ViT-H has conv=False: what decoder_pred gives is the noise."""
    theirs = uvit()
    state = {name: value for name, value in theirs.state_dict().items() if "final_layer" not in name}
    save_file(state, tmp_path / "huge.safetensors")
    theirs.final_layer = nn.Identity()  # type: ignore[assignment]
    ours = uvit(1)
    start_from(ours, tmp_path / "huge.safetensors")
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 4])
    with torch.inference_mode():
        assert torch.equal(ours(x, t, y), theirs(x, t, y))


@pytest.mark.parametrize("name", ["uvit.pth", "uvit.safetensors"])
def test_what_is_written_is_what_is_read(tmp_path: Path, name: str) -> None:
    net = uvit()
    write(net, tmp_path / name)
    found = read(tmp_path / name)
    assert found.keys() == net.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in net.state_dict().items())


def test_other_classes_keep_their_fresh_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(uvit(num_classes=1000), tmp_path / "w.pth")
    net = uvit(seed=9)
    fresh = net.label_emb.weight.clone()
    start_from(net, tmp_path / "w.pth")
    assert torch.equal(net.label_emb.weight, fresh)
    assert torch.equal(net.mid_block.mlp.fc1.weight, uvit(num_classes=1000).mid_block.mlp.fc1.weight)
    said = capsys.readouterr().err
    assert "left as initialised: label_emb.weight" in said
    assert said.count("\n") == 1


def test_vap_starts_from_class_conditional_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = uvit()
    write(theirs, tmp_path / "w.pth")
    net = vap_net(seed=9)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start_from(net, tmp_path / "w.pth")
    positions = net.uvit.pos_embed[0]
    assert torch.equal(positions[:2], theirs.pos_embed[0, :2])  # label, time
    assert torch.equal(positions[2:9], before["uvit.pos_embed"][0, 2:9])  # text: fresh
    assert torch.equal(positions[9:], theirs.pos_embed[0, 2:])  # patches
    assert torch.equal(net.uvit.label_emb.weight, theirs.label_emb.weight)
    for name, value in net.state_dict().items():
        if name.startswith(("pcm.", "uvit.context_embed")):
            assert torch.equal(value, before[name])
    assert "pcm.prototypes.weight" in capsys.readouterr().err


def test_vap_starts_from_text_conditional_weights(tmp_path: Path) -> None:
    theirs = uvit(num_classes=0, context_dim=6, context_tokens=7)
    write(theirs, tmp_path / "w.pth")
    net = vap_net(seed=9)
    before = net.uvit.pos_embed[0].clone()
    start_from(net, tmp_path / "w.pth")
    assert torch.equal(net.uvit.context_embed.weight, theirs.context_embed.weight)
    assert torch.equal(net.uvit.pos_embed[0, 1:9], theirs.pos_embed[0, :8])  # time, seven texts
    assert torch.equal(net.uvit.pos_embed[0, 0], before[0])  # label
    assert torch.equal(net.uvit.pos_embed[0, 9:], theirs.pos_embed[0, 8:])


@pytest.mark.parametrize(("texts", "size"), [(77, 16), (256, 16), (7, 16), (77, 8)])
def test_text_and_patches_of_a_file_are_told_apart(tmp_path: Path, texts: int, size: int) -> None:
    theirs = uvit(num_classes=0, context_dim=6, context_tokens=texts, size=size)
    with torch.no_grad():
        theirs.pos_embed[:, 1 : 1 + texts] = 1
        theirs.pos_embed[:, 1 + texts :] = 2
    write(theirs, tmp_path / "w.pth")
    net = vap_net(seed=9)
    start_from(net, tmp_path / "w.pth")
    assert (net.uvit.pos_embed[0, 2:9] == 1).all()
    torch.testing.assert_close(net.uvit.pos_embed[0, 9:], torch.full((16, 16), 2.0))


def test_positions_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    write(uvit(num_classes=0, context_dim=6, context_tokens=5), tmp_path / "w.pth")
    with pytest.raises(VapError, match=r"pos_embed: found \(1, 22, 16\)"):
        start_from(vap_net(), tmp_path / "w.pth")


def test_vap_goes_on_from_its_own_weights(tmp_path: Path) -> None:
    first = vap_net()
    save_file(first.state_dict(), tmp_path / "model.safetensors")
    net = vap_net(seed=9)
    start_from(net, tmp_path / "model.safetensors")
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in net.state_dict().items())


def test_positions_are_resampled_for_other_latents(tmp_path: Path) -> None:
    theirs = uvit(size=16)
    ramp = torch.linspace(0, 1, 8)[:, None].expand(8, 8).reshape(1, 64, 1)
    with torch.no_grad():
        theirs.pos_embed[:, 2:] = ramp
    write(theirs, tmp_path / "w.pth")
    net = uvit(seed=9)
    start_from(net, tmp_path / "w.pth")
    grid = net.pos_embed[0, 2:].reshape(4, 4, 16)
    assert torch.equal(net.pos_embed[0, :2], theirs.pos_embed[0, :2])
    assert (grid.diff(dim=0) > 0.1).all()  # the ramp goes down the rows ...
    assert grid.std(dim=1).max() < 1e-5  # ... and is the same in all columns


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda f: write(uvit(width=32), f), "a U-ViT of width 16 and depth 4", id="width"),
        pytest.param(lambda f: write(uvit(depth=2), f), "a U-ViT of width 16 and depth 4", id="shallow"),
        pytest.param(lambda f: write(uvit(depth=6), f), "more unknown", id="deep"),
        pytest.param(lambda f: write(uvit(size=16, patch=4), f), "patch_embed.proj.weight", id="patch"),
        pytest.param(
            lambda f: torch.save({"weight": nn.Linear(2, 2)}, f), "which could run code", id="pickle"
        ),
        pytest.param(lambda f: torch.save({"step": 3}, f), "a dict of other things", id="no tensors"),
        pytest.param(lambda f: f.write_bytes(b"\x80\x04junk"), "no readable weights", id="junk"),
        pytest.param(lambda f: f.write_bytes(b""), "no readable weights", id="empty"),
        pytest.param(lambda f: None, "no such file", id="absent"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    file = tmp_path / "w.pth"
    make(file)
    with pytest.raises(VapError) as caught:
        start_from(uvit(), file)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "sprung"),)  # type: ignore[return-value]

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(VapError):
        start_from(uvit(), tmp_path / "w.pth")
    assert not (tmp_path / "sprung").exists()


def test_prototypes_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(VapError, match="found a network with prototypes; expected a U-ViT or a DiT"):
        write(vap_net(), tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
