"""U-ViT, conditioned on the class: the paper's baseline and the backbone of VAP-Diffusion."""

from vap.generators.uvit.method import Method

__all__ = ["Method"]
