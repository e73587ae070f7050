"""The networks whose features the metrics compare.

Each is a module from uint8 (B, 3, H, W), 0..255, to a pair: pooled features (B, d), and logits (B, K) or
None where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.common.errors import VapError, in_brief
from vap.common.weights import clean_copies, read_tensors, require_timm

Extractor = Callable[[Tensor], tuple[Tensor, Tensor | None]]
SIDE = 224  # pixels, of EfficientNet-Lite0's input
# kernel, stride, expansion, channels, repeats (Liu, EfficientNet-Lite, 2020: B0 of arXiv:1905.11946
# without squeeze-and-excitation)
BLOCKS = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


# ── EfficientNet-Lite0 ────────────────────────────────────────────────────────────────────────────


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding, batch norm, and ReLU6 where `active`."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        # of an even side at stride 2, "same" pads one pixel more behind than before
        self.pad = kernel // 2 if stride == 1 else 0
        self.extra = (kernel // 2 - 1, kernel // 2) * 2 if stride == 2 else None
        self.conv = nn.Conv2d(before, after, kernel, stride, self.pad, groups=groups, bias=False)
        self.norm: nn.Module | None = nn.BatchNorm2d(after, eps=1e-3)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        if self.extra is not None:
            x = F.pad(x, self.extra)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu6(x, inplace=True) if self.active else x

    def fold(self) -> None:
        """Merge the batch norm, as it is in evaluation, into the convolution."""
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        norm, conv = self.norm, self.conv
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        self.norm = None


class Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; plus its input where the shapes agree."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = before * expansion
        self.layers = nn.Sequential(
            *([ConvNorm(before, wide, 1)] if expansion > 1 else []),
            ConvNorm(wide, wide, kernel, stride, groups=wide),
            ConvNorm(wide, after, 1, active=False),
        )
        self.residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y + x if self.residual else y


class LiteNet(nn.Module):
    """EfficientNet-Lite0: normalised images (B, 3, 224, 224) to pooled (B, 1280) and logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2)]
        before = 32
        for kernel, stride, expansion, channels, repeats in BLOCKS:
            for i in range(repeats):
                layers.append(Block(before, channels, kernel, 1 if i else stride, expansion))
                before = channels
        self.layers = nn.Sequential(*layers, ConvNorm(before, 1280, 1))
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.layers(x).mean((2, 3))
        return pooled, self.classifier(pooled)


class EfficientNetLite0(nn.Module):
    """LiteNet with the ImageNet weights of a package from the registry.

    Written out here because timm's own takes 4 s to import, which every evaluate job would pay. Batch norms
    are folded into the convolutions and the memory is channels-last: twice as fast on a CPU, with a relative
    difference of about 1e-6.

    Raises:
        VapError: the weights' file is absent or does not fit the network.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with torch.device("meta"):
            net = LiteNet()
        load_in_order(net, path)
        net.eval().requires_grad_(False)
        for part in net.modules():
            if isinstance(part, ConvNorm):
                part.fold()
        self.net = net.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # One image at a time on a CPU: activations stay in its cache (1.6 times as fast as 32 at
        # a time), and an image's features do not depend on the batch it is in, to the bit.
        size = 1 if images.device.type == "cpu" else len(images)
        parts = [self._extract(part) for part in torch.split(images, size)]
        pooled, logits = zip(*parts, strict=True)
        return torch.cat(pooled), torch.cat(logits)

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        x = ((x / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        pooled, logits = self.net(x)
        return pooled, logits


# ── torch-fidelity's and timm's ───────────────────────────────────────────────────────────────────


class Fidelity(nn.Module):
    """torch-fidelity's Inception-v3 ("2048", "logits_unbiased") or VGG16 ("fc2_relu"; no logits).

    Raises:
        VapError: the weights' file is absent or of another network.
    """

    def __init__(self, features: str, path: Path) -> None:
        super().__init__()
        try:
            with clean_copies({path.name: path}, "a file of weights", "get it again") as copies:
                self.net = self._net(features, copies / path.name)
        except RuntimeError as error:
            found = f"weights of another network ({in_brief(error)})"
            raise VapError(path, found, f"torch-fidelity's {features}", FIXES[features]) from None

    @staticmethod
    def _net(features: str, path: Path) -> nn.Module:
        if features == "inception":
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Net

            name, layers = "inception-v3-compat", ["2048", "logits_unbiased"]
        else:
            from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16 as Net

            name, layers = "vgg16", ["fc2_relu"]
        net: nn.Module = Net(name, layers, feature_extractor_weights_path=str(path))
        return net.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = self.net(images)
        return found[0], found[1] if len(found) > 1 else None


FIXES = {
    "inception": "take torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
    "vgg16": "take torchvision's vgg16-397923af.pth",
}


class Timm(nn.Module):
    """Any network of timm: what it pools before its classifier, at the size, mean and standard deviation of
    its pretraining; images are squashed to that size. No logits.

    Args:
        name: timm's, e.g. "vit_small_patch14_dinov2".
        path: its weights, a .safetensors or PyTorch file with timm's names; a classifier in it is left out.

    Raises:
        VapError: timm has no such network, or the weights are absent or of another one.
    """

    def __init__(self, name: str, path: Path) -> None:
        import timm

        super().__init__()
        require_timm(f"params.yaml: evaluate: timm:{name}", name)
        net = timm.create_model(name, num_classes=0)
        state = read_weights(path)
        own = net.state_dict()
        classifier = tuple(f"{part}." for part in _names(net.pretrained_cfg.get("classifier")))
        state = {
            key: value for key, value in state.items() if key in own or not key.startswith(classifier or "\0")
        }
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            found = f"weights of another network ({in_brief(error)})"
            raise VapError(path, found, f"timm's {name}", "name the network of these weights") from None
        self.net = net.eval().requires_grad_(False)
        config = timm.data.resolve_data_config({}, model=net)
        self.size, self.mode = tuple(config["input_size"][1:]), config["interpolation"]
        if self.mode not in ("bilinear", "bicubic"):
            self.mode = "bicubic"
        self.mean: Tensor
        self.std: Tensor
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(config[key]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        x = F.interpolate(images.float(), self.size, mode=self.mode, align_corners=False, antialias=True)
        x = (x / 255 - self.mean) / self.std
        return self.net.forward_head(self.net.forward_features(x), pre_logits=True), None


def _names(classifier: Any) -> Iterator[str]:
    """timm writes one name, several or none."""
    if isinstance(classifier, str):
        yield classifier
    else:
        yield from classifier or ()


# ── weights ───────────────────────────────────────────────────────────────────────────────────────


def load_in_order(net: nn.Module, path: Path) -> None:
    """Load a file's tensors into a network that has them in the same order under other names.

    Raises:
        VapError: the file is absent or unreadable, or its tensors differ in number, shape or type.
    """
    found = read_weights(path)
    own = net.state_dict()
    differ = [
        name
        for (name, mine), theirs in zip(own.items(), found.values(), strict=False)
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype
    ]
    if len(found) != len(own) or differ:
        what = f"{len(found)} tensors" + (f", another shape for {differ[0]}" if differ else "")
        expected = f"the {len(own)} of {type(net).__name__}"
        raise VapError(path, what, expected, "install the versions of requirements.lock")
    net.load_state_dict(dict(zip(own, found.values(), strict=True)), assign=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, safetensors or PyTorch's, which may run no code.

    Raises:
        VapError: the file is absent or holds anything but named tensors.
    """
    return read_tensors(path, "a file of weights", "get it again")
