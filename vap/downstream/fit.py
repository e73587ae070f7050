"""What a classifier learns in a step of the loop that all methods share (vap.training.loop)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.common.progress import Progress
from vap.downstream.data import ImagePool, batch_numbers
from vap.params import AugmentParams, ClassifierParams, DownstreamParams
from vap.training.batch import Movable
from vap.training.loop import train
from vap.training.plain import PlainLearner, warmup_cosine
from vap.training.seeds import step_generator
from vap.training.watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

BETAS = (0.9, 0.999)  # AdamW's defaults
LOG_EVERY = 10  # steps
CHECKPOINT_EVERY = 500  # steps


def augment(images: Tensor, settings: AugmentParams, generator: torch.Generator) -> Tensor:
    """Mirror, shift and recolour each image by draws of its own.

    Args:
        images: uint8 (B, 3, H, W), 0..255.

    Returns:
        float32 (B, 3, H, W), 0..1.
    """
    B, _, H, W = images.shape

    def uniform(reach: float) -> Tensor:  # (B, 1, 1, 1) in -reach..reach
        return (2 * torch.rand(B, 1, 1, 1, generator=generator) - 1) * reach

    mirrored = (torch.rand(2, B, generator=generator) < 0.5) & torch.tensor(
        [[settings.flip_horizontal], [settings.flip_vertical]]
    )
    rows, columns = torch.arange(H).expand(B, H), torch.arange(W).expand(B, W)
    rows = torch.where(mirrored[1, :, None], rows.flip(1), rows)
    columns = torch.where(mirrored[0, :, None], columns.flip(1), columns)
    rows = (rows + (uniform(settings.shift) * H).round().long().view(B, 1)).clamp(0, H - 1)
    columns = (columns + (uniform(settings.shift) * W).round().long().view(B, 1)).clamp(0, W - 1)
    index = torch.arange(B).view(B, 1, 1)
    x = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
    x = x.permute(0, 3, 1, 2).float() / 255
    x = x * (1 + uniform(settings.color))  # brightness
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + uniform(settings.color)) + mean  # contrast
    grey = x.mean(1, keepdim=True)
    return ((x - grey) * (1 + uniform(settings.color)) + grey).clamp(0, 1)  # saturation


@dataclass
class LabelledImages(Movable):
    """A batch."""

    images: Tensor  # float32 (B, 3, H, W), 0..1
    labels: Tensor  # int64 (B,)

    def map(self, change: Callable[[Tensor], Tensor]) -> LabelledImages:
        return LabelledImages(change(self.images), change(self.labels))


class ClassifierLearner(PlainLearner[LabelledImages]):
    """Cross-entropy.

    Args:
        pool: the real images, then the synthetic ones.
        n_real: how many are real.
        own: steps, batch_size and lr of this classifier; `settings`: what all share.
    """

    remedy = (
        "a smaller lr under downstream.classifier, a longer downstream.warmup, or downstream.precision fp32"
    )

    def __init__(
        self,
        net: nn.Module,
        pool: ImagePool,
        n_real: int,
        own: ClassifierParams,
        settings: DownstreamParams,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        super().__init__(net, list(net.parameters()), BETAS, settings.weight_decay, accelerator, seed)
        self.pool, self.n_real, self.own, self.settings = pool, n_real, own, settings

    def batch(self, step: int, part: slice) -> LabelledImages:
        n_synthetic, share = len(self.pool) - self.n_real, self.settings.real_share
        numbers = batch_numbers(step, self.own.batch_size, self.n_real, n_synthetic, share, self.seed)
        images, labels = self.pool.batch(numbers)
        images = augment(images, self.settings.augment, step_generator(self.seed, step))
        return LabelledImages(images[part], labels[part])

    def lr(self, step: int) -> float:
        warmup = round(self.settings.warmup * self.own.steps)
        return warmup_cosine(step, self.own.steps, warmup, self.own.lr)

    def loss(self, batch: LabelledImages, step: int) -> Tensor:
        with self.accelerator.autocast():
            logits = self.net(batch.images).float()
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.settings.label_smoothing)


def fit(
    net: nn.Module,
    pool: ImagePool,
    n_real: int,
    own: ClassifierParams,
    settings: DownstreamParams,
    folder: Path,
    *,
    section: str,
    seed: int,
    device: torch.device,
    label: str,
    watch: Watch | None = None,
) -> None:
    """Train `net` in place; an interrupted run goes on from its newest checkpoint.

    Args:
        folder: where checkpoints are kept.
        section: of params.yaml that `own` is.
        label: for progress and errors.
        watch: gets the curves.

    Raises:
        VapError: the loss is no longer finite, or an image is broken.
        Stopped: SIGTERM came; the next run goes on from here.
    """
    train(
        lambda accelerator: ClassifierLearner(net, pool, n_real, own, settings, accelerator, seed),
        own.steps,
        own.batch_size,
        folder,
        section=section,
        seed=seed,
        precision=settings.precision,
        log_every=LOG_EVERY,
        checkpoint_every=CHECKPOINT_EVERY,
        device=str(device),
        label=label,
        watch=watch,
    )


@torch.inference_mode()
def predict(
    net: nn.Module, pool: ImagePool, batch_size: int, device: torch.device, progress: Progress
) -> npt.NDArray[np.float64]:
    """Class probabilities of all images of a pool, in its order: (N, K)."""
    net.to(device).eval()
    parts = []
    for numbers in _chunks(len(pool), batch_size):
        images, _ = pool.batch(numbers)
        logits = net(images.float().div(255).to(device))
        parts.append(logits.double().softmax(1).cpu().numpy())
        progress.advance(len(numbers))
    return np.concatenate(parts)


def _chunks(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))
