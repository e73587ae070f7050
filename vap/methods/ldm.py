"""LDM, class-conditional: a baseline of the paper's Table 1 (Rombach et al., CVPR 2022)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from vap.methods.latents import LatentMethod
from vap.models.ldm import LatentUNet
from vap.params import PositiveInt, Section


class LdmParams(Section):
    """`method.ldm.model`."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    multipliers: Annotated[list[PositiveInt], Field(min_length=1)]
    res_blocks: PositiveInt
    attention: list[Annotated[int, Field(ge=0)]]
    head_channels: PositiveInt
    context_dim: PositiveInt

    @model_validator(mode="after")
    def _sizes_agree(self) -> LdmParams:
        if self.width % self.head_channels:
            raise ValueError(
                f"'width' {self.width} must be a multiple of 'head_channels' {self.head_channels}"
            )
        if unknown := [level for level in self.attention if level >= len(self.multipliers)]:
            raise ValueError(f"'attention' names level {unknown[0]} of {len(self.multipliers)}, from 0")
        return self


class Method(LatentMethod[LdmParams]):
    kind = "latents"
    model_params = LdmParams
    network = LatentUNet
    libraries = ("diffusers",)
