"""Initial weights of the transformers."""

from __future__ import annotations

from torch import nn


def init_weights(module: nn.Module) -> None:
    """Linear layers: truncated normal of standard deviation 0.02, zero bias (as U-ViT and ViT)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
