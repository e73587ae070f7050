"""Samplers: DPM-Solver++ (multistep, data prediction), DDIM and ancestral DDPM.

All run over a grid of times T = t_0 > … > t_{n-1} = 1 > t_n = 0; the last step takes the predicted data as
it is. Sources: DPM-Solver++ (Lu et al., 2022, Algorithm 2 and its third-order multistep form);
DDIM (Song et al., 2021, eta = 0), which is DPM-Solver++ of order 1; DDPM (Ho et al., 2020, Eq. 7), on a
sub-grid of times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vap.diffusion.schedule import Schedule
from vap.training.seeds import SAMPLES, step_generator

Predictor = Callable[[Tensor, Tensor], Tensor]


def noise_of(seed: int, index: int, shape: Sequence[int], draw: int = 0) -> Tensor:
    """Standard normal noise of one sample: it depends on its index alone, not on batch or process.

    Args:
        seed: of the run.
        index: of the sample.
        shape: of the noise, e.g. (C, H, W).
        draw: 0 is the initial noise; an ancestral sampler's step k uses k.
    """
    return torch.randn(tuple(shape), generator=step_generator(seed, SAMPLES, index, draw))


def time_grid(schedule: Schedule, steps: int, spacing: str) -> Tensor:
    """The times at which the network is evaluated, and 0.

    Args:
        spacing: "uniform" in t (the authors), "quadratic" (uniform in sqrt(t), as DDIM), or "logsnr".

    Returns:
        (steps + 1,) float64, from T down to 1, then 0.
    """
    T = schedule.timesteps
    if steps == 1:
        times = torch.tensor([float(T)], dtype=torch.float64)
    elif spacing == "uniform":
        times = torch.linspace(T, 1, steps, dtype=torch.float64)
    elif spacing == "quadratic":
        times = torch.linspace(T**0.5, 1, steps, dtype=torch.float64) ** 2
    elif spacing == "logsnr":
        alpha, sigma = schedule.alpha_sigma(torch.arange(1, T + 1))
        lambdas = (alpha / sigma).log()  # falls with t
        targets = torch.linspace(float(lambdas[-1]), float(lambdas[0]), steps, dtype=torch.float64)
        right = torch.searchsorted(-lambdas, -targets).clamp(1, T - 1)
        low, high = lambdas[right - 1], lambdas[right]
        times = right + (targets - low) / (high - low)
    else:
        raise ValueError(f"unknown spacing {spacing!r}; known: uniform, quadratic, logsnr")
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def sample(
    predict: Predictor,
    schedule: Schedule,
    x: Tensor,
    *,
    sampler: str,
    steps: int,
    order: int = 2,
    spacing: str = "quadratic",
    variance: str = "posterior",
    step_noise: Callable[[int], Tensor] | None = None,
    data_range: float | None = None,
) -> Tensor:
    """Draw from the model.

    Args:
        predict: (x (B, C, H, W), t (B,) in 0..T) to the predicted noise in the first C channels; in as many
            more, to where the variance lies ("learned").
        x: (B, C, H, W) standard normal noise.
        sampler: "dpmpp", "ddim" or "ddpm".
        steps: evaluations of `predict`.
        order: 1, 2 or 3, of "dpmpp".
        spacing: of the times, see `time_grid`.
        variance: of "ddpm"'s steps: "posterior", that of q(x_s | x_t, x_0); "beta", that of q(x_t | x_s), the
            larger one (Ho et al., 2020, have both); "learned", between them on a logarithmic scale (Nichol
            and Dhariwal, 2021, Eq. 15).
        step_noise: k in 1..steps-1 to fresh noise like x; "ddpm" needs it.
        data_range: the predicted data are cut to -data_range..data_range, as DDPM does on pixels (Ho et al.,
            2020, released code); None leaves them alone.

    Returns:
        (B, C, H, W) samples of the data distribution.
    """
    times = time_grid(schedule, steps, spacing)
    if sampler == "ddpm":
        if step_noise is None:
            raise ValueError("sampler ddpm needs step_noise")
        return _ddpm(predict, schedule, x, times, step_noise, data_range, variance)
    if sampler not in ("dpmpp", "ddim"):
        raise ValueError(f"unknown sampler {sampler!r}; known: dpmpp, ddim, ddpm")
    return _dpm_solver_pp(predict, schedule, x, times, 1 if sampler == "ddim" else order, data_range)


def _data_prediction(
    predict: Predictor, schedule: Schedule, x: Tensor, t: Tensor, data_range: float | None
) -> tuple[Tensor, Tensor]:
    """x_0 = (x_t - sigma_t eps) / alpha_t, within its range; and what is predicted beside eps."""
    alpha, sigma = (v.to(x) for v in schedule.alpha_sigma(t))
    noise, rest = predict(x, t.to(x).expand(x.shape[0])).to(x).tensor_split([x.shape[1]], dim=1)
    data: Tensor = (x - sigma * noise) / alpha
    return data if data_range is None else data.clamp(-data_range, data_range), rest


def _dpm_solver_pp(
    predict: Predictor,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    order: int,
    data_range: float | None = None,
) -> Tensor:
    steps = len(times) - 1
    alphas, sigmas = schedule.alpha_sigma(times)
    lambdas = alphas.log() - sigmas.log()  # half log-SNR; +inf at t = 0
    data: list[Tensor] = []  # predictions at the last times, newest last
    for i in range(steps):
        data = [*data[-2:], _data_prediction(predict, schedule, x, times[i], data_range)[0]]
        if i == steps - 1:
            return data[-1]  # t = 0: alpha 1, sigma 0
        h = (lambdas[i + 1] - lambdas[i]).item()
        # fewer steps behind the last one: lower order there, as diffusers' lower_order_final
        use = min(order, i + 1, steps - 1 - i if steps < 15 else order)
        m0 = data[-1]
        d = m0
        phi1 = -torch.expm1(torch.tensor(-h, dtype=torch.float64)).item()  # 1 - e^{-h}
        if use >= 2:
            h1 = (lambdas[i] - lambdas[i - 1]).item()
            d1 = (m0 - data[-2]) * (h / h1)  # first backward difference, scaled to this step
            if use == 3:
                h2 = (lambdas[i - 1] - lambdas[i - 2]).item()
                d1_old = (data[-2] - data[-3]) * (h / h2)
                r0, r1 = h1 / h, h2 / h
                first = d1 + (d1 - d1_old) * (r0 / (r0 + r1))
                second = (d1 - d1_old) / (r0 + r1)
                c1 = 1 - phi1 / h  # of the first derivative, over phi1 below
                c2 = 0.5 - (h - phi1) / h**2
                ratio = (sigmas[i + 1] / sigmas[i]).item()
                x = ratio * x + alphas[i + 1].item() * (phi1 * m0 + c1 * first + c2 * second)
                continue
            d = m0 + 0.5 * d1
        ratio = (sigmas[i + 1] / sigmas[i]).item()
        x = ratio * x + alphas[i + 1].item() * phi1 * d
    raise AssertionError("steps must be at least 1")


def _ddpm(
    predict: Predictor,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    step_noise: Callable[[int], Tensor],
    data_range: float | None = None,
    variance: str = "posterior",
) -> Tensor:
    steps = len(times) - 1
    alphas, sigmas = schedule.alpha_sigma(times)
    for i in range(steps):
        data, rest = _data_prediction(predict, schedule, x, times[i], data_range)
        if i == steps - 1:
            return data
        # q(x_s | x_t, x_0) for s < t, by alpha_{t|s} = alpha_t / alpha_s
        ratio = alphas[i] / alphas[i + 1]
        beta = sigmas[i] ** 2 - ratio**2 * sigmas[i + 1] ** 2  # sigma²_{t|s}
        posterior = beta * (sigmas[i + 1] / sigmas[i]) ** 2
        keep = (ratio * sigmas[i + 1] ** 2 / sigmas[i] ** 2).item()
        pull = (alphas[i + 1] * beta / sigmas[i] ** 2).item()
        if variance == "learned":
            if rest.shape != x.shape:
                raise ValueError("variance learned needs a network that predicts it")
            place = (rest + 1) / 2
            log_variance = place * beta.log().item() + (1 - place) * posterior.log().item()
        else:
            log_variance = {"posterior": posterior, "beta": beta}[variance].log().to(x)
        x = keep * x + pull * data + (0.5 * log_variance).exp() * step_noise(i + 1).to(x)
    raise AssertionError("steps must be at least 1")
