"""How an autoencoder learns from training images: a small one as a whole, or a decoder further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vap.autoencoders.autoencoder import KL, Autoencoder
from vap.common.artifacts import ArrowFile
from vap.common.places import to_tensor
from vap.datasets.images import decode
from vap.training.batch import Movable
from vap.training.plain import PlainLearner, warmup_cosine
from vap.training.seeds import step_generator

if TYPE_CHECKING:
    from accelerate import Accelerator

WARMUP = 20  # steps
BETAS = (0.9, 0.99)  # AdamW's
WEIGHT_DECAY = 0.01


class FitParams(Protocol):
    """What is common to `latents.train` and `latents.finetune_decoder`."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lr(self) -> float: ...


@dataclass
class Images(Movable):
    """A batch."""

    x: Tensor  # (B, 3, H, W) in -1..1
    z: Tensor | None = None  # (B, C, h, w), latents of x

    def map(self, change: Callable[[Tensor], Tensor]) -> Images:
        return Images(change(self.x), None if self.z is None else change(self.z))


class AutoencoderLearner(PlainLearner[Images]):
    """What both have in common: images of the training split, drawn anew for each step.

    Args:
        parameters: of `ae`, those that learn.
        prepared: the images.
    """

    remedy = "a smaller lr in params.yaml: latents"
    stream: tuple[int, ...] = ()  # of random numbers that choose images

    def __init__(
        self,
        ae: Autoencoder,
        parameters: list[nn.Parameter],
        prepared: ArrowFile,
        settings: FitParams,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        super().__init__(ae.net, parameters, BETAS, WEIGHT_DECAY, accelerator, seed)
        self.prepared, self.settings = prepared, settings
        self.rows = prepared.rows_of("train")

    def lr(self, step: int) -> float:
        return warmup_cosine(step, self.settings.steps, WARMUP, self.settings.lr)

    def chosen(self, step: int, part: slice) -> npt.NDArray[np.int64]:
        """This process's rows of a step."""
        rng = np.random.default_rng([self.seed, *self.stream, step])
        return rng.choice(self.rows, self.settings.batch_size)[part]

    def batch(self, step: int, part: slice) -> Images:
        return Images(images_at(self.prepared, self.chosen(step, part)))


class WholeLearner(AutoencoderLearner):
    """Encoder and decoder of a small AutoencoderKL; see KL.loss."""

    def __init__(
        self,
        ae: KL,
        prepared: ArrowFile,
        settings: FitParams,
        kl_weight: float,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        super().__init__(ae, list(ae.net.parameters()), prepared, settings, accelerator, seed)
        self.ae, self.kl_weight = ae, kl_weight

    def loss(self, batch: Images, step: int) -> Tensor:
        return self.ae.loss(batch.x, self.kl_weight, step_generator(self.seed, step))


class DecoderLearner(AutoencoderLearner):
    """f_D alone: mean |f_D(z) - x|, z drawn from the moments that f_E gave.

    Args:
        latents: these moments, in the order of `prepared`.
    """

    stream = (3,)

    def __init__(
        self,
        ae: Autoencoder,
        prepared: ArrowFile,
        latents: ArrowFile,
        settings: FitParams,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        super().__init__(ae, ae.decoder_parameters(), prepared, settings, accelerator, seed)
        self.ae, self.latents = ae, latents

    def batch(self, step: int, part: slice) -> Images:
        C, h, w = self.latents.metadata["shape"]
        rows = self.chosen(step, slice(None))
        flat = np.stack([self.latents.array("moments", int(row)) for row in rows])
        mean, logvar = torch.from_numpy(flat.reshape(-1, 2 * C, h, w)).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=step_generator(self.seed, step))
        z = mean + (0.5 * logvar).exp() * noise
        return Images(images_at(self.prepared, rows[part]), z[part])

    def loss(self, batch: Images, step: int) -> Tensor:
        assert batch.z is not None
        return (self.ae.reconstruct(batch.z) - batch.x).abs().mean()


def images_at(prepared: ArrowFile, rows: npt.NDArray[np.int64]) -> Tensor:
    """(B, 3, H, W) in -1..1."""
    return to_tensor([decode(prepared.value("image", int(row))) for row in rows])
