"""Samplers, schedule and guidance against closed forms and against diffusers.

Data from N(m, s²) have an exact noise prediction, and the probability-flow ODE an exact solution:
(x_t - alpha_t m) / sqrt(alpha_t² s² + sigma_t²) is the same at all t.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vap.diffusion.guidance import guided
from vap.diffusion.loss import denoising_errors, uneven_error
from vap.diffusion.sampler import _ddpm, _dpm_solver_pp, noise_of, sample, time_grid
from vap.diffusion.schedule import Schedule

SCHEDULE = Schedule("scaled_linear", 1000, 0.00085, 0.012)
MEAN, STD = 0.7, 0.4


def exact_noise(x: Tensor, t: Tensor) -> Tensor:
    alpha, sigma = (v[:, None, None, None] for v in SCHEDULE.alpha_sigma(t))
    alpha, sigma = alpha.to(x), sigma.to(x)
    return sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def exact_sample(x: Tensor) -> Tensor:
    """The ODE from T to 1, solved exactly, then the data prediction there."""
    alpha, sigma = SCHEDULE.alpha_sigma(torch.tensor([1000, 1]))
    spread = (alpha**2 * STD**2 + sigma**2).sqrt()
    x1 = alpha[1] * MEAN + spread[1] * (x - alpha[0] * MEAN) / spread[0]
    return (x1 - sigma[1] * exact_noise(x1, torch.ones(len(x)))) / alpha[1]


def start() -> Tensor:
    return torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)[:, None, None, None]


def error(steps: int, order: int, spacing: str, sampler: str = "dpmpp") -> float:
    x = start()
    found = sample(exact_noise, SCHEDULE, x, sampler=sampler, steps=steps, order=order, spacing=spacing)
    return float((found - exact_sample(x)).abs().max())


# ── DPM-Solver++ ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("spacing", ["quadratic", "logsnr"])
@pytest.mark.parametrize(("steps", "allowed"), [(20, 0.025), (50, 0.004)])
def test_higher_orders_reach_the_exact_ode(spacing: str, steps: int, allowed: float) -> None:
    first, second, third = (error(steps, order, spacing) for order in (1, 2, 3))
    assert max(second, third) < allowed
    assert second < 0.4 * first
    assert third < 0.6 * second


def test_uniform_times_need_more_steps() -> None:
    """Times uniform in t are coarse where the signal appears; the orders still rank by 50 steps."""
    first, second, third = (error(50, order, "uniform") for order in (1, 2, 3))
    assert third < second < first
    assert first < 0.1


@pytest.mark.parametrize("order", [1, 2])
def test_error_falls_with_the_power_that_the_order_names(order: int) -> None:
    coarse, fine = (error(steps, order, "logsnr") for steps in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_order_3_as_published_falls_with_the_square_but_from_lower() -> None:
    """Its second-derivative term, as in the authors' and diffusers' code, is half of Taylor's."""
    coarse, fine = (error(steps, 3, "logsnr") for steps in (40, 80))
    assert math.log2(coarse / fine) > 1.9
    assert fine < 0.5 * error(80, 2, "logsnr")


def test_ddim_is_order_1() -> None:
    x = start()
    ddim, first = (
        sample(exact_noise, SCHEDULE, x, sampler=name, steps=10, order=order)
        for name, order in (("ddim", 3), ("dpmpp", 1))
    )
    assert torch.equal(ddim, first)


def test_ddim_step_is_songs_equation_12() -> None:
    """x_s = alpha_s x0 + sigma_s eps, with eta = 0."""
    x = start()
    times = time_grid(SCHEDULE, 3, "uniform")
    for t, s in itertools.pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = SCHEDULE.alpha_sigma(t), SCHEDULE.alpha_sigma(s)
        eps = exact_noise(x, t.expand(len(x)))
        x = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps
    found = sample(exact_noise, SCHEDULE, start(), sampler="ddim", steps=3, spacing="uniform")
    torch.testing.assert_close(found, x, atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [15, 25])
def test_trajectory_is_diffusers(order: int, steps: int) -> None:
    """The same whole times; ours count from 1, diffusers' from 0, and both end with the data."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    times = torch.linspace(1000, 1, steps).round()
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        solver_order=order,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(timesteps=(times - 1).long().tolist())

    def curved(x: Tensor, t: Tensor) -> Tensor:  # no Gaussian's: multistep memory matters
        return exact_noise(x, t) + 0.2 * torch.sin(3 * x)

    x = start().float()
    for t in theirs.timesteps:
        noise_pred = curved(x, (t + 1).float().expand(len(x)))
        x = theirs.step(noise_pred, t, x).prev_sample
    zero = torch.zeros(1, dtype=torch.float64)
    ours = _dpm_solver_pp(curved, SCHEDULE, start(), torch.cat([times.double(), zero]), order)
    torch.testing.assert_close(ours.float(), x, atol=2e-4, rtol=0)


def test_few_steps_stay_finite_and_near() -> None:
    for steps in (1, 2, 3, 5, 8):
        for order in (1, 2, 3):
            x = start()
            found = sample(exact_noise, SCHEDULE, x, sampler="dpmpp", steps=steps, order=order)
            assert found.isfinite().all()
            assert ((found - MEAN).abs() < 4 * STD).all()


def test_network_is_asked_once_a_step_at_the_grids_times() -> None:
    asked: list[float] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,)
        asked.append(float(t[0]))
        return torch.zeros_like(x)

    x = torch.zeros(2, 1, 2, 2)
    sample(predict, SCHEDULE, x, sampler="dpmpp", steps=7, spacing="quadratic")
    expected = [(math.sqrt(1000) + (1 - math.sqrt(1000)) * i / 6) ** 2 for i in range(7)]
    assert asked == pytest.approx(expected)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_time_grid_runs_from_T_to_1_then_0(spacing: str, steps: int) -> None:
    times = time_grid(SCHEDULE, steps, spacing)
    assert len(times) == steps + 1
    assert (times.diff() < 0).all()
    assert float(times[0]) == pytest.approx(1000)
    assert float(times[-1]) == 0
    if steps > 1:
        assert float(times[-2]) == pytest.approx(1)


def test_logsnr_times_are_even_in_log_snr() -> None:
    alpha, sigma = SCHEDULE.alpha_sigma(time_grid(SCHEDULE, 20, "logsnr")[:-1])
    steps = (alpha / sigma).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=0.03, atol=0)


# ── ancestral DDPM ──────────────────────────────────────────────────────────────────────────────


def test_ddpm_reproduces_mean_and_standard_deviation() -> None:
    n = 10_000
    generator = torch.Generator().manual_seed(0)

    def noise(_draw: int) -> Tensor:
        return torch.randn(n, 1, 1, 1, dtype=torch.float64, generator=generator)

    found = sample(
        exact_noise,
        SCHEDULE,
        noise(0),
        sampler="ddpm",
        steps=1000,
        spacing="uniform",
        step_noise=noise,
    )
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * STD / math.sqrt(n))
    assert float(found.std()) == pytest.approx(STD, rel=0.02)


TIMES = torch.tensor([400.0, 399.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_ddpm_step_is_hos_posterior(variance: str) -> None:
    """Whole neighbouring steps: mean and variance of Ho et al. (2020), Eq. 7; beta_t for the variance (their
    §3.2); a third of the way between their logarithms (Nichol and Dhariwal, 2021, Eq. 15)."""
    t = int(TIMES[0])
    ab, ab_s = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[t - 1]
    beta = 1 - ab / ab_s
    x, z = start(), 0.3 * start().flip(0)
    eps = exact_noise(x, torch.full((len(x),), float(t)))
    x0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
    mean = ab_s.sqrt() * beta / (1 - ab) * x0 + (1 - beta).sqrt() * (1 - ab_s) / (1 - ab) * x
    small = (1 - ab_s) / (1 - ab) * beta
    wanted = {"posterior": small, "beta": beta, "learned": beta ** (1 / 3) * small ** (2 / 3)}[variance]
    x_s = mean + wanted.sqrt() * z
    last: list[Tensor] = []

    def predict(x: Tensor, at: Tensor) -> Tensor:
        last.append(x)
        place = torch.full_like(x, 2 / 3 - 1)  # f = (v + 1) / 2
        return torch.cat([exact_noise(x, at), place], dim=1) if variance == "learned" else exact_noise(x, at)

    _ddpm(predict, SCHEDULE, x, TIMES, lambda _k: z, variance=variance)
    torch.testing.assert_close(last[1], x_s, atol=1e-12, rtol=0)


@pytest.mark.parametrize("sampler", ["dpmpp", "ddpm"])
def test_a_predicted_variance_that_is_not_asked_for_changes_nothing(sampler: str) -> None:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([exact_noise(x, t), torch.rand_like(x)], dim=1)

    how: dict[str, Any] = {"sampler": sampler, "steps": 5, "step_noise": lambda _k: 0.1 * start()}
    plain = sample(exact_noise, SCHEDULE, start(), **how)
    assert torch.equal(sample(predict, SCHEDULE, start(), **how), plain)


def test_a_variance_that_is_not_predicted_is_told() -> None:
    with pytest.raises(ValueError, match="needs a network that predicts it"):
        _ddpm(exact_noise, SCHEDULE, start(), TIMES, lambda _k: start(), variance="learned")


def test_ddpm_draws_its_noise_by_step() -> None:
    draws: list[int] = []

    def noise(draw: int) -> Tensor:
        draws.append(draw)
        return torch.zeros(11, 1, 1, 1)

    sample(exact_noise, SCHEDULE, start(), sampler="ddpm", steps=5, step_noise=noise)
    assert draws == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="step_noise"):
        sample(exact_noise, SCHEDULE, start(), sampler="ddpm", steps=5)


# ── noise of a sample ───────────────────────────────────────────────────────────────────────────


def test_noise_depends_on_seed_index_and_draw_alone() -> None:
    shape = (4, 8, 8)
    first = noise_of(3, 7, shape)
    torch.manual_seed(99)
    assert torch.equal(noise_of(3, 7, shape), first)
    others = [
        noise_of(seed, index, shape, draw) for seed in (0, 3) for index in (0, 7, 8) for draw in (0, 1, 2)
    ]
    flat = torch.stack([f.flatten() for f in others])
    equal = (flat[:, None] == flat[None]).all(-1)
    assert equal.sum() == len(others)  # each equals itself alone
    assert sum(torch.equal(o, first) for o in others) == 1


def test_noise_is_standard_normal() -> None:
    pooled = torch.cat([noise_of(0, i, (4, 16, 16)).flatten() for i in range(50)])
    assert float(pooled.mean()) == pytest.approx(0, abs=0.015)
    assert float(pooled.std()) == pytest.approx(1, abs=0.015)


def test_noise_is_not_that_of_a_training_step() -> None:
    from vap.training.data import step_generator

    training = torch.randn((16, 4, 8, 8), generator=step_generator(3, 7))
    assert not torch.equal(noise_of(3, 7, (4, 8, 8)), training[0])


# ── schedule, loss, guidance ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "beta_start", "beta_end"),
    [("scaled_linear", 0.00085, 0.012), ("linear", 1e-4, 0.02)],
)
def test_alpha_bar_is_diffusers(kind: str, beta_start: float, beta_end: float) -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    theirs = DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=kind,
    )
    ours = Schedule(kind, 1000, beta_start, beta_end).alpha_bar
    assert ours[0] == 1
    assert len(ours) == 1001
    torch.testing.assert_close(ours[1:].float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)


def test_add_noise_is_equation_1() -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    t = torch.tensor([1, 400, 1000])
    ab = SCHEDULE.alpha_bar[t][:, None, None, None]
    expected = ab.sqrt() * x0 + (1 - ab).sqrt() * noise
    torch.testing.assert_close(SCHEDULE.add_noise(x0, noise, t), expected)


def test_alpha_sigma_between_steps_is_monotonic_and_of_unit_power() -> None:
    alpha, sigma = SCHEDULE.alpha_sigma(torch.linspace(0, 1000, 4001, dtype=torch.float64))
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha[0], sigma[0]) == (1, 0)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="known: scaled_linear, linear"):
        Schedule("cosine", 10, 0.1, 0.2)
    with pytest.raises(ValueError, match="known: dpmpp, ddim, ddpm"):
        sample(exact_noise, SCHEDULE, start(), sampler="euler", steps=2)
    with pytest.raises(ValueError, match="known: uniform, quadratic, logsnr"):
        time_grid(SCHEDULE, 4, "cubic")


def test_denoising_loss_is_equation_2() -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4)
    t = torch.tensor([1, 400, 1000])
    seen: list[Tensor] = []

    def predict(x: Tensor, at: Tensor) -> Tensor:
        seen.extend([x, at])
        return noise + torch.arange(3.0)[:, None, None, None]

    loss = denoising_errors(predict, SCHEDULE, x0, t, noise).mean()
    assert float(loss) == pytest.approx((0 + 1 + 4) / 3, rel=1e-5)
    assert torch.equal(seen[0], SCHEDULE.add_noise(x0, noise, t))
    assert seen[1] is t


def test_the_velocity_is_that_of_salimans_and_ho_and_leads_back_to_the_noise() -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4)
    t = torch.tensor([1, 400, 1000])
    alpha, sigma = (v.float()[:, None, None, None] for v in SCHEDULE.alpha_sigma(t))
    x, v = SCHEDULE.add_noise(x0, noise, t), SCHEDULE.velocity(x0, noise, t)
    torch.testing.assert_close(v, alpha * noise - sigma * x0)
    torch.testing.assert_close(alpha * x - sigma * v, x0)  # their Eq. of x_0
    for times in (t, t.double()):  # whole times of training, fractional ones of a sampler
        torch.testing.assert_close(SCHEDULE.noise_of_velocity(v, x, times), noise)


def test_the_loss_of_a_network_that_predicts_the_velocity() -> None:
    x0, noise = torch.randn(2, 3, 4, 4, 4)
    t = torch.tensor([1, 400, 1000])

    def predict(x: Tensor, at: Tensor) -> Tensor:
        return SCHEDULE.velocity(x0, noise, at) + torch.arange(3.0)[:, None, None, None]

    errors = denoising_errors(predict, SCHEDULE, x0, t, noise, "velocity")
    torch.testing.assert_close(errors.mean((1, 2, 3)), torch.tensor([0.0, 1.0, 4.0]), atol=1e-5, rtol=1e-5)


def test_the_uneven_error_is_that_of_the_worst_row_or_column() -> None:
    errors = torch.ones(3, 2, 6, 8)
    assert uneven_error(errors) == 1
    for side in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1], np.s_[..., ::2]):
        bad = errors.clone()
        bad[side] = 4
        assert uneven_error(bad) == pytest.approx(4 / float(bad.mean()), rel=1e-5)


def conditioned(calls: list[bool]) -> Callable[[Tensor, Tensor, bool], Tensor]:
    def predict(x: Tensor, t: Tensor, unconditional: bool) -> Tensor:
        calls.append(unconditional)
        return x * 0.5 if unconditional else x * 0.5 + t[:, None, None, None].cos()

    return predict


@pytest.mark.parametrize(("weight", "passes"), [(0.0, [True]), (1.0, [False])])
def test_guidance_of_0_and_1_is_one_pass(weight: float, passes: list[bool]) -> None:
    calls: list[bool] = []
    x, t = torch.randn(3, 2, 4, 4), torch.tensor([1.0, 2.0, 3.0])
    found = guided(conditioned(calls), weight)(x, t)
    assert calls == passes
    assert torch.equal(found, conditioned([])(x, t, passes[0]))


@pytest.mark.parametrize(("weight", "authors"), [(2.0, 1.0), (1.4, 0.4), (0.3, -0.7)])
def test_guidance_weight_is_1_plus_the_authors(weight: float, authors: float) -> None:
    """Theirs: c + s (c - u), s = 1.0 for VAP-Diffusion and 0.4 for U-ViT."""
    x, t = torch.randn(3, 2, 4, 4), torch.tensor([1.0, 2.0, 3.0])
    c, u = (conditioned([])(x, t, flag) for flag in (False, True))
    found = guided(conditioned([]), weight)(x, t)
    torch.testing.assert_close(found, c + authors * (c - u))
