"""The generator of StyleGAN3 (Karras et al., "Alias-Free GAN", NeurIPS 2021, arXiv:2106.12423).

Configurations T (equivariant to translation) and R (to translation and rotation), in plain PyTorch.
The per-image weights of a modulated convolution are never made: the inputs are scaled by the style, the
outputs by the demodulation, which is the same and lets a CPU do one convolution for the batch.
Feature maps are (B, H, W, C), channels last; all is float32, also under autocast.
Shape letters: B batch, H rows, W columns, C channels, Z and D sizes of z and w.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.generators.stylegan.filters import FilteredLeakyReLU, Signal, lowpass, plan, radial_lowpass

OFFICIAL: dict[str, dict[str, Any]] = {  # of 256 x 256 and more (NVlabs/stylegan3, train.py)
    "t": {"config": "t", "channel_base": 32768, "channel_max": 512},
    "r": {"config": "r", "channel_base": 65536, "channel_max": 1024},
}
LRELU_GAIN = math.sqrt(2)
OUTPUT_SCALE = 0.25


# ── linear layers with equalised learning rate ──────────────────────────────────────────────────────


class Dense(nn.Module):
    """A linear layer whose weights are stored with unit variance and scaled in use (equalised lr)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        activate: bool = False,
        lr_multiplier: float = 1.0,
        bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.activate, self.lr_multiplier = activate, lr_multiplier
        self.gain = lr_multiplier / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs) -> (B, outputs)
        x = F.linear(x, self.weight * self.gain, self.bias * self.lr_multiplier)
        return F.leaky_relu(x, 0.2) * LRELU_GAIN if self.activate else x


def normalised(x: Tensor) -> Tensor:
    """(B, N) with mean square 1."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """z and the class to w (App. D.2: 2 layers at a hundredth of the learning rate).

    Args:
        inputs: Z; 0: the class alone.
        num_classes: 0: no classes.
        width: D.
        layers: linear layers with leaky ReLU.
    """

    def __init__(self, inputs: int, num_classes: int, width: int, layers: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed = Dense(num_classes, width) if num_classes else None
        sizes = [inputs + (width if num_classes else 0)] + [width] * layers
        self.layers = nn.Sequential(
            *(Dense(a, b, activate=True, lr_multiplier=0.01) for a, b in pairwise(sizes))
        )

    def forward(self, z: Tensor | None, label: Tensor | None) -> Tensor:
        """(B, Z) and (B,) to (B, D); what the network has not is None."""
        parts = [] if z is None else [normalised(z)]
        if self.embed is not None:
            assert label is not None
            one_hot = F.one_hot(label, self.num_classes).to(self.embed.weight.dtype)
            parts.append(normalised(self.embed(one_hot)))
        return self.layers(torch.cat(parts, dim=1))  # type: ignore[no-any-return]


# ── synthesis ───────────────────────────────────────────────────────────────────────────────────────


class FourierFeatures(nn.Module):
    """The input: fixed random frequencies on a plane that w, and the user, turn and shift (§3.1, App. F)."""

    frequencies: Tensor
    phases: Tensor
    grid: Tensor

    def __init__(self, width: int, signal: Signal) -> None:
        super().__init__()
        C = signal.channels
        self.cutoff, self.nyquist = signal.cutoff, signal.rate / 2
        radius, angle = (
            torch.rand(C).sqrt() * signal.cutoff,
            torch.rand(C) * (2 * math.pi),
        )  # uniform on a disc
        self.register_buffer("frequencies", torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1))
        self.register_buffer("phases", torch.rand(C) - 0.5)  # in turns
        centres = (torch.arange(signal.size) + 0.5 - signal.size / 2) / signal.rate  # image: -0.5..0.5
        self.register_buffer("grid", centres, persistent=False)
        self.weight = nn.Parameter(torch.randn(C, C))
        self.affine = Dense(width, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, w: Tensor, transform: Tensor | None = None) -> Tensor:
        """
        Args:
            w: (B, D).
            transform: (3, 3) or (B, 3, 3), where a point of the image comes from: homogeneous coordinates
                (x, y, 1) in image sides from the centre, y down.

        Returns:
            (B, size, size, C).
        """
        t = self.affine(w)  # (B, 4): cosine, sine, shifts
        cosine, sine, x, y = (t / t[:, :2].norm(dim=1, keepdim=True)).unbind(1)
        turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
        shift = torch.stack([-x, -y], dim=1)[:, :, None]  # before the turn
        if transform is not None:
            shift = shift + transform[..., :2, 2:]
            frequencies = self.frequencies @ (turn @ transform[..., :2, :2])
        else:
            frequencies = self.frequencies @ turn  # (B, C, 2)
        phases = self.phases + (self.frequencies @ (turn @ shift)).squeeze(2)  # (B, C)
        # a frequency that the user's transform has pushed out of band fades
        fade = (1 - (frequencies.norm(dim=2) - self.cutoff) / (self.nyquist - self.cutoff)).clamp(0, 1)
        frequencies, phases = frequencies * (2 * math.pi), phases * (2 * math.pi)
        # sin(a + b) from the sines of rows and columns: 4 * size a channel, not size²
        along_x = self.grid[:, None] * frequencies[:, None, :, 0]  # (B, W, C)
        along_y = self.grid[:, None] * frequencies[:, None, :, 1] + phases[:, None]  # (B, H, C)
        waves = along_y.sin()[:, :, None] * along_x.cos()[:, None]  # (B, H, W, C)
        waves = torch.addcmul(waves, along_y.cos()[:, :, None], along_x.sin()[:, None])
        mix = self.weight.T * (fade / math.sqrt(len(self.phases)))[:, :, None]  # (B, C, C)
        return waves.flatten(1, 2).bmm(mix).view(waves.shape)


class SynthesisLayer(nn.Module):
    """Modulated convolution, then the filtered leaky ReLU (Fig. 4b); toRGB where `last`.

    Args:
        width: D.
        before: what comes in.
        after: what goes out.
        radial: use rotation-invariant filters in down-sampling.
        kernel: side of the convolution's kernel.
        filter_size: taps of a low-pass filter, of the lower of its two rates.
        lrelu_upsampling: rate of the leaky ReLU over the higher rate of input and output.
        magnitude_ema_beta: decay of the mean of the squared input.
        clamp: limit of the activations; None: no limit.
        last: toRGB: a 1 x 1 convolution without demodulation and nonlinearity.
    """

    magnitude_ema: Tensor

    def __init__(
        self,
        width: int,
        before: Signal,
        after: Signal,
        *,
        radial: bool,
        kernel: int,
        filter_size: int,
        lrelu_upsampling: int,
        magnitude_ema_beta: float,
        clamp: float | None,
        last: bool,
    ) -> None:
        super().__init__()
        self.kernel, self.clamp, self.last = kernel, clamp, last
        self.magnitude_ema_beta = magnitude_ema_beta
        self.affine = Dense(width, before.channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude_ema", torch.ones(()))
        if last:
            return
        rate = max(before.rate, after.rate) * lrelu_upsampling
        up, down = rate // before.rate, rate // after.rate
        taps_up, taps_down = filter_size * up, filter_size * down
        size = before.size + kernel - 1  # the convolution is padded in full
        # shifts of the two filters cancel, so that pixels keep their places (App. C.3)
        pad = (after.size - 1) * down + 1 - size * up + taps_up + taps_down - 2
        low = (pad + up) // 2
        design = radial_lowpass if radial else lowpass
        self.activation = FilteredLeakyReLU(
            size,
            up,
            down,
            lowpass(taps_up, before.cutoff, 2 * before.half_width, rate),
            design(taps_down, after.cutoff, 2 * after.half_width, rate),
            pad=(low, pad - low),
            clamp=clamp,
        )

    def forward(self, x: Tensor, w: Tensor, update_ema: bool = False) -> Tensor:
        """(B, H, W, C) and (B, D) to (B, H', W', C')."""
        gain = self.magnitude_ema.rsqrt()
        if update_ema:  # it counts from the next forward on: a batch may be split over processes
            self.magnitude_ema.lerp_(x.detach().square().mean(), 1 - self.magnitude_ema_beta)
        style = self.affine(w)  # (B, C)
        if self.last:
            style = style / math.sqrt(style.shape[1])
            x = self._pointwise(x, style * gain, None)
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        power = self.weight.square().sum((2, 3))  # (C', C)
        demodulation = (style.square() @ power.T + 1e-8).rsqrt()  # (B, C')
        if self.kernel == 1:
            return self.activation(self._pointwise(x, style * gain, demodulation))  # type: ignore[no-any-return]
        x = (x * (style * gain)[:, None, None]).permute(0, 3, 1, 2)  # (B, C, H, W), channels last
        x = F.conv2d(x, self.weight, padding=self.kernel - 1).permute(0, 2, 3, 1)
        x = torch.addcmul(self.bias, x, demodulation[:, None, None])
        return self.activation(x)  # type: ignore[no-any-return]

    def _pointwise(self, x: Tensor, scale: Tensor, demodulation: Tensor | None) -> Tensor:
        """A 1 x 1 convolution: here an image's own weights are the cheaper way."""
        weight = self.weight[:, :, 0, 0].T * scale[:, :, None]  # (B, C, C')
        if demodulation is not None:
            weight = weight * demodulation[:, None]
        return torch.baddbmm(self.bias, x.flatten(1, 2), weight).view(*x.shape[:3], -1)


class Generator(nn.Module):
    """z and a class to an image.

    Args:
        size: side of the images, a power of two, 16 or more.
        num_classes: 0: without classes.
        config: "t": 3 x 3 convolutions, separable filters; "r": 1 x 1 and radial filters, which wants twice
            the channels (`OFFICIAL` has both).
        z_dim, w_dim: Z and D.
        channel_base: channels of a layer times twice its cut-off frequency.
        channel_max: of a layer.
        layers: without the Fourier features and toRGB.
        critical_layers: of these, the last ones, whose cut-off is half the sampling rate.
        mapping_layers: linear layers from z to w.
        first_cutoff, first_stopband: of layer 0, in cycles per image side.
        last_stopband_rel: stop-band of the last layers over their cut-off.
        margin: pixels beyond each edge of the image that the layers compute.
        filter_size, lrelu_upsampling, magnitude_ema_beta, clamp: of `SynthesisLayer`.
        w_avg_beta: decay of the mean of w.

    Raises:
        ValueError: the sizes do not fit each other.
    """

    w_avg: Tensor

    def __init__(
        self,
        *,
        size: int,
        num_classes: int,
        config: str,
        channel_base: int,
        channel_max: int,
        z_dim: int = 512,
        w_dim: int = 512,
        layers: int = 14,
        critical_layers: int = 2,
        mapping_layers: int = 2,
        first_cutoff: float = 2.0,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin: int = 10,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        magnitude_ema_beta: float = 0.999,
        clamp: float | None = 256.0,
        w_avg_beta: float = 0.998,
    ) -> None:
        super().__init__()
        if config not in OFFICIAL:
            raise ValueError(f"config {config!r} is neither 't' nor 'r'")
        if size < 16 or size & (size - 1):
            raise ValueError(f"images of side {size}; expected a power of two, 16 or more")
        if not 1 <= critical_layers < layers:
            raise ValueError(
                f"{critical_layers} critical of {layers} layers; expected 1 or more, but not all"
            )
        self.z_dim, self.num_classes, self.w_avg_beta = z_dim, num_classes, w_avg_beta
        signals = plan(
            size,
            layers,
            critical_layers,
            channel_base,
            channel_max,
            first_cutoff,
            first_stopband,
            last_stopband_rel,
            margin,
        )
        self.z_to_w = Mapping(z_dim, num_classes, w_dim, mapping_layers)
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.input = FourierFeatures(w_dim, signals[0])
        self.layers = nn.ModuleList(
            SynthesisLayer(
                w_dim,
                before,
                after,
                radial=config == "r" and index < layers - critical_layers,
                kernel=3 if config == "t" and index < layers else 1,
                filter_size=filter_size,
                lrelu_upsampling=lrelu_upsampling,
                magnitude_ema_beta=magnitude_ema_beta,
                clamp=clamp,
                last=index == layers,
            )
            for index, (before, after) in enumerate(zip([signals[0], *signals], signals, strict=False))
        )

    def mapping(
        self, z: Tensor, label: Tensor | None = None, truncation_psi: float = 1.0, update_ema: bool = False
    ) -> Tensor:
        """
        Args:
            z: (B, Z), standard normal.
            label: (B,) int64 in 0..num_classes-1; None without classes.
            truncation_psi: 1: w as it is; 0: the mean of all w, of all classes.
            update_ema: move the mean of w towards the batch's.

        Returns:
            (B, D).
        """
        with torch.autocast(z.device.type, enabled=False):
            w: Tensor = self.z_to_w(z.float(), label)
        if update_ema:
            self.w_avg.lerp_(w.detach().mean(0), 1 - self.w_avg_beta)
        return w if truncation_psi == 1 else self.w_avg.lerp(w, truncation_psi)

    def synthesis(self, w: Tensor, transform: Tensor | None = None, update_ema: bool = False) -> Tensor:
        """(B, D) to images (B, 3, size, size), about -1..1; `FourierFeatures` takes the `transform`."""
        with torch.autocast(w.device.type, enabled=False):
            w = w.float()
            x = self.input(w, transform)  # (B, H, W, C)
            for layer in self.layers:
                x = layer(x, w, update_ema)
            return (x * OUTPUT_SCALE).permute(0, 3, 1, 2).contiguous()  # type: ignore[no-any-return]

    def forward(
        self,
        z: Tensor,
        label: Tensor | None = None,
        truncation_psi: float = 1.0,
        update_ema: bool = False,
        transform: Tensor | None = None,
    ) -> Tensor:
        """Images (B, 3, size, size) float32, about -1..1; arguments of `mapping` and `synthesis`."""
        w = self.mapping(z, label, truncation_psi, update_ema)
        return self.synthesis(w, transform, update_ema)

    def ema_buffers(self) -> list[Tensor]:
        """What `update_ema` moves: the mean of w and each layer's input magnitude.

        A move is linear in the batch's mean: with equal parts of a batch on several processes, the mean of
        these buffers over the processes is what one process would have.
        """
        return [self.w_avg, *(layer.magnitude_ema for layer in self.layers)]  # type: ignore[list-item, misc]
