"""VAP-Diffusion: U-ViT conditioned on class and description, with class prototypes (PCM)."""

from vap.generators.vap.method import Method

__all__ = ["Method"]
