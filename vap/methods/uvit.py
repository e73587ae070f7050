"""U-ViT, class-conditional: the paper's baseline, and VAP-Diffusion without VAPS (Tables 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor, nn

from vap.diffusion.loss import denoising_loss
from vap.diffusion.schedule import Schedule
from vap.methods.base import Batch, Shapes
from vap.methods.diffusion import DiffusionTrainParams
from vap.methods.latents import LatentMethod
from vap.models.official import start_from
from vap.models.uvit import UViT
from vap.params import Section


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
    kind = "latents"
    model_params = UViTParams
    train_params = UViTTrainParams
    train: UViTTrainParams

    @property
    def start_from(self) -> Path | None:
        return None if self.train.start_from is None else Path(self.train.start_from)

    def take_over(self, net: nn.Module, weights: Path) -> None:
        start_from(net, weights)

    def build(self, shapes: Shapes) -> nn.Module:
        return UViT(
            size=shapes.size,
            channels=shapes.channels,
            num_classes=shapes.num_classes,
            **self.model.model_dump(),
        )

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        loss = denoising_loss(
            lambda x, t: net(x, t, batch.condition.label), schedule, batch.x0, batch.t, batch.noise
        )
        return loss, {}
