"""What all diffusion methods share. How one draws is in vap/diffusion/draw.py."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.methods.base import (
    Batch,
    Condition,
    Method,
    ModelParams,
    OwnSampleParams,
    OwnTrainParams,
)
from vap.params import Betas, ComputeParams, SampleParams, SamplerParams, TrainParams
from vap.training.loop import DiffusionLearner

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vap.training.data import TrainingData


class DiffusionTrainParams(OwnTrainParams):
    """`method.NAME.train` of a diffusion method without keys of its own."""

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    betas: Betas
    warmup_steps: Annotated[int, Field(ge=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    condition_dropout: Annotated[float, Field(ge=0, lt=1)]


class GuidanceParams(OwnSampleParams):
    """`method.NAME.sample` of a diffusion method without keys of its own."""

    guidance_scale: Annotated[float, Field(ge=0)]


class DiffusionMethod(Method[ModelParams]):
    """A network that predicts the noise, called as net(x, t, label, context, mask, …)."""

    train_params: ClassVar[type[DiffusionTrainParams]] = DiffusionTrainParams
    sample_params: ClassVar[type[GuidanceParams]] = GuidanceParams
    data_range: ClassVar[float | None] = None  # the data lie in -data_range..data_range; None: not bounded

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

    def learner(
        self,
        build: Callable[[], nn.Module],
        data: TrainingData,
        shared: TrainParams,
        compute: ComputeParams,
        seed: int,
    ) -> Callable[[Accelerator], DiffusionLearner]:
        scheduled = self.schedule(shared)
        assert scheduled is not None
        schedule = Schedule(**scheduled.model_dump())

        def batch(step: int, part: slice) -> Batch:
            size, dropout = self.train.batch_size, self.train.condition_dropout
            return data.batch(step, seed, size, dropout, schedule.timesteps, part)

        return lambda accelerator: DiffusionLearner(
            self, build(), batch, schedule, shared, compute, accelerator, seed
        )

    def sampling(self, settings: SampleParams) -> SamplerParams:
        """Sampler, order, spacing and steps: of section `sample`, or the method's own."""
        return settings
