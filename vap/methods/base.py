"""What a method is: a network, how it learns, and how it draws.

A method is one entry `method.NAME` of params.yaml and one module `vap/methods/NAME.py` with a class
`Method`. The training loop, the samples and the graph know methods through this interface alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from vap.errors import VapError
from vap.params import (
    Kind,
    MethodParams,
    Params,
    PositiveInt,
    ScheduleParams,
    Section,
    TrainParams,
    first_problem,
)
from vap.training.batch import Movable

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vap.params import ComputeParams
    from vap.training.data import TrainingData
    from vap.training.loop import Learner

ModelParams = TypeVar("ModelParams", bound=Section)


@dataclass(frozen=True)
class Shapes:
    """What the data decide of a network."""

    size: int  # side of the latents, or of the images that a method learns from
    channels: int  # of these
    num_classes: int
    context_dim: int | None = None  # width of a description's token states
    context_tokens: int = 0  # the most tokens of a description


@dataclass
class Condition(Movable):
    """What a batch is conditioned on. Row i is unconditional where label[i] is the null class."""

    label: Tensor  # (B,) int64; num_classes is the null class
    context: Tensor | None = (
        None  # (B, S, context_dim), of any float dtype; of the null prompt where unconditional
    )
    mask: Tensor | None = None  # (B, S) bool, True where a token is real; real ones come first
    lengths: tuple[int, ...] | None = None
    """Real tokens of each row, known to the host: lets a network compute without padding."""
    room: int | None = None  # as many of them as the rows of such a batch may have together

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """`change` of every tensor, which leaves the rows what they are."""
        context = None if self.context is None else change(self.context)
        mask = None if self.mask is None else change(self.mask)
        return Condition(change(self.label), context, mask, self.lengths, self.room)

    def part(self, rows: slice) -> Condition:
        """Some of its rows."""
        some = self.map(lambda tensor: tensor[rows])
        some.lengths = None if self.lengths is None else self.lengths[rows]
        some.room = None
        return some

    def padded(self, tokens: int) -> Condition:
        """The same with its context padded to `tokens`; at least as many as it has."""
        if self.context is None or self.mask is None:
            return self
        more = tokens - self.context.shape[1]
        context, mask = F.pad(self.context, (0, 0, 0, more)), F.pad(self.mask, (0, more))
        return Condition(self.label, context, mask, self.lengths, self.room)

    def joined(self, other: Condition) -> Condition:
        """The rows of both, this one's first."""
        if self.context is None or other.context is None:
            return Condition(torch.cat([self.label, other.label]))
        S = max(self.context.shape[1], other.context.shape[1])
        a, b = self.padded(S), other.padded(S)
        lengths = None if a.lengths is None or b.lengths is None else a.lengths + b.lengths
        label, context, mask = (torch.cat(pair) for pair in zip(a.tensors(), b.tensors(), strict=True))
        return Condition(label, context, mask, lengths)

    def tensors(self) -> list[Tensor]:
        """Those that it has."""
        return [tensor for tensor in (self.label, self.context, self.mask) if tensor is not None]


def described(label: Tensor, context: Tensor, mask: Tensor) -> Condition:
    """A condition of class and description, with `mask` on the host; shapes as `Condition`'s."""
    return Condition(label, context, mask, tuple(mask.sum(1).tolist()))


@dataclass
class Batch(Movable):
    """A training batch: clean latents or images, their condition, and the draws of this step."""

    x0: Tensor  # (B, C, H, W)
    condition: Condition
    t: Tensor  # (B,) int64 in 1..T
    noise: Tensor  # like x0
    other_label: Tensor | None = None  # (B,) int64, drawn from the training split's class frequencies

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """`change` of every tensor."""
        other = None if self.other_label is None else change(self.other_label)
        return Batch(change(self.x0), self.condition.map(change), change(self.t), change(self.noise), other)

    def pieces(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of at most `size` images."""
        for start in range(0, len(self.x0), size):
            part = slice(start, start + size)
            piece = self.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
            piece.condition = self.condition.part(part)
            yield piece


@dataclass(frozen=True)
class Request:
    """A batch of samples to draw. Sample i depends on its own condition and noise alone."""

    condition: Condition
    null: Condition  # the unconditional counterpart
    noise: Callable[[tuple[int, ...], int], Tensor]
    """(shape of a sample's noise, number of the draw: 0 at the start, k of a sampler's step k) to (B, *shape)
    standard normal noise on the network's device."""


class Method(ABC, Generic[ModelParams]):
    """A generative method.

    Subclasses name the type of `method.NAME.model` in `model_params`, and those of `method.NAME.train` and
    `method.NAME.sample` in `train_params` and `sample_params`.

    Args:
        model, train, sample: the three sections; `sample` is None where nothing will be drawn.
    """

    kind: ClassVar[Kind]
    model_params: ClassVar[type[Section]]
    train_params: ClassVar[type[OwnTrainParams]]
    sample_params: ClassVar[type[OwnSampleParams]]
    libraries: ClassVar[tuple[str, ...]] = ()  # that the network is built of, beyond torch

    def __init__(self, model: ModelParams, train: Any, sample: Any = None) -> None:
        self.model, self.train, self.sample = model, train, sample

    @property
    def name(self) -> str:
        """As params.yaml spells it: that of its module."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def start_from(self) -> Path | None:
        """Weights to start from, where `train` has a key of that name; None for freshly initialised ones."""
        given = getattr(self.train, "start_from", None)
        return None if given is None else Path(given)

    def take_over(self, net: nn.Module, weights: Path) -> None:
        """Load `start_from` into a network that `build` made."""
        raise NotImplementedError

    def schedule(self, shared: TrainParams) -> ScheduleParams | None:
        """The noise schedule of training and sampling; None where there is no noise to take away."""
        return shared.schedule

    @abstractmethod
    def data(self, dataset: str, text_multiple: int = 1, only: Collection[str] | None = None) -> TrainingData:
        """What the method learns from.

        Args:
            text_multiple: descriptions are padded to a multiple of so many tokens.
            only: ids of the training images that it learns from; None for all.
        """

    @abstractmethod
    def build(self, shapes: Shapes) -> nn.Module:
        """The freshly initialised network that draws."""

    @abstractmethod
    def learner(
        self,
        build: Callable[[], nn.Module],
        data: TrainingData,
        shared: TrainParams,
        compute: ComputeParams,
        seed: int,
    ) -> Callable[[Accelerator], Learner[Any]]:
        """What the training loop steps.

        Args:
            build: makes the network that draws; called once.
        """


class OneStepMethod(Method[ModelParams]):
    """A method whose network makes an image in one pass, from noise."""

    @abstractmethod
    def draw(self, net: nn.Module, request: Request, precision: str) -> Tensor:
        """Images in -1..1.

        Args:
            precision: of the network, "fp32" or "bf16".

        Returns:
            (B, 3, size, size).
        """


class OwnTrainParams(Section):
    """Base of a method's `train` section."""

    steps: PositiveInt
    batch_size: PositiveInt


class OwnSampleParams(Section):
    """Base of a method's `sample` section."""


def method_class(name: str) -> type[Method[Any]]:
    """The class of the method `name`.

    Raises:
        VapError: there is no such module, or it is no method's.
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
    if not hasattr(module, "Method") or not getattr(module.Method, "__module__", "") == module.__name__:
        raise VapError(f"vap/methods/{name}.py", "no class Method", "one", "name a method's module")
    return module.Method  # type: ignore[no-any-return]


def load_method(name: str, params: Mapping[str, MethodParams]) -> Method[Any]:
    """The method `name`, its settings checked.

    Raises:
        VapError: there is no such module, or its settings do not fit it.
    """
    cls, entry = method_class(name), params[name]
    return cls(
        *(
            checked(schema, data, f"params.yaml: method.{name}.{key}")
            for key, schema, data in (
                ("model", cls.model_params, entry.model),
                ("train", cls.train_params, entry.train.model_dump()),
                ("sample", cls.sample_params, entry.sample.model_dump()),
            )
        )
    )


def method_of(params: Params, name: str) -> Method[Any]:
    """The method `name`, its settings checked, and that it learns from what `learns_from` says.

    Raises:
        VapError: as `load_method`; or it is listed under another kind.
    """
    method = load_method(name, params.method)
    if method.kind != params.kind(name):
        raise VapError(
            f"params.yaml: learns_from.{params.kind(name)}: {name}",
            f"a method that learns from {method.kind}",
            f"its name under learns_from.{method.kind}",
            "move it there",
        )
    return method


def built(method: Method[Any], shapes: Shapes, data: str = "the data") -> nn.Module:
    """The freshly initialised network of a method.

    Args:
        data: what decides the shapes, for errors.

    Raises:
        VapError: the method's settings do not fit the shapes.
    """
    try:
        return method.build(shapes)
    except ValueError as error:
        where = f"params.yaml: method.{method.name}.model"
        raise VapError(where, str(error), f"a network that fits {data}", "change the setting") from None


def checked(schema: type[BaseModel], data: Any, place: str, fix: str = "edit params.yaml") -> Any:
    """Settings as their schema has them.

    Raises:
        VapError: they do not fit; `place` is the path of their key.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        path, found, expected = first_problem(error)
        where = f"{place}.{path}" if path else place
        raise VapError(where, found, expected, fix) from None
