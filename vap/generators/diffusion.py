"""What all diffusion methods share. How one draws is in vap/generators/drawing.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.diffusion.loss import Predicts, denoising_errors, uneven_error
from vap.diffusion.schedule import Schedule
from vap.generators.base import Method, ModelParams, OwnSampleParams, OwnTrainParams
from vap.generators.denoising import DiffusionLearner
from vap.params import Betas, ComputeParams, SampleParams, SamplerParams, TrainParams
from vap.training.batch import Batch, Condition

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
    grad_clip: Annotated[float, Field(gt=0)] | None  # norm
    predicts: Predicts  # what the network's output is


class DiffusionSampleParams(OwnSampleParams):
    """`method.NAME.sample` of a diffusion method."""

    guidance_scale: Annotated[float, Field(ge=0)]
    sampler: SamplerParams | None  # null: that of section `sample`


class DiffusionMethod(Method[ModelParams]):
    """A network that predicts the noise or the velocity, called as net(x, t, label, context, mask, …)."""

    train_params: ClassVar[type[DiffusionTrainParams]] = DiffusionTrainParams
    sample_params: ClassVar[type[DiffusionSampleParams]] = DiffusionSampleParams
    train: DiffusionTrainParams
    sample: DiffusionSampleParams
    data_range: ClassVar[float | None] = None  # the data lie in -data_range..data_range; None: not bounded

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar (here L_D, a mean squared error), and detached scalars for the log."""
        c = batch.condition
        errors = denoising_errors(
            lambda x, t: self.predict(net, x, t, c),
            schedule,
            batch.x0,
            batch.t,
            batch.noise,
            self.train.predicts,
        )
        return errors.mean(), {"uneven_error": uneven_error(errors)}

    def predict(self, net: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's output for noisy data x (B, C, H, W) at times t (B,): what it predicts."""
        c = condition
        return net(x, t, c.label, c.context, c.mask)  # type: ignore[no-any-return]

    def noise(self, output: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """The noise that an output for x (B, C, H, W) at t (B,) stands for; further channels stay."""
        if self.train.predicts == "noise":
            return output
        v, rest = output.tensor_split([x.shape[1]], dim=1)
        return torch.cat([schedule.noise_of_velocity(v.to(x), x, t), rest.to(x)], dim=1)

    def predictor(
        self, net: nn.Module, condition: Condition, null: Condition, schedule: Schedule
    ) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """(x, t, unconditional) to the predicted noise, and the learned variance behind it, for the sampler.

        Args:
            condition, null: of the batch, and its unconditional counterpart.
            schedule: that the network was trained with.
        """

        def predict(x: Tensor, t: Tensor, unconditional: bool) -> Tensor:
            c = null if unconditional else condition
            return self.noise(self.predict(net, x, t, c), x, t, schedule)

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

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts, in as many channels again, the variance of a DDPM step."""
        return False

    def sampling(self, settings: SampleParams) -> SamplerParams:
        """Sampler, order, spacing, variance and steps: the method's own, or of section `sample`.

        Raises:
            VapError: they want a variance that the network does not predict.
        """
        how = self.sample.sampler or settings
        if how.sampler == "ddpm" and how.variance == "learned" and not self.learns_variance:
            raise VapError(
                f"params.yaml: sample.variance, of method {self.name}",
                "learned",
                "posterior or beta: its network predicts no variance",
                f"correct it, or set method.{self.name}.sample.sampler",
            )
        return how
