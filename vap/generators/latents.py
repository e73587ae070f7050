"""What the methods share that learn from latents, with or without descriptions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ClassVar

from torch import nn

from vap.common.places import bank_path, latents_path
from vap.generators.base import ModelParams, Shapes
from vap.generators.diffusion import DiffusionMethod
from vap.prompts.bank import PromptBank
from vap.training.data import LatentData, TrainingData


class LatentMethod(DiffusionMethod[ModelParams]):
    """Latent diffusion, conditioned on the class, and with kind "prompts" on a description too.

    Attributes:
        network: called with size, channels, num_classes and the keys of `method.NAME.model`.
    """

    network: ClassVar[Callable[..., nn.Module]]

    def build(self, shapes: Shapes) -> nn.Module:
        return type(self).network(
            size=shapes.size,
            channels=shapes.channels,
            num_classes=shapes.num_classes,
            **self.model.model_dump(),
        )

    def data(self, dataset: str, text_multiple: int = 1, only: Collection[str] | None = None) -> TrainingData:
        bank = PromptBank(bank_path(dataset)) if self.kind == "prompts" else None
        return LatentData(latents_path(dataset), bank, text_multiple=text_multiple, only=only)
