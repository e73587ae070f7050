"""LDM, class-conditional: a baseline of the paper's Table 1 (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from pydantic import model_validator

from vap.generators.latents import LatentMethod
from vap.generators.ldm.network import LatentUNet
from vap.generators.settings import UNetParams
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
