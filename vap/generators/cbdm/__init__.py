"""CBDM: class-balancing diffusion on pixels."""

from vap.generators.cbdm.method import Method

__all__ = ["Method"]
