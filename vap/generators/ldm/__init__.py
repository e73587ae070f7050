"""LDM: a U-Net with cross-attention to the class."""

from vap.generators.ldm.method import Method

__all__ = ["Method"]
