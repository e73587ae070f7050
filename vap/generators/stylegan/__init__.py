"""StyleGAN3, conditioned on the class."""

from vap.generators.stylegan.method import Method

__all__ = ["Method"]
