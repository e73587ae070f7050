"""The denoising objective (paper Eq. 2), and where in the latents it is missed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from vap.diffusion.schedule import Schedule

Predicts = Literal["noise", "velocity"]


def denoising_errors(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    predicts: Predicts = "noise",
) -> Tensor:
    """|eps - eps_theta(x_t, t)|² of every element; its mean over batch and elements is L_D.

    Args:
        predict: (x_t (B, C, H, W), t (B,)) to what the network predicts.
        x0: (B, C, H, W) clean latents of about unit variance.
        t: (B,) whole time steps in 1..T.
        noise: eps, like x0.
        predicts: "noise", or "velocity": the error is then of v_t in place of eps.

    Returns:
        (B, C, H, W) float32.
    """
    predicted = predict(schedule.add_noise(x0, noise, t), t)
    return (predicted.float() - target(predicts, schedule, x0, t, noise).float()).square()


def target(predicts: Predicts, schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What a network that predicts the noise, or the velocity, should have said: like x0."""
    return schedule.velocity(x0, noise, t) if predicts == "velocity" else noise


def uneven_error(errors: Tensor) -> Tensor:
    """The error of the worst row or column of the latents, over the mean error.

    Near 1 where a network does its work everywhere. Well above, it leaves noise in a border, or is worse in
    one row of every patch than in the other: what a final convolution does that shifts the latents.

    Args:
        errors: (B, C, H, W) squared errors.

    Returns:
        scalar, detached.
    """
    found = errors.detach().mean((0, 1))  # (H, W)
    worst = torch.cat([found.mean(0), found.mean(1)]).max()
    return worst / found.mean().clamp_min(torch.finfo(found.dtype).tiny)
