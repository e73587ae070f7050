"""U-ViT, class-conditional: the paper's baseline, and VAP-Diffusion without VAPS (Tables 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator
from torch import nn

from vap.methods.diffusion import DiffusionTrainParams
from vap.methods.latents import LatentMethod
from vap.models.official import start_from
from vap.models.uvit import UViT
from vap.params import Kind, Section


class UViTParams(Section):
    """`method.NAME.model` of the U-ViT family."""

    width: Annotated[int, Field(ge=2)]
    depth: Annotated[int, Field(ge=2, multiple_of=2)]
    heads: Annotated[int, Field(ge=1)]
    patch: Annotated[int, Field(ge=1)]
    mlp_ratio: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> UViTParams:
        if self.width % self.heads:
            raise ValueError(f"'width' {self.width} must be a multiple of 'heads' {self.heads}")
        return self


class UViTTrainParams(DiffusionTrainParams):
    """`method.NAME.train` of the U-ViT family."""

    start_from: str | None  # official weights, or a model.safetensors of this project


class Method(LatentMethod[UViTParams]):
    kind: ClassVar[Kind] = "latents"
    model_params: ClassVar[type[UViTParams]] = UViTParams
    train_params: ClassVar[type[UViTTrainParams]] = UViTTrainParams
    network = UViT
    train: UViTTrainParams

    def take_over(self, net: nn.Module, weights: Path) -> None:
        start_from(net, weights)
