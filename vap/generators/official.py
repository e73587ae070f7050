"""Weights of the official codes (baofff/U-ViT, facebookresearch/DiT), to and from ours.

`UViT` and `DiT` have the official names, shapes and token order, so a state dict of the same configuration is
the same. `read` and `take` serve every network; what is particular to U-ViT is here too.
U-ViT's class-conditional checkpoints count the null class among theirs: 1,001 rows are 1,000 classes here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.common.artifacts import atomic, write_safetensors
from vap.common.errors import VapError, tell
from vap.common.weights import read_tensors

if TYPE_CHECKING:  # its package imports this module
    from vap.generators.uvit.network import UViT

PUBLISHED_TEXTS = (77, 256)  # tokens: of CLIP in the official code, of BiomedCLIP in the authors'
FRESH = ("label_emb.", "context_embed.")  # may be absent or of another size: other classes, another encoder


def read(path: Path, network: str = "U-ViT") -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint; nothing but tensors is unpickled.

    Args:
        network: whose weights are expected, for the error message.

    Raises:
        VapError: the file is absent, damaged, or holds other things than tensors by name.
    """
    return read_tensors(path, f"{network} weights, .safetensors or an official .pth", "correct the path")


def write(net: nn.Module, path: Path) -> None:
    """Write a U-ViT's or a DiT's weights for the official code: .safetensors, or else a torch checkpoint.

    Raises:
        VapError: the network has parts that the official code lacks.
    """
    if not getattr(net, "official_names", False):
        what = "a network with prototypes" if hasattr(net, "pcm") else f"a {type(net).__name__}"
        raise VapError(path, what, "a U-ViT or a DiT, which have official codes", "export uvit or dit")
    with atomic(path) as part:
        if path.suffix == ".safetensors":
            write_safetensors(part, net.state_dict())
        else:
            torch.save({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, part)


def start_from(net: nn.Module, path: Path) -> None:
    """Load weights into a U-ViT, or into a network that has one under `uvit`.

    Embeddings of other classes or of another text encoder, and parts that the file lacks (the prototypes),
    stay as they are; positions are resampled where the latents have another size.
    One line says what was taken.

    Raises:
        VapError: the file does not hold a U-ViT of this width and depth.
    """
    found = read(path)
    if not any(name.startswith("uvit.") for name in found):
        prefix = "uvit." if hasattr(net, "uvit") else ""
        found = {prefix + name: value for name, value in found.items()}
    uvit: UViT = getattr(net, "uvit", net)  # type: ignore[arg-type]
    place = "" if uvit is net else "uvit."
    if f"{place}decoder_pred.weight" in found and f"{place}final_layer.weight" not in found:
        last = uvit.final_layer  # U-ViT-H has none (conv=False): the identity is the same function
        found[f"{place}final_layer.weight"] = nn.init.dirac_(torch.empty_like(last.weight)).detach()
        found[f"{place}final_layer.bias"] = torch.zeros(uvit.channels)
    if f"{place}pos_embed" in found:
        found[f"{place}pos_embed"] = _positions(found, place, uvit, path)

    def optional(name: str) -> bool:
        return name.startswith("pcm.") or name.removeprefix(place).startswith(FRESH)

    expected = f"a U-ViT of width {uvit.width} and depth {2 * len(uvit.in_blocks)}"
    fix = "set model.width, depth and patch to the file's"
    take(net, found, path, optional, expected, fix)


def take(
    net: nn.Module,
    found: Mapping[str, Tensor],
    path: Path,
    optional: Callable[[str], bool],
    expected: str,
    fix: str,
) -> None:
    """Load into `net` what fits of the tensors `found` in `path`; one line says what was taken.

    Args:
        optional: whether a tensor of this name may be unknown, absent or of another shape.
        expected, fix: of the error message.

    Raises:
        VapError: a tensor that is not optional is unknown, absent or of another shape.
    """
    whole = net.state_dict()
    if unknown := [name for name in found if name not in whole and not optional(name)]:
        raise VapError(path, f"a tensor {unknown[0]} and {len(unknown) - 1} more unknown", expected, fix)
    taken = {n: v for n, v in found.items() if n in whole and v.shape == whole[n].shape}
    missing = [name for name in whole if name not in taken]
    if wrong := [name for name in missing if not optional(name)]:
        what = f"{tuple(found[wrong[0]].shape)}" if wrong[0] in found else "no tensor"
        raise VapError(f"{path}: {wrong[0]}", what, f"{tuple(whole[wrong[0]].shape)}: {expected}", fix)
    net.load_state_dict(taken, strict=False)
    fresh = f"; left as initialised: {', '.join(missing)}" if missing else ""
    tell(f"{path}: {len(taken)} of {len(whole)} tensors taken{fresh}")


def _positions(found: Mapping[str, Tensor], place: str, net: UViT, path: Path) -> Tensor:
    """The file's positions for this network's tokens: [label], time, [context …], patches."""
    theirs, ours = found[f"{place}pos_embed"].float(), net.pos_embed.detach().clone()
    has_label, has_text = (f"{place}{name}.weight" in found for name in ("label_emb", "context_embed"))
    fixed = has_label + 1
    rest = theirs.shape[1] - fixed
    # how many of the rest are text is not written in a file: none, as many as here, or as published
    texts = (net.extras - 1 - (net.label_emb is not None), *PUBLISHED_TEXTS) if has_text else (0,)
    patches = next((rest - n for n in texts if rest > n and math.isqrt(rest - n) ** 2 == rest - n), None)
    if theirs.shape[-1] != net.width or patches is None:
        return theirs  # its shape is reported with the others
    side = math.isqrt(patches)
    text = theirs[:, fixed : theirs.shape[1] - patches]
    grid = theirs[:, theirs.shape[1] - patches :].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    new = round(math.sqrt(net.num_patches))
    if new != side:
        grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=new < side)
    ours[:, net.extras :] = grid.permute(0, 2, 3, 1).reshape(1, new**2, -1)
    own_fixed = 1 + (net.label_emb is not None)
    ours[:, own_fixed - 1] = theirs[:, fixed - 1]  # time
    if has_label and net.label_emb is not None:
        ours[:, 0] = theirs[:, 0]
    shared = min(text.shape[1], net.extras - own_fixed)
    ours[:, own_fixed : own_fixed + shared] = text[:, :shared]
    return ours
