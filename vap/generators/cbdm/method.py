"""CBDM, class-balancing diffusion on pixels: a baseline of the paper's Table 1 (Qin et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vap.diffusion.loss import target, uneven_error
from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes
from vap.generators.cbdm.network import PixelUNet
from vap.generators.diffusion import DiffusionMethod, DiffusionTrainParams
from vap.generators.pixels import PixelParams, pixel_data
from vap.generators.settings import UNetParams
from vap.params import ScheduleParams, TrainParams
from vap.training.batch import Batch

if TYPE_CHECKING:
    from vap.training.data import TrainingData

COMMITMENT = 0.25  # weight of the second term of the class-balancing loss (CBDM, Eq. 9: gamma)


class CbdmParams(UNetParams, PixelParams):
    """`method.cbdm.model`."""

    dropout: Annotated[float, Field(ge=0, lt=1)]


class CbdmTrainParams(DiffusionTrainParams):
    """`method.cbdm.train`."""

    tau: Annotated[float, Field(ge=0)]  # weight of the class-balancing terms
    schedule: ScheduleParams | None  # DDPM's; null: the one of section `train`
    flip: bool  # mirror every second image, by chance


class Method(DiffusionMethod[CbdmParams]):
    kind = "images"
    model_params = CbdmParams
    train_params = CbdmTrainParams
    libraries = ("diffusers",)
    data_range = 1.0
    train: CbdmTrainParams

    def schedule(self, shared: TrainParams) -> ScheduleParams:
        return self.train.schedule or shared.schedule

    def data(self, dataset: str, text_multiple: int = 1, only: Collection[str] | None = None) -> TrainingData:
        return pixel_data(self.name, self.model, self.train.flip, dataset, only)

    def build(self, shapes: Shapes) -> nn.Module:
        return PixelUNet(
            size=shapes.size,
            num_classes=shapes.num_classes,
            **self.model.model_dump(exclude={"image_size"}),
        )

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """|eps - h|² + w_t (|h - sg(h')|² + |sg(h) - h'|² / 4), w_t = tau t / T (CBDM, Eqs. 8 and 9).

        h is the prediction of the noise, or of the velocity (train.predicts), h' the one for the same x_t and
        another class, drawn as often as in training. An image whose class was dropped has no such term; the
        released code drops the class of a whole batch at a time, which is the same on average.
        """
        label, other = batch.condition.label, batch.other_label
        assert other is not None
        x = schedule.add_noise(batch.x0, batch.noise, batch.t)
        h, h_other = net(x.repeat(2, 1, 1, 1), batch.t.repeat(2), torch.cat([label, other])).float().chunk(2)
        wanted = target(self.train.predicts, schedule, batch.x0, batch.t, batch.noise)
        errors = (h - wanted.float()).square()
        denoising = errors.mean()
        labelled = (label < self.null_class(net)).float()
        weight = self.train.tau * labelled * batch.t / schedule.timesteps  # (B,)
        towards = (h - h_other.detach()).square().flatten(1).mean(1)
        commitment = (h.detach() - h_other).square().flatten(1).mean(1)
        balancing = (weight * (towards + COMMITMENT * commitment)).mean()
        logs = {"denoising_loss": denoising.detach(), "balancing": balancing.detach()}
        return denoising + balancing, {**logs, "uneven_error": uneven_error(errors)}

    @staticmethod
    def null_class(net: Any) -> int:
        """The label of an image without class."""
        inner = getattr(net, "module", net)  # DDP keeps the network under .module
        return int(inner.unet.config.num_class_embeds) - 1
