"""StyleGAN3, class-conditional: a baseline of the paper's Table 1 (Karras et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vap.generators.base import OneStepMethod, OwnSampleParams, OwnTrainParams, Request, Shapes
from vap.generators.pixels import PixelParams, pixel_data
from vap.generators.stylegan.discriminator import Discriminator
from vap.generators.stylegan.network import Generator
from vap.generators.stylegan.training import GanLearner, require_fit
from vap.params import Betas, ComputeParams, PositiveInt, ScheduleParams, TrainParams

if TYPE_CHECKING:
    from accelerate import Accelerator

    from vap.training.data import TrainingData


class StyleGANParams(PixelParams):
    """`method.stylegan.model`."""

    config: Literal["t", "r"]
    z_dim: PositiveInt
    w_dim: PositiveInt
    mapping_layers: PositiveInt
    layers: Annotated[int, Field(ge=3)]
    critical_layers: PositiveInt
    margin: Annotated[int, Field(ge=0)]
    channel_base: PositiveInt
    channel_max: PositiveInt
    discriminator_channel_base: PositiveInt
    discriminator_channel_max: PositiveInt
    group_size: PositiveInt
    discriminator_mapping_layers: PositiveInt

    @model_validator(mode="after")
    def _sizes_fit(self) -> StyleGANParams:
        if self.image_size < 16 or self.image_size & (self.image_size - 1):
            raise ValueError(f"'image_size' {self.image_size} must be a power of two, 16 or more")
        if self.critical_layers >= self.layers:
            raise ValueError(f"'critical_layers' must be less than 'layers' {self.layers}")
        for key in ("channel_base", "discriminator_channel_base"):
            if getattr(self, key) < self.image_size:  # the finest layers would have no channel
                raise ValueError(f"{key!r} must be at least 'image_size' {self.image_size}")
        return self


class StyleGANTrainParams(OwnTrainParams):
    """`method.stylegan.train`."""

    lr: Annotated[float, Field(gt=0)]
    lr_discriminator: Annotated[float, Field(gt=0)]
    betas: Betas
    ema_kimg: Annotated[float, Field(ge=0)]
    magnitude_kimg: Annotated[float, Field(gt=0)]
    r1_gamma: Annotated[float, Field(ge=0)]
    r1_interval: PositiveInt
    ada_target: Annotated[float, Field(gt=0, lt=1)] | None
    ada_kimg: Annotated[float, Field(gt=0)]
    blur_sigma: Annotated[float, Field(ge=0)]
    blur_fade_kimg: Annotated[float, Field(ge=0)]
    grad_clip: Annotated[float, Field(gt=0)] | None
    flip: bool


class StyleGANSampleParams(OwnSampleParams):
    """`method.stylegan.sample`."""

    truncation_psi: Annotated[float, Field(ge=0)]


class Method(OneStepMethod[StyleGANParams]):
    kind = "images"
    model_params = StyleGANParams
    train_params = StyleGANTrainParams
    sample_params = StyleGANSampleParams
    libraries = ("scipy",)  # designs the filters
    train: StyleGANTrainParams
    sample: StyleGANSampleParams

    def schedule(self, shared: TrainParams) -> ScheduleParams | None:
        return None

    def check_training(self, shared: TrainParams, processes: int) -> None:
        section, groups = f"method.{self.name}.train", self.model.group_size
        require_fit(shared.precision, self.train.batch_size, groups, processes, section)

    def data(self, dataset: str, text_multiple: int = 1, only: Collection[str] | None = None) -> TrainingData:
        return pixel_data(self.name, self.model, self.train.flip, dataset, only)

    def build(self, shapes: Shapes) -> Generator:
        m = self.model
        return Generator(
            size=shapes.size,
            num_classes=shapes.num_classes,
            config=m.config,
            z_dim=m.z_dim,
            w_dim=m.w_dim,
            mapping_layers=m.mapping_layers,
            layers=m.layers,
            critical_layers=m.critical_layers,
            margin=m.margin,
            magnitude_ema_beta=0.5 ** (self.train.batch_size / (self.train.magnitude_kimg * 1000)),
            channel_base=m.channel_base,
            channel_max=m.channel_max,
        )

    def discriminator(self, size: int, num_classes: int) -> Discriminator:
        """Of images of `size` pixels a side."""
        m = self.model
        return Discriminator(
            size=size,
            num_classes=num_classes,
            channel_base=m.discriminator_channel_base,
            channel_max=m.discriminator_channel_max,
            group_size=m.group_size,
            mapping_layers=m.discriminator_mapping_layers,
        )

    def learner(
        self,
        build: Callable[[], nn.Module],
        data: TrainingData,
        shared: TrainParams,
        compute: ComputeParams,
        seed: int,
    ) -> Callable[[Accelerator], GanLearner]:
        def make(accelerator: Accelerator) -> GanLearner:
            generator = build()
            discriminator = self.discriminator(data.shape[1], len(data.classes))
            section = f"method.{self.name}.train"
            return GanLearner(
                generator, discriminator, data, self.train, section, shared, compute, accelerator, seed
            )

        return make

    def draw(self, net: nn.Module, request: Request, precision: str) -> Tensor:
        z = request.noise((self.model.z_dim,), 0)
        with torch.autocast(z.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return net(z, request.condition.label, self.sample.truncation_psi).float()  # type: ignore[no-any-return]
