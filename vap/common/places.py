"""What several stages share: paths of the artefacts, devices, image tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vap.common.errors import VapError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def prepared_path(dataset: str) -> Path:
    return Path("data/prepared") / f"{dataset}.arrow"


def captions_path(dataset: str) -> Path:
    return Path("data/captions") / f"{dataset}.parquet"


def bank_path(dataset: str) -> Path:
    return Path("data/prompts") / f"{dataset}.arrow"


def latents_path(dataset: str) -> Path:
    return Path("data/latents") / f"{dataset}.arrow"


def autoencoder_path(dataset: str) -> Path:
    return Path("data/autoencoders") / dataset


def latents_log_path(dataset: str, part: str) -> Path:
    """Where the live curves of an autoencoder's training stand; no artefact."""
    return Path("logs/latents") / f"{dataset}-{part}"


def model_path(dataset: str, method: str) -> Path:
    return Path("results/models") / dataset / method


def training_log_path(dataset: str, method: str) -> Path:
    """Where a training run's live curves and previews stand; no artefact."""
    return Path("logs/train") / f"{dataset}-{method}"


def is_ablation(method: str, condition: str) -> bool:
    """Whether samples are of Table 2 alone: under other conditions, or of a method named X_without_Y.

    They stand in results/ablation/: Table 1 and the figures depend on all of their folders.
    """
    return condition != "seen" or "_without_" in method


def samples_path(dataset: str, method: str, condition: str) -> Path:
    folder = "ablation" if is_ablation(method, condition) else "samples"
    return Path("results") / folder / dataset / f"{method}-{condition}.arrow"


def preview_path(dataset: str, method: str, condition: str) -> Path:
    return samples_path(dataset, method, condition).with_suffix(".png")


def metrics_path(dataset: str, method: str, condition: str) -> Path:
    folder = "ablation" if is_ablation(method, condition) else "metrics"
    return Path("results") / folder / dataset / f"{method}-{condition}.json"


def floor_path(dataset: str) -> Path:
    """The metrics of real images against real images."""
    return Path("results/metrics") / dataset / "real.json"


class Compute(Protocol):
    """What is asked here of the section `compute` of params.yaml."""

    @property
    def device(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def deterministic(self) -> bool: ...


def set_up_torch(compute: Compute) -> torch.device:
    """Pin the threads, choose the device, and ask for deterministic kernels: on a GPU where params.yaml does.

    Raises:
        VapError: the device that params.yaml names is not there.
    """
    import torch

    torch.set_num_threads(compute.threads)
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = compute.device
    if name == "auto":
        name = "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[name]:
        found = ", ".join(key for key, value in there.items() if value)
        raise VapError(
            f"params.yaml: compute.device: {name}", f"only {found}", "a device that is there", "use auto"
        )
    deterministic = name != "cuda" or compute.deterministic
    # what torch.use_deterministic_algorithms does, without its import of the compiler: 3 s a process
    torch._C._set_deterministic_algorithms(deterministic, warn_only=name != "cuda")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time and changes no result
    if name == "cuda":
        # a compiled network is kept for the next run; cuBLAS is deterministic with a workspace of its own
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path("work/compiled").resolve()))
        if compute.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = not compute.deterministic
        torch.backends.cudnn.deterministic = compute.deterministic
        if (
            "LOCAL_RANK" in os.environ
        ):  # of several processes each has its own GPU, or they share what there is
            os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] images to (B, 3, H, W) float32 in -1..1."""
    import torch

    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(tensor: Tensor) -> np.ndarray:
    """(B, 3, H, W) in about -1..1 to uint8 [B, H, W, 3]."""
    images = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return images.permute(0, 2, 3, 1).cpu().numpy()
