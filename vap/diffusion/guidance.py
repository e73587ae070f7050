"""Classifier-free guidance (Ho and Salimans, 2022), in one convention.

`guidance_scale` w is the standard weight: eps = eps_u + w (eps_c - eps_u). w = 1 is no guidance, w = 0
ignores the condition. Where U-ViT and the authors' code write eps_c + s (eps_c - eps_u), w = 1 + s: their
s = 1.0 is w = 2.0, their 0.4 is 1.4. CBDM writes the same with omega for s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def guided(
    predict: Callable[[Tensor, Tensor, bool], Tensor], guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Turn a network with and without condition into one guided noise prediction.

    Args:
        predict: (x (B, C, H, W), t (B,), unconditional) to the predicted noise; channels behind the first C,
            a learned variance, are taken from the conditional pass.
        guidance_scale: w >= 0; at 1 the unconditional pass is left out.

    Returns:
        (x, t) to the guided noise prediction.
    """
    if guidance_scale == 1.0:
        return lambda x, t: predict(x, t, False)
    if guidance_scale == 0.0:
        return lambda x, t: predict(x, t, True)

    def both(x: Tensor, t: Tensor) -> Tensor:
        return _mixed(predict(x, t, True).to(x), predict(x, t, False).to(x), guidance_scale, x.shape[1])

    return both


def guided_together(
    predict: Callable[[Tensor, Tensor], Tensor], guidance_scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """As `guided`, with one pass of the network over both halves: fewer and larger kernels.

    Args:
        predict: (x (2B, C, H, W), t (2B,)) to the predicted noise, unconditional for the first B.
        guidance_scale: w >= 0.
    """

    def both(x: Tensor, t: Tensor) -> Tensor:
        unconditional, conditional = predict(torch.cat([x, x]), torch.cat([t, t])).to(x).chunk(2)
        return _mixed(unconditional, conditional, guidance_scale, x.shape[1])

    return both


def _mixed(unconditional: Tensor, conditional: Tensor, guidance_scale: float, channels: int) -> Tensor:
    noise = torch.lerp(unconditional[:, :channels], conditional[:, :channels], guidance_scale)
    return torch.cat([noise, conditional[:, channels:]], dim=1) if conditional.shape[1] > channels else noise
