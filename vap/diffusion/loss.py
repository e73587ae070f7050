"""The denoising objective (paper Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vap.diffusion.schedule import Schedule


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
) -> Tensor:
    """L_D = |eps - eps_theta(x_t, t)|², the mean over batch and elements.

    Args:
        predict: (x_t (B, C, H, W), t (B,)) to the predicted noise.
        x0: (B, C, H, W) clean latents of about unit variance.
        t: (B,) whole time steps in 1..T.
        noise: eps, like x0.

    Returns:
        scalar, float32.
    """
    noise_pred = predict(schedule.add_noise(x0, noise, t), t)
    return (noise_pred.float() - noise.float()).square().mean()
