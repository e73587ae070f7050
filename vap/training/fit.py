"""A plain training loop for the autoencoder: AdamW, cosine to zero, resumed where it was killed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from vap.errors import VapError
from vap.progress import Progress
from vap.training import checkpoint

WARMUP = 20  # steps
CHECKPOINT_EVERY = 500  # steps
GRAD_CLIP = 1.0  # norm


class FitParams(Protocol):
    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...


def fit(
    net: nn.Module,
    parameters: Sequence[nn.Parameter],
    loss_of: Callable[[int], Tensor],
    settings: FitParams,
    folder: Path,
    label: str,
) -> None:
    """Train `parameters` of `net`; a run that was done before is taken as it is.

    Args:
        loss_of: step to a scalar loss, a function of the step and the weights alone.
        settings: `steps`, and `lr`, the peak of the learning rate.
        folder: where checkpoints are kept.
        label: for progress and errors.

    Raises:
        VapError: the loss is no longer finite.
    """
    trained = {id(p) for p in parameters}
    names = [name for name, p in net.named_parameters() if id(p) in trained]
    optimizer = torch.optim.AdamW(
        [p for p in net.parameters() if id(p) in trained], lr=settings.lr, betas=(0.9, 0.99), fused=True
    )
    done = 0
    if (found := checkpoint.load_newest(folder)) is not None:
        parts, state = found
        net.load_state_dict(parts["model"])
        checkpoint.load_optimizer_tensors(optimizer, names, parts["optimizer"])
        done = state["step"]
    with Progress(label, settings.steps, "step") as progress:
        if done:
            progress.skip(done)
        while done < settings.steps:
            cosine = 0.5 * (1 + math.cos(math.pi * done / settings.steps))
            optimizer.param_groups[0]["lr"] = settings.lr * min(1.0, (done + 1) / WARMUP) * cosine
            loss = loss_of(done)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, GRAD_CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            if not math.isfinite(loss.item()):
                fix = "lower its lr in params.yaml: latents"
                raise VapError(f"{label}, step {done}", "a loss that is not finite", "a number", fix)
            progress.advance(1, f"loss {loss.item():.4f}")
            if done % CHECKPOINT_EVERY == 0 or done == settings.steps:
                tensors = {
                    "model": net.state_dict(),
                    "optimizer": checkpoint.optimizer_tensors(optimizer, names),
                }
                checkpoint.save(folder, done, tensors, {})
