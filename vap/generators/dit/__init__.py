"""DiT with adaLN-Zero, conditioned on the class."""

from vap.generators.dit.method import Method

__all__ = ["Method"]
