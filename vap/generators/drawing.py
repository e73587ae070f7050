"""Samples of a diffusion method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vap.diffusion.guidance import guided, guided_together
from vap.diffusion.sampler import sample
from vap.diffusion.schedule import Schedule
from vap.params import SampleParams, ScheduleParams

if TYPE_CHECKING:
    from vap.generators.base import Request, Shapes
    from vap.generators.diffusion import DiffusionMethod


def draw(
    method: DiffusionMethod[Any],
    net: nn.Module,
    shapes: Shapes,
    request: Request,
    settings: SampleParams,
    schedule: ScheduleParams,
) -> Tensor:
    """Samples in the space that the method learned: scaled latents, or images in -1..1.

    Args:
        settings: section `sample`; a sampler that is the method's own goes before it.
        schedule: that the network was trained with.

    Returns:
        (B, channels, size, size).
    """
    scale, shape = method.sample.guidance_scale, (shapes.channels, shapes.size, shapes.size)
    condition, null = request.condition, request.null
    first, noising = request.noise(shape, 0), Schedule(**schedule.model_dump())
    if first.is_cuda and scale not in (0.0, 1.0):
        both = null.joined(condition)
        pair = method.predictor(net, both, both, noising)
        predict = guided_together(lambda x, t: pair(x, t, False), scale)
    else:  # two passes, since the null prompt is the shorter one
        predict = guided(method.predictor(net, condition, null, noising), scale)
    how = method.sampling(settings)
    with torch.autocast(first.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        return sample(
            predict,
            noising,
            first,
            sampler=how.sampler,
            steps=how.steps,
            order=how.order,
            spacing=how.spacing,
            variance=how.variance,
            step_noise=lambda number: request.noise(shape, number),
            data_range=method.data_range,
        )
