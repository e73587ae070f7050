"""What a method is: a network, its loss and its conditioned noise prediction.

A method is one entry `method.NAME` of params.yaml and one module `vap/methods/NAME.py` with a class
`Method`. The training loop, the sampler and the graph know methods through this interface alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.errors import VapError
from vap.params import Kind, MethodParams, MethodTrainParams, Section, first_problem

ModelParams = TypeVar("ModelParams", bound=Section)


@dataclass(frozen=True)
class Shapes:
    """What the data decide of a network."""

    size: int  # side of the latents
    channels: int  # of the latents
    num_classes: int
    context_dim: int | None = None  # width of a description's token states
    context_tokens: int = 0  # the most tokens of a description


@dataclass
class Condition:
    """What a batch is conditioned on. Row i is unconditional where label[i] is the null class."""

    label: Tensor  # (B,) int64; num_classes is the null class
    context: Tensor | None = None  # (B, S, context_dim); the null prompt's states where unconditional
    mask: Tensor | None = None  # (B, S) bool, True where a token is real

    def to(self, device: torch.device) -> Condition:
        return Condition(
            self.label.to(device, non_blocking=True),
            None if self.context is None else self.context.to(device, non_blocking=True),
            None if self.mask is None else self.mask.to(device, non_blocking=True),
        )


@dataclass
class Batch:
    """A training batch: clean latents, their condition, and the draws of this step."""

    x0: Tensor  # (B, C, H, W)
    condition: Condition
    t: Tensor  # (B,) int64 in 1..T
    noise: Tensor  # like x0

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.x0.to(device, non_blocking=True),
            self.condition.to(device),
            self.t.to(device, non_blocking=True),
            self.noise.to(device, non_blocking=True),
        )


class DiffusionMethod(ABC, Generic[ModelParams]):
    """A latent diffusion method.

    Subclasses name the type of `method.NAME.model` in `model_params`, and of any keys of
    `method.NAME.train` of their own in `train_params`.
    """

    kind: ClassVar[Kind]
    model_params: ClassVar[type[Section]]
    train_params: ClassVar[type[MethodTrainParams]] = MethodTrainParams

    def __init__(self, model: ModelParams, train: MethodTrainParams) -> None:
        self.model, self.train = model, train

    @abstractmethod
    def build(self, shapes: Shapes) -> nn.Module:
        """A freshly initialised network, called as net(x, t, label, context, mask, …)."""

    @abstractmethod
    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss (a scalar) and detached scalars for the log."""

    def predictor(
        self, net: nn.Module, condition: Condition, null: Condition
    ) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """(x, t, unconditional) to the predicted noise, for the sampler.

        Args:
            condition, null: of the batch, and its unconditional counterpart.
        """

        def predict(x: Tensor, t: Tensor, unconditional: bool) -> Tensor:
            c = null if unconditional else condition
            return net(x, t, c.label, c.context, c.mask)  # type: ignore[no-any-return]

        return predict


class OwnTrainParams(MethodTrainParams):
    """Base of a method's train section with keys of its own: unknown ones are errors again."""

    model_config: ClassVar = {**MethodTrainParams.model_config, "extra": "forbid"}


class PlainTrainParams(OwnTrainParams):
    """A train section with no key beyond those that all methods have."""


def load_method(name: str, params: Mapping[str, MethodParams]) -> DiffusionMethod[Any]:
    """The method `name`, its settings checked.

    Raises:
        VapError: there is no such module, or its settings do not fit it.
    """
    try:
        module = importlib.import_module(f"vap.methods.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"vap.methods.{name}":
            raise
        raise VapError(
            f"params.yaml: methods: {name}",
            f"no module vap/methods/{name}.py",
            "one module a method",
            "correct the name",
        ) from None
    if not hasattr(module, "Method"):
        raise VapError(f"vap/methods/{name}.py", "no class Method", "one", "name a method's module")
    cls: type[DiffusionMethod[Any]] = module.Method
    entry, place = params[name], f"params.yaml: method.{name}"
    parts: list[Any] = []
    for key, schema, data in (
        ("model", cls.model_params, entry.model),
        ("train", cls.train_params, entry.train.model_dump()),
    ):
        try:
            parts.append(schema.model_validate(data))
        except ValidationError as error:
            path, found, expected = first_problem(error)
            where = f"{place}.{key}.{path}" if path else f"{place}.{key}"
            raise VapError(where, found, expected, "edit params.yaml") from None
    return cls(*parts)
