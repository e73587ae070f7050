"""How a generator and a discriminator learn from each other, as StyleGAN2-ADA and StyleGAN3 do.

Non-saturating logistic loss (Goodfellow et al., 2014), R1 (Mescheder et al., 2018) every few steps with the
optimiser's settings adapted to it (Karras et al., 2020, arXiv:1912.04958, App. B), adaptive augmentation of
all that the discriminator sees (Karras et al., 2020, arXiv:2006.06676). Shape letters: B batch, Z size of z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.common.errors import VapError
from vap.generators.stylegan.augment import AdaptiveProbability, augment
from vap.params import ComputeParams, TrainParams
from vap.training import checkpoint
from vap.training.batch import Movable
from vap.training.data import TrainingData, batch_rows
from vap.training.ema import Ema
from vap.training.loop import Learner
from vap.training.seeds import DISCRIMINATOR, GENERATOR, REAL, step_generator

if TYPE_CHECKING:
    from accelerate import Accelerator


class GanTrainParams(Protocol):
    """What the loop reads of a method's train section; see the section's comments for each."""

    steps: int
    batch_size: int
    lr: float
    lr_discriminator: float
    betas: list[float]
    ema_kimg: float
    r1_gamma: float
    r1_interval: int
    ada_target: float | None
    ada_kimg: float
    blur_sigma: float
    blur_fade_kimg: float
    grad_clip: float | None


@dataclass
class GanBatch(Movable):
    """Real images with their classes, and what the generator's images of this step are drawn from."""

    real: Tensor  # (B, 3, H, W) in -1..1
    label: Tensor  # (B,) int64
    z: Tensor  # (B, 2, Z): for the generator's step, and for the discriminator's
    z_label: Tensor  # (B, 2) int64, as frequent as in the training split

    def map(self, change: Callable[[Tensor], Tensor]) -> GanBatch:
        return GanBatch(change(self.real), change(self.label), change(self.z), change(self.z_label))


def require_fit(precision: str, batch_size: int, groups: int, processes: int, section: str) -> None:
    """Refuse settings that adversarial training cannot take.

    Args:
        precision: of params.yaml: train.
        groups: images of a group of the discriminator.
        section: of params.yaml that has batch_size.

    Raises:
        VapError: the precision is fp16, or several processes would divide a group.
    """
    if precision == "fp16":
        fix = "set it to bf16 or fp32"
        raise VapError("params.yaml: train.precision", "fp16", "bf16 or fp32, for two networks", fix)
    if processes > 1 and batch_size % (processes * groups):
        raise VapError(
            f"params.yaml: {section}.batch_size",
            str(batch_size),
            f"a multiple of {processes * groups}: whole groups of {groups} in each of {processes} processes",
            "change it, or compute.processes",
        )


class GanLearner(Learner[GanBatch]):
    """A generator and its discriminator; the generator's weights are averaged.

    Args:
        generator: called as generator(z, label, update_ema=…), with `z_dim` and `ema_buffers()`.
        discriminator: called as discriminator(images, label); a batch is cut at multiples of `group_size`.
        own: the method's train section.
        section: its name in params.yaml.
    """

    remedy = "smaller lr and lr_discriminator, a larger r1_gamma, grad_clip: 1.0, or precision fp32"

    def __init__(
        self,
        generator: Any,
        discriminator: Any,
        data: TrainingData,
        own: GanTrainParams,
        section: str,
        shared: TrainParams,
        compute: ComputeParams,
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        groups = discriminator.group_size
        require_fit(shared.precision, own.batch_size, groups, accelerator.num_processes, section)
        self.data, self.own, self.seed = data, own, seed
        self.accelerator, device = accelerator, accelerator.device
        self.generator = generator.to(device).train()
        self.discriminator = discriminator.to(device).train()
        lazy = own.r1_interval / (own.r1_interval + 1)  # so that R1's steps come on top of the others
        self.optimizers = {
            "generator": _adam(generator, own.lr, own.betas),
            "discriminator": _adam(
                discriminator, own.lr_discriminator * lazy, [beta**lazy for beta in own.betas]
            ),
        }
        decay = 0.5 ** (own.batch_size / max(own.ema_kimg * 1000, 1e-8))
        self.ema = Ema(generator, decay, shared.ema_warmup)
        self.ada = AdaptiveProbability(own.ada_target or 0.0, own.ada_kimg)
        self.r1 = 0.0  # of the last step that had it
        self.piece = max((compute.micro_batch or own.batch_size) // groups * groups, groups)
        mode = compute.compile_mode(accelerator.device.type, own.steps)
        if mode is not None:  # the discriminator is differentiated twice, which compiled code is not
            self.generator.compile(mode=mode)

    def batch(self, step: int, part: slice) -> GanBatch:
        size = self.own.batch_size
        generator = step_generator(self.seed, step)
        rows = batch_rows(self.seed, step, len(self.data.rows), size)
        real, rows = self.data.examples(rows, generator, part)
        z = torch.randn((size, 2, self.generator.z_dim), generator=generator)[part]
        places = torch.rand((size, 2), generator=generator, dtype=torch.float64)[part]
        z_label = self.data.labels_at(places.flatten()).reshape(-1, 2)
        return GanBatch(real, torch.from_numpy(self.data.labels[rows]), z, z_label)

    def lr(self, step: int) -> float:
        return self.own.lr

    def step(self, batch: GanBatch, step: int) -> dict[str, Tensor]:
        logs: dict[str, Tensor] = {}
        self._begin("generator")
        for piece, (x, c, share) in self._pieces(batch, 0):
            fake = self._generate(x, c)
            loss = F.softplus(-self._judge(fake, c, step, GENERATOR, piece)).mean() * share
            loss.backward()  # type: ignore[no-untyped-call]
            _add(logs, loss=loss)
        logs["grad_norm"] = self._finish("generator")

        self._begin("discriminator")
        buffers = self.generator.ema_buffers()
        before, after = ([buffer.clone() for buffer in buffers] for _ in range(2))
        for piece, (x, c, share) in self._pieces(batch, 1):
            with torch.no_grad():
                fake = self._generate(x, c, update_ema=True)
                for buffer, old, new in zip(buffers, before, after, strict=True):  # each piece from the same
                    new += (buffer - old) * share
                    buffer.copy_(old)
            loss = F.softplus(self._judge(fake, c, step, DISCRIMINATOR, piece)).mean() * share
            real, label = batch.real[piece], batch.label[piece]
            logits = self._judge(real, label, step, REAL, piece)
            loss = loss + F.softplus(-logits).mean() * share
            loss.backward()  # type: ignore[no-untyped-call]
            _add(logs, d_loss=loss, real_sign=logits.detach().float().sign().mean() * share)
        logs["d_grad_norm"] = self._finish("discriminator")
        for buffer, new in zip(buffers, after, strict=True):
            buffer.copy_(self.accelerator.reduce(new, "mean"))

        if step % self.own.r1_interval == 0:
            self._regularize(batch, step)
        self.ema.update(self.generator, step + 1)
        if self.own.ada_target is not None:
            sign = self.accelerator.reduce(logs["real_sign"], "mean").item()
            self.ada.observe(sign * self.own.batch_size, self.own.batch_size)
        device = batch.real.device
        return {
            **logs,
            "r1": torch.tensor(self.r1, device=device),
            "augment_p": torch.tensor(self.ada.p, device=device),
        }

    # ── the parts of a step ─────────────────────────────────────────────────────────────────────────

    def _pieces(self, batch: GanBatch, which: int) -> list[tuple[slice, tuple[Tensor, Tensor, float]]]:
        """Parts of the batch: their places, and z, class and share of each."""
        B = len(batch.real)
        pieces = [slice(start, min(start + self.piece, B)) for start in range(0, B, self.piece)]
        return [
            (piece, (batch.z[piece, which], batch.z_label[piece, which], (piece.stop - piece.start) / B))
            for piece in pieces
        ]

    def _generate(self, z: Tensor, label: Tensor, update_ema: bool = False) -> Tensor:
        with self.accelerator.autocast():
            return self.generator(z, label, update_ema=update_ema).float()  # type: ignore[no-any-return]

    def _judge(self, images: Tensor, label: Tensor, step: int, stream: int, piece: slice) -> Tensor:
        """The discriminator's logits (b,) of augmented images."""
        images = blurred(images, self._blur(step))
        if self.own.ada_target is not None:
            first = self.accelerator.process_index * (self.own.batch_size // self.accelerator.num_processes)
            part = slice(first + piece.start, first + piece.stop)
            draws = step_generator(self.seed, step, stream)
            images = augment(images, self.ada.p, draws, part=part, total=self.own.batch_size)
        with self.accelerator.autocast():
            return self.discriminator(images, label).float()  # type: ignore[no-any-return]

    def _blur(self, step: int) -> float:
        """Standard deviation in pixels, fading out (StyleGAN3, App. F: configuration R)."""
        faded = step * self.own.batch_size / max(self.own.blur_fade_kimg * 1000, 1e-8)
        return self.own.blur_sigma * max(1 - faded, 0.0)

    def _regularize(self, batch: GanBatch, step: int) -> None:
        """gamma / 2 |grad D(x)|², times the steps that it stands for."""
        self._begin("discriminator")
        found = torch.zeros((), device=batch.real.device)
        for piece, (_, _, share) in self._pieces(batch, 1):
            real = batch.real[piece].detach().requires_grad_()
            logits = self._judge(real, batch.label[piece], step, REAL, piece)
            (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
            penalty = gradient.square().sum((1, 2, 3)).mean() * share
            (penalty * (self.own.r1_gamma / 2 * self.own.r1_interval)).backward()  # type: ignore[no-untyped-call]
            found = found + penalty.detach()
        self._finish("discriminator")
        self.r1 = self.accelerator.reduce(found, "mean").item()

    def _begin(self, name: str) -> None:
        for network in (self.generator, self.discriminator):
            network.requires_grad_(network is getattr(self, name))
        self.optimizers[name].zero_grad(set_to_none=True)

    def _finish(self, name: str) -> Tensor:
        """Average the gradients over the processes and step; their norm."""
        parameters = [p for p in getattr(self, name).parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters])
            flat = self.accelerator.reduce(flat, "mean")
            for p, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                p.grad.copy_(mean.reshape(p.shape))
        limit = math.inf if self.own.grad_clip is None else self.own.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizers[name].step()
        return norm.detach()

    # ── what a checkpoint holds ─────────────────────────────────────────────────────────────────────

    def parts(self) -> dict[str, dict[str, Tensor]]:
        found = {"ema": self.ema.state()}
        for name, optimizer in self.optimizers.items():
            network = getattr(self, name)
            names = [key for key, _ in network.named_parameters()]
            found[name] = network.state_dict()
            found[f"{name}-optimizer"] = checkpoint.optimizer_tensors(optimizer, names)
        return found

    def state(self) -> dict[str, Any]:
        return {"ada": self.ada.state(), "r1": self.r1}

    def load(self, parts: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        self.ema.load(parts["ema"])
        for name, optimizer in self.optimizers.items():
            network = getattr(self, name)
            network.load_state_dict(parts[name])
            names = [key for key, _ in network.named_parameters()]
            checkpoint.load_optimizer_tensors(optimizer, names, parts[f"{name}-optimizer"])
        self.ada.load(state["ada"])
        self.r1 = state["r1"]

    def weights(self) -> dict[str, Tensor]:
        return {**self.generator.state_dict(), **self.ema.state()}  # buffers as they are


def _adam(network: nn.Module, lr: float, betas: list[float]) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=lr, betas=(betas[0], betas[1]), eps=1e-8, fused=True)


def _add(logs: dict[str, Tensor], **values: Tensor) -> None:
    for name, value in values.items():
        logs[name] = logs.get(name, 0) + value.detach()


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (B, 3, H, W) after a Gaussian of 2^-(x / sigma)², cut at 3 sigma; unchanged below 1/3 pixel."""
    radius = int(np.floor(3 * sigma))
    if not radius:
        return images
    x = torch.arange(-radius, radius + 1, dtype=torch.float32, device=images.device)
    taps = (-((x / sigma) ** 2)).exp2()
    taps = (taps / taps.sum()).expand(images.shape[1], 1, 1, -1)
    C = images.shape[1]
    images = F.conv2d(images, taps, padding=(0, radius), groups=C)
    return F.conv2d(images, taps.transpose(2, 3), padding=(radius, 0), groups=C)
