"""The forward process: beta_t, alpha_bar_t and q(x_t | x_0) (paper Eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor


class Schedule:
    """A discrete variance-preserving noise schedule, steps 1..T.

    Args:
        kind: "scaled_linear" (Stable Diffusion: sqrt(beta) is linear) or "linear" (DDPM).
        timesteps: T.
        beta_start, beta_end: beta_1 and beta_T, in (0, 1).

    `alpha_bar` has T + 1 float64 entries; entry 0 is 1, no noise.
    """

    def __init__(self, kind: str, timesteps: int, beta_start: float, beta_end: float) -> None:
        if kind == "scaled_linear":
            roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
            betas = roots**2
        elif kind == "linear":
            betas = torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
        else:
            raise ValueError(f"unknown schedule {kind!r}; known: scaled_linear, linear")
        self.timesteps = timesteps
        one = torch.ones(1, dtype=torch.float64)
        self.alpha_bar = torch.cat([one, torch.cumprod(1 - betas, 0)])  # (T + 1,)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scale sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t) at times t in 0..T.

        Between whole steps log(alpha_bar) is interpolated linearly.

        Args:
            t: any shape, whole or fractional.

        Returns:
            two float64 tensors of that shape, on the CPU.
        """
        t = t.cpu()  # float64, which not every device has
        log_alpha_bar = self.alpha_bar.log()
        low = t.floor().long().clamp(0, self.timesteps - 1)
        weight = t.double() - low
        log = torch.lerp(log_alpha_bar[low], log_alpha_bar[low + 1], weight)
        return (0.5 * log).exp(), (-torch.expm1(log)).clamp_min(0).sqrt()

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, for x_0 (B, C, H, W) and whole t (B,).

        The two scales are looked up on x_0's device, so that a training step never waits for the CPU.
        """
        alpha, sigma = self._scales(x0, t)
        return alpha * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """v_t = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans and Ho, 2022), as `add_noise`."""
        alpha, sigma = self._scales(x0, t)
        return alpha * noise - sigma * x0

    def noise_of_velocity(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The noise eps in x_t (B, C, H, W) at times t (B,), whole or fractional, whose velocity is v."""
        alpha, sigma = self._scales(x, t)
        return sigma * x + alpha * v

    def _scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`alpha_sigma` at t (B,), each (B, 1, 1, 1) of x's device and dtype."""
        if t.dtype.is_floating_point:
            scales = self.alpha_sigma(t)
        else:
            if x.device not in self._tables:
                alphas, sigmas = self.alpha_sigma(torch.arange(self.timesteps + 1))
                self._tables[x.device] = alphas.float().to(x.device), sigmas.float().to(x.device)
            scales = self._tables[x.device][0][t], self._tables[x.device][1][t]
        alpha, sigma = (scale.to(x)[:, None, None, None] for scale in scales)
        return alpha, sigma
