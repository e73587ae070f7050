"""DiT, class-conditional: a baseline of the paper's Table 1 (Peebles and Xie, ICCV 2023)."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from vap.diffusion.loss import denoising_errors, uneven_error
from vap.diffusion.schedule import Schedule
from vap.generators.dit.network import DiT
from vap.generators.latents import LatentMethod
from vap.generators.official import read, take
from vap.generators.settings import TransformerParams, TransformerTrainParams
from vap.training.batch import Batch


class DiTParams(TransformerParams):
    """`method.dit.model`."""

    width: Annotated[int, Field(ge=4, multiple_of=4)]
    learn_sigma: bool


class Method(LatentMethod[DiTParams]):
    """DiT; with `learn_sigma` it is trained with the hybrid loss of improved DDPM.

    Sampling with `sampler: ddpm` and `variance: learned` takes the predicted variance, every other way the
    noise alone. Guidance is of all channels of the noise, as the authors of VAP-Diffusion have it; DiT's
    published samples guided the first three of four.
    """

    kind = "latents"
    model_params = DiTParams
    network = DiT
    train_params = TransformerTrainParams
    train: TransformerTrainParams

    def take_over(self, net: nn.Module, weights: Path) -> None:
        """Load weights of the same width, depth and patch.

        Labels of other classes stay as initialised, positions are those of our latents, and of a file that
        has the noise and its variance a network without `learn_sigma` takes the noise.
        """
        assert isinstance(net, DiT)
        found = read(weights, "DiT")
        found.pop("pos_embed", None)
        for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
            theirs = found.get(name, torch.empty(0))
            if len(theirs) == 2 * len(net.get_parameter(name)):  # rows: p·p places of 2C channels
                halves = theirs.reshape(net.patch**2, 2, net.channels, *theirs.shape[1:])
                found[name] = halves[:, 0].flatten(0, 1)

        take(
            net,
            found,
            weights,
            optional=lambda name: name == "pos_embed" or name.startswith("y_embedder."),
            expected=f"a DiT of width {self.model.width} and depth {self.model.depth}",
            fix="set model.width, depth, patch and learn_sigma to the file's",
        )

    def loss(self, net: nn.Module, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, Tensor]]:
        """L_simple, plus L_vlb where the variance is learned."""
        found: list[Tensor] = []  # noisy data; noise or velocity; the variance where it is learned

        def predict(x: Tensor, t: Tensor) -> Tensor:
            found.extend([x, *net(x, t, batch.condition.label).split(batch.x0.shape[1], dim=1)])
            return found[1]

        errors = denoising_errors(predict, schedule, batch.x0, batch.t, batch.noise, self.train.predicts)
        simple, logs = errors.mean(), {"uneven_error": uneven_error(errors)}
        if not self.model.learn_sigma:
            return simple, logs
        x, output, place = found
        noise_pred = self.noise(output.detach(), x, batch.t, schedule)
        bound = variational_bound(noise_pred, place, batch.x0, batch.t, batch.noise, schedule).mean()
        return simple + bound, {"denoising_loss": simple.detach(), "vlb": bound.detach(), **logs}

    @property
    def learns_variance(self) -> bool:
        return self.model.learn_sigma


# ── the learned variance ────────────────────────────────────────────────────────────────────────────


@functools.lru_cache(maxsize=4)
def _posterior(schedule: Schedule, device: torch.device) -> Tensor:
    """(3, T + 1) float32, of q(x_{t-1} | x_t, x_0): log of the largest and of the smallest variance, beta_t
    and its value in that posterior; and by what an error of the noise moves the mean. Column 0 is not used.
    """
    bar = schedule.alpha_bar  # (T + 1,) float64
    beta = 1 - bar[1:] / bar[:-1]
    smallest = beta * (1 - bar[:-1]) / (1 - bar[1:])
    smallest[0] = smallest[1]  # it is 0 at t = 1, and as published the log of the next one stands for it
    moves = beta / ((1 - beta) * (1 - bar[1:])).sqrt()
    table = torch.stack([beta.log(), smallest.log(), moves])
    return nn.functional.pad(table, (1, 0)).float().to(device)


def variational_bound(
    noise_pred: Tensor, place: Tensor, x0: Tensor, t: Tensor, noise: Tensor, schedule: Schedule
) -> Tensor:
    """The share of step t in the variational bound, as improved DDPM weighs it (Nichol and Dhariwal, 2021).

    The variance is exp(f log beta_t + (1 - f) log beta~_t) with f = (place + 1) / 2 (their Eq. 15). L_vlb is
    the sum over T steps and has the weight 0.001 (their Eq. 16); a batch draws one step an image, so this is
    T / 1000 times KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 1 times -log p(x_0 | x_1) in
    bins of 2/255 over -1..1, which the published code applies to latents too.

    Args:
        noise_pred: (B, C, H, W); detached, if the bound shall not move the mean.
        place: (B, C, H, W), v of their paper.
        x0, noise: (B, C, H, W).
        t: (B,) whole time steps in 1..T.

    Returns:
        (B,) float32, bits per element.
    """
    rows = _posterior(schedule, x0.device)[:, t, None, None, None]
    largest, smallest, moves = rows  # (B, 1, 1, 1)
    fraction = (place.float() + 1) / 2
    log_variance = fraction * largest + (1 - fraction) * smallest
    error = moves * (noise_pred.float() - noise.float())  # true mean minus predicted mean
    ratio = smallest - log_variance  # of the log-variances
    divergence = 0.5 * (ratio.exp() - 1 - ratio + error.square() * (-log_variance).exp())

    # at t = 1 the true mean is x_0
    inverse_std = (-0.5 * log_variance).exp()
    above, below = inverse_std * (error + 1 / 255), inverse_std * (error - 1 / 255)
    inside = (torch.special.ndtr(above) - torch.special.ndtr(below)).clamp_min(1e-12).log()
    log_likelihood = torch.where(
        x0 < -0.999,
        torch.special.log_ndtr(above),
        torch.where(x0 > 0.999, torch.special.log_ndtr(-below), inside),
    )
    nats = torch.where(t[:, None, None, None] == 1, -log_likelihood, divergence)
    return nats.flatten(1).mean(1) * (schedule.timesteps / 1000 / math.log(2))
