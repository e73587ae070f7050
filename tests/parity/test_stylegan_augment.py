"""Adaptive discriminator augmentation: the wavelet, exact maps, draws, gradients and the heuristic."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vap.generators.stylegan.augment import (
    SYM6,
    AdaptiveProbability,
    _Draws,
    _resample,
    _scaling,
    _translation,
    augment,
)


def batch(count: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(count: int = 2, size: int = 32) -> Tensor:
    """A wave of 1.5 cycles in x and 1 in y."""
    at = torch.arange(size) / size
    wave = torch.sin(2 * math.pi * (1.5 * at + at[:, None]))
    return wave.expand(count, 3, size, size).contiguous()


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ── the wavelet and the resampling ──────────────────────────────────────────────────────────────────


def test_sym6_is_the_symlet_of_order_6() -> None:
    """Orthonormal to its even shifts, and six moments of its high-pass vanish."""
    for shift in range(6):
        assert SYM6[2 * shift :] @ SYM6[: 12 - 2 * shift] == pytest.approx(float(shift == 0), abs=1e-9)
    highpass = SYM6 * (-1.0) ** np.arange(12)
    for power in range(6):
        assert highpass @ (np.arange(12) / 11) ** power == pytest.approx(0, abs=1e-9)
    assert SYM6.argmax() == 5


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def test_identity_and_whole_shifts_are_exact() -> None:
    images = batch(2)
    identity = _scaling(ones(2), ones(2))
    torch.testing.assert_close(_resample(images, identity), images, atol=1e-4, rtol=0)
    moved = _resample(images, _translation(3 * ones(2), -2 * ones(2)))  # from 3 to the right and 2 above
    torch.testing.assert_close(moved[:, :, 2:, :-3], images[:, :, :-2, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        moved[:, :, 2:, -3:], images[:, :, :-2, -4:-1].flip(3), atol=1e-4, rtol=0
    )  # reflected


def test_flips_and_scales_of_smooth_images() -> None:
    images = smooth()
    torch.testing.assert_close(
        _resample(images, _scaling(-ones(2), ones(2))), images.flip(3), atol=0.05, rtol=0
    )
    half = _resample(images, _scaling(2 * ones(2), 2 * ones(2)))[:, :, 10:-10, 10:-10]  # shrunk
    at = (torch.arange(32) - 15.5)[10:-10] * 2 / 32 + 15.5 / 32
    wave = torch.sin(2 * math.pi * (1.5 * at + at[:, None]))
    torch.testing.assert_close(half, wave.expand_as(half), atol=0.05, rtol=0)


def test_shrinking_does_not_alias() -> None:
    """A checkerboard, all at half the sampling rate, has no low frequencies to become."""
    at = torch.arange(32)
    board = ((at + at[:, None]) % 2 * 2 - 1).float().expand(1, 3, 32, 32)
    shrunk = _resample(board, _scaling(1.9 * ones(1), 1.9 * ones(1)))
    assert shrunk[..., 4:-4, 4:-4].abs().mean() < 0.1
    assert board[..., ::2, ::2].abs().mean() == 1  # as subsampling would have


# ── augment ─────────────────────────────────────────────────────────────────────────────────────────


def test_p_0_is_the_identity_to_the_bit() -> None:
    images = batch()
    assert torch.equal(augment(images, 0.0, seeded()), images)


def test_p_1_changes_every_image() -> None:
    images = batch()
    changed = (augment(images, 1.0, seeded()) - images).abs().mean((1, 2, 3))
    assert (changed > 0.05).all()


def test_more_p_changes_more_images() -> None:
    images = batch(64, 8)
    counts = [
        int((augment(images, p, seeded()) != images).flatten(1).any(1).sum()) for p in (0.0, 0.02, 0.1, 0.5)
    ]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert 2 <= counts[1] <= 24  # of 64, twelve augmentations with probability 0.02 each reach about 12
    assert counts[-1] > 60


def test_same_seed_same_bytes() -> None:
    images = batch()
    first, second, other = (augment(images, 0.7, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_takes_as_many_draws_whatever_p_is() -> None:
    states = []
    for p in (0.0, 0.3, 1.0):
        generator = seeded()
        augment(batch(), p, generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


@pytest.mark.parametrize("p", [0.2, 1.0])
def test_a_part_of_the_batch_is_cut_from_the_whole(p: float) -> None:
    images = batch(8)
    whole = augment(images, p, seeded())
    for part in (slice(0, 4), slice(4, 8), slice(2, 3)):
        assert torch.equal(augment(images[part], p, seeded(), part=part, total=8), whole[part])


def test_part_of_another_size() -> None:
    with pytest.raises(ValueError, match="3 images for a part of 4"):
        augment(batch(3), 0.5, seeded(), part=slice(0, 4), total=8)


def test_gradient_flows_and_can_be_differentiated_again() -> None:
    """Linear in the images but for the added brightness: J'J v by double backward is what it is by hand."""
    images = batch(4, 8).double().requires_grad_()
    out = augment(images, 1.0, seeded())
    v = batch(4, 8, seed=3).double()
    constant = augment(torch.zeros_like(images), 1.0, seeded())
    forward = augment(v, 1.0, seeded()) - constant  # J v
    (back,) = torch.autograd.grad(out, images, forward, create_graph=True)  # J'J v
    assert back.flatten(1).any(1).all()
    torch.testing.assert_close((back * v).sum(), forward.square().sum())
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(
        (augment(images, 1.0, seeded()) ** 2).sum() * scale, images, create_graph=True
    )
    (second,) = torch.autograd.grad((grad * v).sum(), images)
    torch.testing.assert_close(second, 2 * back.detach())


def test_geometry_is_within_its_ranges() -> None:
    """With p = 1 turns are uniform, areas log-normal of 2 * 0.2, and flips are half of all."""
    matrices = _Draws(4000, 1.0, seeded()).geometry(32, 32)
    determinant = torch.linalg.det(matrices)
    assert abs((determinant < 0).double().mean() - 0.5) < 0.03
    logs = determinant.abs().log2()
    assert abs(logs.mean()) < 0.03
    assert abs(logs.std() - 0.4) < 0.03
    angle = torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0])
    assert abs(angle.cos().mean()) < 0.05
    assert abs(angle.sin().mean()) < 0.05


def test_turns_come_with_probability_p() -> None:
    """Two of probability 1 - sqrt(1 - p) each; quarter turns are not counted."""
    p = 0.4
    matrices = _Draws(8000, p, seeded()).geometry(32, 32)
    cross = (matrices[:, 0, 0] * matrices[:, 0, 1] + matrices[:, 1, 0] * matrices[:, 1, 1]).abs()
    quarter = torch.minimum(matrices[:, 0, 0].abs(), matrices[:, 0, 1].abs()) < 1e-9
    assert abs((~quarter).double().mean() - p) < 0.02
    assert cross.max() > 0.05  # a stretch between two turns is no right-angled one


def test_colours_keep_their_meaning() -> None:
    matrices = _Draws(2000, 1.0, seeded()).colour()
    grey = matrices[:, :3, :3] @ torch.ones(3, dtype=torch.float64)
    spread = grey.max(1).values - grey.min(1).values
    assert spread.max() < 1e-9  # greys stay grey
    assert abs((grey[:, 0] < 0).double().mean() - 0.5) < 0.05  # half of them flip
    assert abs(grey[:, 0].abs().log2().std() - 0.5) < 0.05  # contrast
    shift = matrices[:, 0, 3] / grey[:, 0]
    assert abs(shift.std() - 0.2) < 0.02  # brightness, before contrast


# ── the probability ─────────────────────────────────────────────────────────────────────────────────


def test_p_rises_when_the_discriminator_overfits_and_falls_otherwise() -> None:
    ada = AdaptiveProbability(target=0.6, kimg=1.0, interval=4)
    moves = [ada.observe(16.0, 16) for _ in range(8)]  # every real image is judged real
    assert moves == pytest.approx([0, 0, 0, 0.064, 0.064, 0.064, 0.064, 0.128])
    for _ in range(4):
        ada.observe(8.0, 16)  # three quarters of them: r = 0.5
    assert ada.p == pytest.approx(0.064)
    for _ in range(8):
        ada.observe(-16.0, 16)
    assert ada.p == 0.0  # never below


def test_official_speed() -> None:
    """0 to 1 in 500,000 images."""
    ada = AdaptiveProbability()
    for _ in range(1000):
        ada.observe(500.0, 500)
    assert ada.p == pytest.approx(1.0)


def test_state_goes_on() -> None:
    first, second = AdaptiveProbability(kimg=1.0), AdaptiveProbability(kimg=1.0)
    for _ in range(6):
        first.observe(16.0, 16)
    state = first.state()
    assert all(type(value) is float for value in state.values())
    second.load(state)
    assert [first.observe(3.0, 16) for _ in range(5)] == [second.observe(3.0, 16) for _ in range(5)]
    assert first.state() == second.state()
