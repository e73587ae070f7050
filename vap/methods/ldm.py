"""LDM, class-conditional: a baseline of the paper's Table 1 (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from pydantic import model_validator

from vap.methods.latents import LatentMethod
from vap.methods.networks import UNetParams
from vap.models.ldm import LatentUNet
from vap.params import PositiveInt


class LdmParams(UNetParams):
    """`method.ldm.model`."""

    head_channels: PositiveInt
    context_dim: PositiveInt

    @model_validator(mode="after")
    def _heads_divide_width(self) -> LdmParams:
        if self.width % self.head_channels:
            raise ValueError(
                f"'width' {self.width} must be a multiple of 'head_channels' {self.head_channels}"
            )
        return self


class Method(LatentMethod[LdmParams]):
    kind = "latents"
    model_params = LdmParams
    network = LatentUNet
    libraries = ("diffusers",)
