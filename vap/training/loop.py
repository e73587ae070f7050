"""The training loop of every diffusion method: resumable at any step, the same bytes each time."""

from __future__ import annotations

import csv
import json
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.errors import Stopped, VapError
from vap.methods.base import Batch, DiffusionMethod
from vap.params import TrainParams
from vap.progress import Progress
from vap.training import checkpoint
from vap.training.ema import Ema


@dataclass
class Trained:
    ema: dict[str, Tensor]  # averaged parameters, float32, on the CPU
    log: list[dict[str, float]]  # a row every `log_every` steps


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate's view of the machine; under `accelerate launch`, of all its processes."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


def train(
    method: DiffusionMethod[Any],
    build: Callable[[], nn.Module],
    batch: Callable[[int, slice], Batch],
    schedule: Schedule,
    shared: TrainParams,
    folder: Path,
    *,
    seed: int,
    device: str = "auto",
    label: str = "train",
) -> Trained:
    """Train one network.

    Args:
        method: gives the loss and its own settings.
        build: makes the network; called once, right after the seed is set.
        batch: (step, this process's part of the batch) to the batch.
        shared: section `train` of params.yaml.
        folder: where checkpoints are kept; an interrupted run goes on from the newest.
        seed: of the initial weights.

    Raises:
        VapError: the loss is no longer finite.
        Stopped: SIGTERM came; the next run goes on from here.
    """
    own = method.train
    accelerator = make_accelerator(device, shared.precision)
    torch.manual_seed(seed)
    net = build()
    decay = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        decay,
        lr=own.lr,
        betas=(own.betas[0], own.betas[1]),
        weight_decay=own.weight_decay,
        fused=accelerator.device.type == "cuda",
        foreach=accelerator.device.type == "cpu",
    )
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    net.to(accelerator.device)
    ema = Ema(net, own.ema_decay, shared.ema_warmup)

    done, log = 0, []
    if (found := checkpoint.load_newest(folder)) is not None:
        parts, state = found
        net.load_state_dict(parts["model"])
        ema.load(parts["ema"])
        checkpoint.load_optimizer_tensors(optimizer, names, parts["optimizer"])
        done, log = state["step"], state["log"]
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
    wrapped, optimizer = accelerator.prepare(net, optimizer)

    per_process, rest = divmod(own.batch_size, accelerator.num_processes)
    if rest:
        raise VapError(
            "params.yaml: train.batch_size",
            str(own.batch_size),
            f"a multiple of the {accelerator.num_processes} processes",
            "change one of the two",
        )
    rank = accelerator.process_index
    part = slice(rank * per_process, (rank + 1) * per_process)

    def save() -> Path:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        tensors = {
            "model": net.state_dict(),
            "ema": ema.state(),
            "optimizer": checkpoint.optimizer_tensors(optimizer, names),
        }
        return checkpoint.save(folder, done, tensors, {"log": log, "scaler": scaler})

    stop = _SigtermFlag()
    wrapped.train()
    info = ""
    with stop, Progress(label, own.steps, "step") as progress:
        if done:
            progress.skip(done)
        while done < own.steps:
            for group in optimizer.param_groups:
                group["lr"] = own.lr * min(1.0, (done + 1) / max(own.warmup_steps, 1))
            now = batch(done, part).to(accelerator.device)
            with accelerator.autocast():
                loss, logs = method.loss(wrapped, now, schedule)
            accelerator.backward(loss)
            limit = math.inf if shared.grad_clip is None else shared.grad_clip
            norm = accelerator.clip_grad_norm_(net.parameters(), limit)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            ema.update(net, done)

            if done % shared.log_every == 0 or done == own.steps:
                row = {"loss": loss.item(), "grad_norm": float(norm)}
                row |= {name: value.item() for name, value in logs.items()}
                if not math.isfinite(row["loss"]):
                    _not_finite(label, done, folder)
                log.append({"step": done, "lr": optimizer.param_groups[0]["lr"], **row})
                info = ", ".join(f"{key} {value:.4f}" for key, value in row.items())
            progress.advance(1, info)
            if done < own.steps and (done % shared.checkpoint_every == 0 or stop.raised):
                if not (math.isfinite(loss.item()) and math.isfinite(float(norm))):
                    _not_finite(label, done, folder)
                if accelerator.is_main_process:
                    save()
                if stop.raised:
                    raise Stopped(f"{label}: stopped at step {done}; the next run goes on from there")
    return Trained({name: value.cpu() for name, value in ema.state().items()}, log)


def _not_finite(label: str, step: int, folder: Path) -> None:
    good = sorted(path.name for path in folder.glob("step-*"))
    raise VapError(
        f"{label}, step {step}",
        "a loss that is not finite",
        "a number",
        f"try a smaller lr, a longer warmup_steps, or precision bf16 or fp32; last good: "
        f"{good[-1] if good else 'none'}",
    )


class _SigtermFlag:
    """Remembers SIGTERM while it is active, instead of dying in the middle of a step."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> None:
        def remember(*_: object) -> None:
            print("SIGTERM: saving the state", file=sys.stderr)
            self.raised = True

        self._old = signal.signal(signal.SIGTERM, remember)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._old)


def write_log(path: Path, log: list[dict[str, float]]) -> None:
    """The training curves as CSV, one row every `log_every` steps."""
    columns = list(dict.fromkeys(key for row in log for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: json.dumps(value) for key, value in row.items()} for row in log)
