"""StyleGAN2's residual discriminator (Karras et al., CVPR 2020), kept by StyleGAN3, with a projected class.

Every operation can be differentiated twice (R1). The original's clamp of activations, a guard of float16, is
left out. Feature maps are (B, H, W, C), channels last.
Shape letters: B batch, H rows, W columns, C channels, M size of the class's vector.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.generators.stylegan.filters import Banded, fir_matrix
from vap.generators.stylegan.network import LRELU_GAIN, Dense, Mapping

BLUR = np.array([1.0, 3.0, 3.0, 1.0]) / 8
OFFICIAL = {"channel_base": 32768, "channel_max": 512, "group_size": 4}  # NVlabs/stylegan3, train.py


class Conv(nn.Module):
    """A convolution with equalised learning rate, then leaky ReLU where `activate`, times `gain`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        activate: bool = True,
        stride: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if activate else None
        self.gain = gain * (
            LRELU_GAIN if activate else 1.0
        )  # before leaky ReLU, which a positive gain passes
        self.stride, self.padding = stride, 0 if stride > 1 else kernel // 2

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H', W', C')
        weight = self.weight * (self.gain / math.sqrt(self.weight[0].numel()))
        if self.weight.shape[2] == 1:
            x = F.linear(x, weight[:, :, 0, 0], None if self.bias is None else self.bias * self.gain)
        else:
            bias = None if self.bias is None else self.bias * self.gain
            x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, self.stride, self.padding).permute(0, 2, 3, 1)
        return x if self.bias is None else F.leaky_relu(x, 0.2)


class Blur(nn.Module):
    """[1, 3, 3, 1] along both axes, after padding with zeros.

    Args:
        size: side of the maps that go in.
        down: 2: every second pixel is kept.
        pad: at each edge.
    """

    def __init__(self, size: int, down: int, pad: int) -> None:
        super().__init__()
        self.line = Banded(fir_matrix(size, BLUR, down=down, pad=(pad, pad)))

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H', W', C)
        x = self.line(x.flatten(2)).unflatten(2, x.shape[2:])
        return self.line(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Halves the side; the sum of both branches keeps the variance."""

    def __init__(self, size: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.blur_skip = Blur(size, down=2, pad=1)
        self.skip = Conv(inputs, outputs, 1, activate=False, gain=math.sqrt(0.5))
        self.conv0 = Conv(inputs, inputs, 3)
        self.blur = Blur(size, down=1, pad=2)
        self.conv1 = Conv(inputs, outputs, 3, stride=2, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C) -> (B, H/2, W/2, C')
        return self.skip(self.blur_skip(x)) + self.conv1(self.blur(self.conv0(x)))  # type: ignore[no-any-return]


HALF_LEVELS = 4  # blocks, from the largest maps down, as the original's num_fp16_res


def minibatch_deviation(x: Tensor, group_size: int) -> Tensor:
    """Append the standard deviation within an image's group, averaged over the group's values, as a channel.

    A group is `group_size` CONSECUTIVE images (0..3, 4..7, …), the last one may be smaller: a batch that is
    split over processes at multiples of `group_size` gives the same. The original puts the images i,
    i + B/group_size, … into a group; which images of a random batch meet is all that differs.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, H, W, C + 1).
    """
    deviations = []
    for group in torch.split(x, group_size):
        deviation = (group.var(0, unbiased=False) + 1e-8).sqrt().mean()
        deviations.append(deviation.expand(len(group)))
    channel = torch.cat(deviations)[:, None, None, None].expand(*x.shape[:3], 1)
    return torch.cat([x, channel], dim=3)


class Discriminator(nn.Module):
    """An image and its class to a logit: real above 0.

    Under autocast the first HALF_LEVELS blocks take part, the others and all that follows are float32.

    Args:
        size: side of the images, a power of two, 8 or more.
        num_classes: 0: without classes.
        channel_base: channels times the side of the maps.
        channel_max: of a layer.
        group_size: images of a group of `minibatch_deviation`.
        cmap_dim: M; None: the channels of the 4 x 4 maps, as the original.
        mapping_layers: linear layers from the class to its vector.

    Raises:
        ValueError: `size` cannot be halved down to 4.
    """

    def __init__(
        self,
        *,
        size: int,
        num_classes: int,
        channel_base: int,
        channel_max: int,
        group_size: int = 4,
        cmap_dim: int | None = None,
        mapping_layers: int = 8,
    ) -> None:
        super().__init__()
        if size < 8 or size & (size - 1):
            raise ValueError(f"images of side {size}; expected a power of two, 8 or more")
        sizes = [size >> level for level in range(int(math.log2(size)) - 1)]  # size, …, 4
        widths = [min(channel_base // side, channel_max) for side in sizes]
        last = widths[-1]
        self.group_size = group_size
        self.cmap_dim = (cmap_dim or last) if num_classes else 0
        self.from_rgb = Conv(3, widths[0], 1)
        self.blocks = nn.Sequential(
            *(Block(s, a, b) for s, a, b in zip(sizes, widths, widths[1:], strict=False))
        )
        self.conv = Conv(last + 1, last, 3)
        self.dense = Dense(last * 16, last, activate=True)
        self.out = Dense(last, self.cmap_dim or 1)
        self.class_to_map = Mapping(0, num_classes, self.cmap_dim, mapping_layers) if num_classes else None

    def forward(self, images: Tensor, label: Tensor | None = None) -> Tensor:
        """
        Args:
            images: (B, 3, size, size), about -1..1.
            label: (B,) int64 in 0..num_classes-1; None without classes.

        Returns:
            (B,) logits.
        """
        x = self.from_rgb(images.permute(0, 2, 3, 1))
        for block in self.blocks[:HALF_LEVELS]:
            x = block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.out.weight.dtype)
            for block in self.blocks[HALF_LEVELS:]:
                x = block(x)  # (B, 4, 4, C) at last
            x = self.conv(minibatch_deviation(x, self.group_size))
            x = self.out(self.dense(x.permute(0, 3, 1, 2).flatten(1)))  # (B, M)
            if self.class_to_map is None:
                return x.squeeze(1)  # type: ignore[no-any-return]
            return (x * self.class_to_map(None, label)).sum(1) / math.sqrt(self.cmap_dim)  # type: ignore[no-any-return]
