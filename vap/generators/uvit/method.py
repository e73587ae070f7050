"""U-ViT, class-conditional: the paper's baseline, and VAP-Diffusion without VAPS (Tables 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from vap.generators.init import LinearInit
from vap.generators.latents import LatentMethod
from vap.generators.official import start_from
from vap.generators.settings import TransformerParams, TransformerTrainParams
from vap.generators.uvit.network import UViT
from vap.params import Kind


class UViTParams(TransformerParams):
    """`method.NAME.model` of the U-ViT family."""

    depth: Annotated[int, Field(ge=2, multiple_of=2)]
    final_init: Literal["identity", "published"]
    linear_init: LinearInit


class Method(LatentMethod[UViTParams]):
    kind: ClassVar[Kind] = "latents"
    model_params: ClassVar[type[UViTParams]] = UViTParams
    train_params: ClassVar[type[TransformerTrainParams]] = TransformerTrainParams
    network = UViT
    train: TransformerTrainParams

    def take_over(self, net: nn.Module, weights: Path) -> None:
        start_from(net, weights)
