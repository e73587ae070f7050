"""Networks of the authors' size, without memory for their weights."""

from __future__ import annotations

import torch

from vap.generators.uvit.network import UViT


def authors_uvit() -> UViT:
    """U-ViT-S/2 deep on 4 x 32 x 32 latents and 256 text tokens of 768, as in their configuration."""
    with torch.device("meta"):
        return UViT(
            size=32,
            channels=4,
            patch=2,
            width=512,
            depth=16,
            heads=8,
            context_dim=768,
            context_tokens=256,
        )
