"""Settings that the networks of several methods share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from vap.generators.diffusion import DiffusionTrainParams
from vap.params import PositiveInt, Section


class TransformerParams(Section):
    """`method.NAME.model` of a transformer on patches of latents."""

    width: Annotated[int, Field(ge=2)]
    depth: PositiveInt
    heads: PositiveInt
    patch: PositiveInt
    mlp_ratio: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> TransformerParams:
        if self.width % self.heads:
            raise ValueError(f"'width' {self.width} must be a multiple of 'heads' {self.heads}")
        return self


class TransformerTrainParams(DiffusionTrainParams):
    """`method.NAME.train` of one whose published weights can be taken over."""

    start_from: str | None  # official weights, or a model.safetensors of this project


class UNetParams(Section):
    """`method.NAME.model` of a U-Net."""

    width: Annotated[int, Field(ge=8, multiple_of=8)]
    multipliers: Annotated[list[PositiveInt], Field(min_length=1)]
    res_blocks: PositiveInt
    attention: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _levels_exist(self) -> UNetParams:
        if unknown := [level for level in self.attention if level >= len(self.multipliers)]:
            raise ValueError(f"'attention' names level {unknown[0]} of {len(self.multipliers)}, from 0")
        return self
