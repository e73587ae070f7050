"""Training of a classifier: AdamW, resumed where it was killed, the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vap.downstream.data import ImagePool, batch_numbers
from vap.errors import VapError
from vap.params import AugmentParams, ClassifierParams, DownstreamParams
from vap.progress import Progress
from vap.training import checkpoint
from vap.training.prefetch import prefetched
from vap.training.seeds import step_generator

BETAS = (0.9, 0.999)  # AdamW's defaults
GRAD_CLIP = 1.0  # norm
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


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear to `peak` over a share `warmup` of the steps, then a cosine to 0 after the last."""
    rise = round(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def fit(
    net: nn.Module,
    pool: ImagePool,
    n_real: int,
    own: ClassifierParams,
    settings: DownstreamParams,
    folder: Path,
    *,
    seed: int,
    device: torch.device,
    label: str,
) -> None:
    """Train `net` on a pool; an interrupted run goes on from its newest checkpoint.

    What a step draws and its learning rate are functions of (seed, step), so a checkpoint holds weights,
    optimiser and step alone.

    Args:
        pool: the real images, then the synthetic ones.
        n_real: how many are real.
        own: steps, batch_size and lr of this classifier; `settings`: what all share.
        folder: where checkpoints are kept.
        label: for progress and errors.

    Raises:
        VapError: the loss is no longer finite, or an image is broken.
    """
    net.to(device).train()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=own.lr, betas=BETAS, weight_decay=settings.weight_decay, fused=True
    )
    done = 0
    if (found := checkpoint.load_newest(folder)) is not None:
        parts, state = found
        net.load_state_dict(parts["model"])
        checkpoint.load_optimizer_tensors(optimizer, names, parts["optimizer"])
        _lay_out(optimizer)
        done = state["step"]

    def batch(step: int) -> tuple[Tensor, Tensor]:
        n_synthetic = len(pool) - n_real
        numbers = batch_numbers(step, own.batch_size, n_real, n_synthetic, settings.real_share, seed)
        images, classes = pool.batch(numbers)
        return augment(images, settings.augment, step_generator(seed, step)), classes

    # on a CPU a thread that makes batches ahead would only take the training's time
    steps = range(done, own.steps)
    batches: Iterable[tuple[Tensor, Tensor]] = map(batch, steps)
    if device.type == "cuda":
        batches = prefetched(batch, done, own.steps)
    with Progress(label, own.steps * own.batch_size, "img") as progress:
        if done:
            progress.skip(done * own.batch_size)
        for step, (images, classes) in zip(steps, batches, strict=True):
            optimizer.param_groups[0]["lr"] = learning_rate(step, own.steps, settings.warmup, own.lr)
            torch.manual_seed(seed + step)  # of stochastic depth, where a network has it
            with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                logits = net(images.to(device))
            loss = F.cross_entropy(
                logits.float(), classes.to(device), label_smoothing=settings.label_smoothing
            )
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), GRAD_CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            value = loss.item()
            if not math.isfinite(value):
                fix = "lower its lr in params.yaml: downstream"
                raise VapError(f"{label}, step {step + 1}", "a loss that is not finite", "a number", fix)
            progress.advance(own.batch_size, f"loss {value:.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0:
                tensors = {
                    "model": net.state_dict(),
                    "optimizer": checkpoint.optimizer_tensors(optimizer, names),
                }
                checkpoint.save(folder, step + 1, tensors, {})


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded moments the memory layout of their parameters, which files do not keep: the fused step
    goes through both in the order of their memory."""
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)


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
