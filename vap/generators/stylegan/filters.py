"""The signal processing of StyleGAN3 (Karras et al., "Alias-Free GAN", NeurIPS 2021, arXiv:2106.12423).

Low-pass filters, resampling with them, and the leaky ReLU that is computed at a higher sampling rate.
Resampling a line of pixels with a FIR filter is one banded matrix: two matrix products resample an image,
which a CPU does several times faster than depthwise convolutions, forward and backward.
Shape letters: B batch, H rows, W columns, C channels; feature maps are (B, H, W, C), channels last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float64]
BLOCK = 32  # rows and columns, at least, of a banded matrix's blocks; the zeros beside them are skipped


# ── the plan of the layers ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Signal:
    """What flows between two layers.

    Attributes:
        cutoff: f_c, in cycles per image side.
        half_width: f_h of the transition band, in the same unit.
        rate: sampling rate s, in pixels per image side.
        size: side of the feature maps in pixels, with the margin.
        channels: C.
    """

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


def plan(
    size: int,
    layers: int,
    critical_layers: int,
    channel_base: int,
    channel_max: int,
    first_cutoff: float = 2.0,
    first_stopband: float = 2**2.1,
    last_stopband_rel: float = 2**0.3,
    margin: int = 10,
) -> list[Signal]:
    """Output of each layer 0 … `layers`, the last one toRGB's (App. D.1 and Fig. 5c).

    Cut-off and stop-band frequencies grow geometrically and stay for the critically sampled layers. The input
    of layer 0, the Fourier features, has the signal of its output.
    """
    last = np.array([size / 2, size / 2 * last_stopband_rel])
    first = np.array([first_cutoff, first_stopband])
    grown = np.minimum(np.arange(layers + 1) / (layers - critical_layers), 1)[:, None]
    signals = []
    for index, (cutoff, stopband) in enumerate(first * (last / first) ** grown):
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, size)))
        signals.append(
            Signal(
                cutoff=float(cutoff),
                half_width=float(max(stopband, rate / 2) - cutoff),
                rate=rate,
                size=size if index >= layers - 1 else rate + 2 * margin,
                channels=3 if index == layers else int(np.rint(min(channel_base / 2 / cutoff, channel_max))),
            )
        )
    return signals


# ── filter design ───────────────────────────────────────────────────────────────────────────────────


def kaiser_beta(taps: int, width: float, rate: float) -> float:
    """Shape of the Kaiser window for `taps` and a transition band of `width` (Eq. 5 and 6, App. C.1)."""
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95  # dB
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return float(0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21))
    return 0.0


def lowpass(taps: int, cutoff: float, width: float, rate: float) -> Array:
    """Kaiser-windowed sinc, scaled to gain 1 at frequency 0; equal to scipy.signal.firwin.

    Args:
        taps: length of the filter.
        cutoff: f_c, in the unit of `rate`.
        width: of the transition band, 2 f_h.
        rate: sampling rate s of the signal that is filtered.

    Returns:
        (taps,).
    """
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    kernel = np.sinc(2 * cutoff * x) * np.kaiser(taps, kaiser_beta(taps, width, rate))
    return kernel / kernel.sum()  # type: ignore[no-any-return]


def radial_lowpass(taps: int, cutoff: float, width: float, rate: float) -> Array:
    """The rotation-invariant low-pass of configuration R: jinc, under a separable window (App. C.2).

    Arguments as of `lowpass`; `taps` is even. Uses scipy for the Bessel function.

    Returns:
        (taps, taps), symmetric.
    """
    from scipy.special import j1

    if taps % 2:
        raise ValueError(f"a radial filter of {taps} taps has its centre on a pixel; expected an even number")
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(x[:, None], x[None, :])
    window = np.kaiser(taps, kaiser_beta(taps, width, rate))
    kernel = j1(2 * math.pi * cutoff * radius) / radius * np.outer(window, window)
    return kernel / kernel.sum()  # type: ignore[no-any-return]


def separable_terms(kernel: Array, tolerance: float = 1e-8) -> list[tuple[float, Array]]:
    """A symmetric (taps, taps) filter as the sum of weight * outer(line, line), down to `tolerance`."""
    weights, lines = np.linalg.eigh(kernel)
    large = np.abs(weights) > tolerance * np.abs(weights).max()
    return [(float(w), line) for w, line in zip(weights[large], lines.T[large], strict=True)]


# ── resampling ──────────────────────────────────────────────────────────────────────────────────────


def fir_matrix(
    length: int, kernel: Array, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Array:
    """The matrix that resamples a line: zeros in between, padding, filter, every `down`-th sample.

    Args:
        length: of the line that goes in.
        kernel: (taps,) filter; it is convolved, without padding of its own.
        up: factor of up-sampling; its gain keeps the mean.
        down: factor of down-sampling.
        pad: zeros before and behind, counted after up-sampling; negative: samples cut off.

    Returns:
        ((length * up + pad - taps) // down + 1, length).
    """
    matrix = np.zeros(((length * up + sum(pad) - len(kernel)) // down + 1, length))
    for tap, value in enumerate(kernel[::-1]):
        at = np.arange(len(matrix)) * down + tap - pad[0]  # among the samples and the zeros between them
        rows = np.flatnonzero((at % up == 0) & (at >= 0) & (at < length * up))
        matrix[rows, at[rows] // up] = up * value
    return matrix


def bands(matrix: Array) -> list[tuple[slice, slice]]:
    """Blocks of rows with the columns outside which they are zero."""
    found, step = [], max(BLOCK, BLOCK * matrix.shape[0] // matrix.shape[1])
    for start in range(0, len(matrix), step):
        rows = slice(start, min(start + step, len(matrix)))
        used = np.flatnonzero(matrix[rows].any(0))
        found.append((rows, slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1)))
    return found


class Banded(nn.Module):
    """A fixed banded matrix (out, in), and its transpose."""

    matrix: Tensor

    def __init__(self, matrix: Array) -> None:
        super().__init__()
        self.rows, self.columns = matrix.shape
        self.register_buffer("matrix", torch.tensor(matrix, dtype=torch.float32), persistent=False)
        self.blocks, self.transposed = bands(matrix), bands(matrix.T)

    def forward(self, x: Tensor) -> Tensor:
        """(*, in, N) to (*, out, N), with gradients of any order."""
        parts = [self.matrix[rows, columns] @ x[..., columns, :] for rows, columns in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    def write(self, x: Tensor, out: Tensor, transpose: bool = False) -> None:
        """The same, or the transpose's product, into `out`, which no gradient follows."""
        matrix, blocks = (self.matrix.T, self.transposed) if transpose else (self.matrix, self.blocks)
        for rows, columns in blocks:
            torch.matmul(matrix[rows, columns], x[..., columns, :], out=out[..., rows, :])


def resample(
    first: Banded, second: Banded, x: Tensor, transpose: bool = False, out: Tensor | None = None
) -> Tensor:
    """(*, H, W, C) to (*, W', H', C), turned over: `first` along H, `second` along W.

    Products along the first axis are large and dense, and a copy that turns the half-way result is cheap.
    """
    *lead, _, W, C = x.shape
    height, width = (first.columns, second.columns) if transpose else (first.rows, second.rows)
    half = x.new_empty(*lead, height, W * C)
    first.write(x.flatten(-2), half, transpose)
    turned = half.view(*lead, height, W, C).transpose(-3, -2).contiguous()  # (*, W, H', C)
    result = x.new_empty(*lead, width, height, C) if out is None else out
    second.write(turned.flatten(-2), result.view(*lead, width, -1), transpose)
    return result


# ── the nonlinearity ────────────────────────────────────────────────────────────────────────────────


class FilteredLeakyReLU(nn.Module):
    """Up-sample, leaky ReLU, clamp, down-sample: a nonlinearity that does not alias (§3.2, Fig. 4b).

    The gain sqrt(2) comes before the clamp. Its gradient cannot be differentiated again.

    Args:
        in_size: side of the maps that go in.
        up, down: factors.
        up_kernel: (taps,).
        down_kernel: (taps,), or (taps, taps) of a radial filter.
        pad: of the up-sampled maps, before the filters.
        slope: of the negative side.
        clamp: limit of the activations, either sign; None: no limit.
    """

    def __init__(
        self,
        in_size: int,
        up: int,
        down: int,
        up_kernel: Array,
        down_kernel: Array,
        pad: tuple[int, int],
        slope: float = 0.2,
        clamp: float | None = 256.0,
    ) -> None:
        super().__init__()
        gain = math.sqrt(2)
        self.slope = slope
        self.limit = math.inf if clamp is None else clamp / gain
        matrix = fir_matrix(in_size, up_kernel, up=up, pad=pad)
        self.up = Banded(matrix)
        terms = [(1.0, down_kernel)] if down_kernel.ndim == 1 else separable_terms(down_kernel)
        lines = [(weight, fir_matrix(len(matrix), line, down=down)) for weight, line in terms]
        self.down_first = nn.ModuleList(Banded(gain * weight * line) for weight, line in lines)
        self.down_second = nn.ModuleList(Banded(line) for _, line in lines)
        self.dense_size, self.out_size = len(matrix), len(lines[0][1])
        self.growth = float(np.abs(matrix).sum(1).max()) ** 2  # no peak grows by more in up-sampling

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, in, C) to (B, out, out, C)."""
        return _FilteredLeakyReLU.apply(x, self)  # type: ignore[no-any-return, no-untyped-call]

    def may_clamp(self, x: Tensor) -> bool:
        """Whether up-sampling can reach the limit; on a GPU always: to look there is to wait."""
        return self.limit < math.inf and (x.is_cuda or float(_peak(x)) * self.growth > self.limit)


class _FilteredLeakyReLU(torch.autograd.Function):
    """By hand, because what lies between the filters is large: it is made for one image after the other (on a
    GPU: for all), and made again in the backward pass instead of kept. It lies turned over.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FilteredLeakyReLU) -> Tensor:
        x = x.contiguous()
        ctx.layer, ctx.may_clamp = layer, layer.may_clamp(x)
        ctx.save_for_backward(x)
        result = x.new_empty(len(x), layer.out_size, layer.out_size, x.shape[-1])
        for image in _images(x):
            dense = F.leaky_relu_(resample(layer.up, layer.up, x[image]), layer.slope)  # (L, L, C)
            if ctx.may_clamp:
                dense.clamp_(-layer.limit, layer.limit)
            for term, (first, second) in enumerate(zip(layer.down_first, layer.down_second, strict=True)):
                if term == 0:
                    resample(first, second, dense, out=result[image])  # type: ignore[arg-type]
                else:
                    result[image] += resample(first, second, dense)  # type: ignore[arg-type]
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer, (x,) = ctx.layer, ctx.saved_tensors
        result, grad = torch.empty_like(x), grad.contiguous()
        for image in _images(x):
            before = resample(layer.up, layer.up, x[image])
            terms = zip(layer.down_first, layer.down_second, strict=True)
            dense = _sum(resample(second, first, grad[image], True) for first, second in terms)
            torch.ops.aten.leaky_relu_backward.grad_input(dense, before, layer.slope, False, grad_input=dense)
            if ctx.may_clamp:
                dense.masked_fill_(F.leaky_relu_(before, layer.slope).abs_() > layer.limit, 0)
            resample(layer.up, layer.up, dense, True, out=result[image])
        return result, None


def _images(x: Tensor) -> list[int] | list[slice]:
    """How a batch is gone through: a CPU's cache holds one image."""
    return [slice(None)] if x.is_cuda else list(range(len(x)))


def _sum(terms: Iterator[Tensor]) -> Tensor:
    total = next(terms)
    for term in terms:
        total += term
    return total


def _peak(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x)
    return torch.maximum(-low, high)
