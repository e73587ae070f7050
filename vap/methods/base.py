"""What a method is: a network, its loss and its conditioned noise prediction.

A method is one entry `method.NAME` of params.yaml and one module `vap/methods/NAME.py` with a class
`Method`. The training loop, the sampler and the graph know methods through this interface alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
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
    context: Tensor | None = (
        None  # (B, S, context_dim), of any float dtype; of the null prompt where unconditional
    )
    mask: Tensor | None = None  # (B, S) bool, True where a token is real

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """`change` of every tensor."""
        context = None if self.context is None else change(self.context)
        return Condition(change(self.label), context, None if self.mask is None else change(self.mask))

    def to(self, device: torch.device) -> Condition:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def padded(self, tokens: int) -> Condition:
        """The same with its context padded to `tokens`; at least as many as it has."""
        if self.context is None or self.mask is None:
            return self
        more = tokens - self.context.shape[1]
        return Condition(self.label, F.pad(self.context, (0, 0, 0, more)), F.pad(self.mask, (0, more)))

    def joined(self, other: Condition) -> Condition:
        """The rows of both, this one's first."""
        if self.context is None or other.context is None:
            return Condition(torch.cat([self.label, other.label]))
        S = max(self.context.shape[1], other.context.shape[1])
        a, b = self.padded(S), other.padded(S)
        return Condition(*(torch.cat(pair) for pair in zip(a.tensors(), b.tensors(), strict=True)))

    def tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.label, self.context, self.mask) if tensor is not None]


@dataclass
class Batch:
    """A training batch: clean latents, their condition, and the draws of this step."""

    x0: Tensor  # (B, C, H, W)
    condition: Condition
    t: Tensor  # (B,) int64 in 1..T
    noise: Tensor  # like x0

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """`change` of every tensor."""
        return Batch(change(self.x0), self.condition.map(change), change(self.t), change(self.noise))

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pieces(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of at most `size` images."""
        for start in range(0, len(self.x0), size):
            part = slice(start, start + size)
            yield self.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]


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

    @property
    def start_from(self) -> Path | None:
        """Weights that training starts from; None for freshly initialised ones."""
        return None

    def take_over(self, net: nn.Module, weights: Path) -> None:
        """Load `start_from` into a network that `build` made."""
        raise NotImplementedError

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
