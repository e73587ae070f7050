"""What a method is: a network, how it learns, and how it draws.

A method is one entry `method.NAME` of params.yaml and one module `vap/generators/NAME.py` with a class
`Method`. The training loop, the samples and the graph know methods through this interface alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from vap.common.errors import VapError
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
from vap.training.batch import Condition

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
        """As params.yaml spells it: that of its module or package in vap/generators/."""
        return type(self).__module__.split(".")[2]

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

    def check_training(self, shared: TrainParams, processes: int) -> None:
        """Raise a VapError where its training cannot take these settings in so many processes."""

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
        module = importlib.import_module(f"vap.generators.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"vap.generators.{name}":
            raise
        raise VapError(
            f"params.yaml: methods: {name}",
            f"no module vap/generators/{name}.py",
            "one module a method",
            "correct the name",
        ) from None
    if not hasattr(module, "Method") or not f"{module.Method.__module__}.".startswith(f"{module.__name__}."):
        raise VapError(f"vap/generators/{name}.py", "no class Method", "one", "name a method's module")
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
