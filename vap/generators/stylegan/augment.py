"""Adaptive discriminator augmentation (Karras et al., NeurIPS 2020, arXiv:2006.06676), the pipeline "bgc".

Pixel blitting, general geometry and colour, each with probability p (App. B). All geometry of an image is one
affine map, resampled at twice the resolution between wavelet low-passes; all colour is one affine map.
Two things differ from the original: an image that drew no geometry is passed on to the bit, and beyond the
first reflection at an edge come more of them (the original: black).
Shape letters: B batch, H rows, W columns, N images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vap.generators.stylegan.filters import fir_matrix

# the low-pass of the wavelet symlet 6, whose middle is tap 5: orthonormal to its even shifts
SYM6 = np.array(
    [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
     0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252,
     -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148]
)  # fmt: skip
REACH = 4  # pixels beyond what is sampled that the low-pass sees
SHIFT = 0.125  # most of an integer translation, in image sides
SCALE_STD, ANISOTROPY_STD = 0.2, 0.2  # of the logarithm to base 2
FRACTION_STD = 0.125  # of a fractional translation, in image sides
BRIGHTNESS_STD, CONTRAST_STD, SATURATION_STD = 0.2, 0.5, 1.0  # the last two of the logarithm to base 2


def augment(
    images: Tensor, p: float, generator: torch.Generator, part: slice | None = None, total: int | None = None
) -> Tensor:
    """Augment each image by its own draws; differentiable, twice, in the images.

    Takes as many numbers from `generator` whatever p is.

    Args:
        images: (B, 3, H, W), about -1..1; H and W of 5 or more.
        p: probability of each augmentation; above 1 as 1.
        generator: on the CPU; the source of all randomness.
        part: which rows of the whole batch `images` are; None: all.
        total: size of the whole batch, which is drawn for; None: B.

    Returns:
        (B, 3, H, W).

    Raises:
        ValueError: `part` of `total` has another size than `images`.
    """
    draws = _Draws(len(images) if total is None else total, p, generator)
    geometry, colour = draws.geometry(*images.shape[2:]), draws.colour()  # float64
    if part is not None:
        geometry, colour = geometry[part], colour[part]
    if len(geometry) != len(images):
        raise ValueError(f"{len(images)} images for a part of {len(geometry)}")
    if len(drawn := _others_than_identity(geometry)):
        rows = drawn.to(images.device)
        images = images.index_copy(0, rows, _resample(images[rows], geometry[drawn]))
    if len(drawn := _others_than_identity(colour)):
        rows, matrix = drawn.to(images.device), colour[drawn].to(images.device, images.dtype)
        pixels = torch.baddbmm(matrix[:, :3, 3:], matrix[:, :3, :3], images[rows].flatten(2))
        images = images.index_copy(0, rows, pixels.view(-1, *images.shape[1:]))
    return images


# ── the draws ───────────────────────────────────────────────────────────────────────────────────────


class _Draws:
    """Random matrices for `count` images; each call draws."""

    def __init__(self, count: int, p: float, generator: torch.Generator) -> None:
        self.count, self.p, self.generator = count, p, generator

    def uniform(self, low: float, high: float) -> Tensor:  # (count,)
        x = torch.rand(self.count, generator=self.generator, dtype=torch.float64)
        return low + (high - low) * x

    def normal(self, std: float) -> Tensor:  # (count,)
        return torch.randn(self.count, generator=self.generator, dtype=torch.float64) * std

    def maybe(self, matrix: Tensor, p: float | None = None) -> Tensor:
        """Each (N, N) matrix with probability p, else the identity."""
        chosen = self.uniform(0, 1) < (self.p if p is None else p)
        return torch.where(chosen[:, None, None], matrix, torch.eye(matrix.shape[1], dtype=torch.float64))

    def geometry(self, height: int, width: int) -> Tensor:
        """(count, 3, 3): where a point of the result comes from, (x, y, 1) in pixels from the centre."""
        p_turn = 1 - math.sqrt(1 - min(self.p, 1))  # of two turns, at least one comes with probability p
        result = self.maybe(_scaling(1 - 2 * self.uniform(0, 2).floor(), 1))  # x-flip
        result = result @ self.maybe(_turn(self.uniform(0, 4).floor() * (math.pi / 2)))
        x, y = self.uniform(-SHIFT, SHIFT), self.uniform(-SHIFT, SHIFT)
        result = result @ self.maybe(_translation((x * width).round(), (y * height).round()))
        scale = self.normal(SCALE_STD).exp2()
        result = result @ self.maybe(_scaling(scale, scale))
        result = result @ self.maybe(_turn(self.uniform(-math.pi, math.pi)), p_turn)
        scale = self.normal(ANISOTROPY_STD).exp2()
        result = result @ self.maybe(_scaling(scale, 1 / scale))
        result = result @ self.maybe(_turn(self.uniform(-math.pi, math.pi)), p_turn)
        x, y = self.normal(FRACTION_STD), self.normal(FRACTION_STD)
        return result @ self.maybe(_translation(x * width, y * height))

    def colour(self) -> Tensor:
        """(count, 4, 4): from a colour (r, g, b, 1) to the result."""
        grey = torch.tensor([1, 1, 1, 0], dtype=torch.float64) / math.sqrt(3)
        luma = grey[:, None] * grey  # (4, 4), projects on the axis of greys
        eye = torch.eye(4, dtype=torch.float64)
        add = eye.repeat(self.count, 1, 1)
        add[:, :3, 3] = self.normal(BRIGHTNESS_STD)[:, None]
        result = self.maybe(add)
        contrast = torch.ones(self.count, 4, dtype=torch.float64)
        contrast[:, :3] = self.normal(CONTRAST_STD).exp2()[:, None]
        result = self.maybe(torch.diag_embed(contrast)) @ result
        flip = self.uniform(0, 2).floor()[:, None, None]
        result = self.maybe(eye - 2 * luma * flip) @ result
        result = self.maybe(_turn_about_grey(self.uniform(-math.pi, math.pi))) @ result
        saturation = self.normal(SATURATION_STD).exp2()[:, None, None]
        return self.maybe(luma + (eye - luma) * saturation) @ result


def _others_than_identity(matrices: Tensor) -> Tensor:
    """Indices of the (N, n, n) matrices that do something."""
    eye = torch.eye(matrices.shape[1], dtype=matrices.dtype)
    return (matrices != eye).flatten(1).any(1).nonzero().squeeze(1)


def _matrices(rows: Sequence[Sequence[Tensor | float]], count: int) -> Tensor:
    """(count, n, n) from entries that are (count,) or one number."""
    entries = [torch.as_tensor(e, dtype=torch.float64).expand(count) for row in rows for e in row]
    return torch.stack(entries, dim=1).view(count, len(rows), -1)


def _scaling(x: Tensor, y: Tensor | float) -> Tensor:
    return _matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]], len(x))


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrices([[1, 0, x], [0, 1, y], [0, 0, 1]], len(x))


def _turn(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return _matrices([[c, -s, 0], [s, c, 0], [0, 0, 1]], len(angle))


def _turn_about_grey(angle: Tensor) -> Tensor:
    """Rotations of colours about the axis of greys (Rodrigues' formula); they are circulant."""
    c, s = angle.cos(), angle.sin() / math.sqrt(3)
    a, b, d = (1 + 2 * c) / 3, (1 - c) / 3 - s, (1 - c) / 3 + s
    return _matrices([[a, b, d, 0], [d, a, b, 0], [b, d, a, 0], [0, 0, 0, 1]], len(angle))


# ── resampling ──────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=8)
def _filters(size: int) -> tuple[Tensor, Tensor]:
    """Matrices for one axis: (2 (size + 2 margin), size) up, whose sample 2 (x + margin) is pixel x, and
    (size, 2 (size + 6)) down, to which sample 2 (x + 3) is pixel x. Together they are the identity.
    """
    lowpass = SYM6 / SYM6.sum()
    inside = np.pad(np.arange(size), _margin(size), mode="reflect")
    up = fir_matrix(len(inside), lowpass, up=2, pad=(6, 5)) @ np.eye(size)[inside]
    down = fir_matrix(2 * (size + 6), lowpass[::-1], down=2, pad=(-1, -1))
    return torch.tensor(up, dtype=torch.float32), torch.tensor(down, dtype=torch.float32)


def _margin(size: int) -> int:
    """Reflected pixels beyond each edge."""
    return size // 2 + REACH


def _resample(images: Tensor, geometry: Tensor) -> Tensor:
    """(N, 3, H, W) images whose points come from where (N, 3, 3) `geometry` says."""
    (up_y, down_y), (up_x, down_x) = ([m.to(images) for m in _filters(n)] for n in images.shape[2:])
    height, width = images.shape[2:]
    matrix = geometry[:, :2].to(images)[..., None, None]  # (N, 2, 3, 1, 1)
    y = torch.arange(2 * (height + 6), device=images.device)[:, None] / 2 - 3 - (height - 1) / 2
    x = torch.arange(2 * (width + 6), device=images.device) / 2 - 3 - (width - 1) / 2
    from_x, from_y = (matrix[:, :, 0] * x + matrix[:, :, 1] * y + matrix[:, :, 2]).unbind(1)
    grid = torch.stack([_place(from_x, width), _place(from_y, height)], dim=3)
    fine = up_y @ images @ up_x.T  # (N, 3, 2 (H + 2 margin), 2 (W + 2 margin))
    return down_y @ _Sample.apply(fine, grid) @ down_x.T  # type: ignore[no-any-return, no-untyped-call]


def _place(at: Tensor, size: int) -> Tensor:
    """Pixels from the centre to grid_sample's -1..1 between the outermost samples; too far out, reflected."""
    last, margin = size - 1, _margin(size)
    at = at + last / 2
    reflected = last - (at.remainder(2 * last) - last).abs()  # 0..last
    far = (at < REACH - margin) | (at > last + margin - REACH)
    return 4 * (torch.where(far, reflected, at) + margin) / (2 * (size + 2 * margin) - 1) - 1


class _Sample(torch.autograd.Function):
    """grid_sample, bilinear, as the linear map of the images that it is: it can be differentiated any number
    of times, which R1 through the augmentation needs and PyTorch's cannot.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.size = images.shape[2:]
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (grid,) = ctx.saved_tensors
        return _SampleTransposed.apply(grad, grid, ctx.size), None  # type: ignore[no-untyped-call]


class _SampleTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, grid: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        shape = grad.new_empty(1).expand(*grad.shape[:2], *size)  # only its shape is read
        return torch.ops.aten.grid_sampler_2d_backward(  # type: ignore[no-any-return]
            grad.contiguous(), shape, grid, 0, 0, True, [True, False]
        )[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sample.apply(grad, grid), None, None  # type: ignore[no-untyped-call]


# ── the probability ─────────────────────────────────────────────────────────────────────────────────


class AdaptiveProbability:
    """p by the heuristic r_t = E[sign(D(real))] (§3.1): up where D is too sure of real images, else down.

    Args:
        target: of r_t.
        kimg: thousands of images in which p may move by 1.
        interval: batches between two moves.
        p: to begin with.
    """

    def __init__(self, target: float = 0.6, kimg: float = 500.0, interval: int = 4, p: float = 0.0) -> None:
        self.target, self.kimg, self.interval = target, kimg, interval
        self.p = p
        self.sign_sum, self.images, self.batches = 0.0, 0.0, 0.0  # since the last move

    def observe(self, sign_sum: float, images: int) -> float:
        """Take in a batch and return p, which every `interval`-th batch moves.

        Args:
            sign_sum: sum of sign(D(augmented real)) over the whole batch, of all processes.
            images: real images in the whole batch.
        """
        self.sign_sum += sign_sum
        self.images += images
        self.batches += 1
        if self.batches >= self.interval:
            excess = self.sign_sum / self.images - self.target
            self.p = max(0.0, self.p + float(np.sign(excess)) * self.images / (self.kimg * 1000))
            self.sign_sum, self.images, self.batches = 0.0, 0.0, 0.0
        return self.p

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {name: float(getattr(self, name)) for name in ("p", "sign_sum", "images", "batches")}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a `state`."""
        self.p, self.sign_sum = state["p"], state["sign_sum"]
        self.images, self.batches = state["images"], state["batches"]
