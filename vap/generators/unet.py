"""What the two U-Nets of diffusers share (CBDM's on pixels, LDM's on latents)."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn


def norm_groups(width: int) -> int:
    """Groups of the group norms: 32 as published, or of 8 channels where the network is narrow.

    A norm over a group of one channel would take away what the time has added to it.
    """
    return 32 if width >= 128 and width % 32 == 0 else width // 8


def block_types(
    size: int, levels: int, attention: Collection[int], attends: str, what: str
) -> dict[str, tuple[str, ...]]:
    """diffusers' names of the blocks, on the way down and on the way up.

    Args:
        size: side of the input; each level but the first halves it.
        attention: levels, from 0, that attend.
        attends: prefix of such a block's name.
        what: of the input, for errors.

    Raises:
        ValueError: `size` cannot be halved so often, or `attention` names no level.
    """
    if size % 2 ** (levels - 1):
        raise ValueError(f"{what} of side {size} cannot be halved {levels - 1} times (multipliers)")
    if unknown := sorted(set(attention) - set(range(levels))):
        raise ValueError(f"attention at level {unknown[0]}; the levels are 0 to {levels - 1}")
    kinds = [attends if level in attention else "" for level in range(levels)]
    return {
        "down_block_types": tuple(f"{kind}DownBlock2D" for kind in kinds),
        "up_block_types": tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
    }


def begin_at_zero(layers: Iterable[nn.Module]) -> None:
    """Zero the last layers of residual branches and of a network, as DDPM and CompVis do."""
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
