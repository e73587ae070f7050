"""Initial weights of the transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

LinearInit = Literal["xavier", "published"]


def init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of standard deviation 0.02, zero bias (as U-ViT and ViT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def xavier_weights(module: nn.Module) -> None:
    """Linear layers: uniform, of variance 2 / (inputs + outputs), zero bias (as DiT).

    The published 0.02 is near that at a width of 512 and more; of a network of width 64 it is a sixth, and
    each layer begins by passing almost nothing on.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


LINEAR_INITS: dict[str, Callable[[nn.Module], None]] = {"xavier": xavier_weights, "published": init_weights}
