"""The training loop of every diffusion method: resumable at any step, the same bytes each time."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vap.diffusion.schedule import Schedule
from vap.errors import Stopped, VapError
from vap.methods.base import Batch, DiffusionMethod
from vap.params import ComputeParams, TrainParams
from vap.progress import Progress
from vap.training import checkpoint
from vap.training.ema import Ema
from vap.training.prefetch import prefetched
from vap.training.watch import Watch, check_health

AGREE_EVERY = 10  # steps between the processes' agreements to stop


@dataclass
class Trained:
    ema: dict[str, Tensor]  # averaged parameters, float32, on the CPU
    log: list[dict[str, float]]  # a row every `log_every` steps


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate's view of the machine; of all processes, where several were started together."""
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed)


def train(
    method: DiffusionMethod[Any],
    build: Callable[[], nn.Module],
    batch: Callable[[int, slice], Batch],
    schedule: Schedule,
    shared: TrainParams,
    compute: ComputeParams,
    folder: Path,
    *,
    seed: int,
    device: str = "auto",
    label: str = "train",
    watch: Watch | None = None,
) -> Trained:
    """Train one network.

    Args:
        method: gives the loss and its own settings.
        build: makes the network; called once, right after the seed is set.
        batch: (step, this process's part of the batch) to the batch, a pure function.
        shared: section `train` of params.yaml.
        compute: how the machine is used; changes rounding at most.
        folder: where checkpoints are kept; an interrupted run goes on from the newest. A checkpoint holds
            weights, EMA, optimiser, loss scaler, log and step. Learning rate, draws and data order are
            functions of the step, so nothing else is needed.
        seed: of the initial weights.
        watch: gets every row of the log, and the averaged weights for previews.

    Raises:
        VapError: the loss is no longer finite, or has exploded.
        Stopped: SIGTERM came; the next run goes on from here.
    """
    own = method.train
    accelerator = make_accelerator(device, shared.precision)
    torch.manual_seed(seed)
    net = build().to(accelerator.device)
    names = [name for name, p in net.named_parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad],
        lr=own.lr,
        betas=(own.betas[0], own.betas[1]),
        weight_decay=own.weight_decay,
        fused=True,
    )
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
    if compute.compile:
        net.compile()  # type: ignore[no-untyped-call]
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

    def save() -> None:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        tensors = {
            "model": net.state_dict(),
            "ema": ema.state(),
            "optimizer": checkpoint.optimizer_tensors(optimizer, names),
        }
        checkpoint.save(folder, done, tensors, {"log": log, "scaler": scaler})

    def gradients(whole: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logged scalars of this process's part, its gradients accumulated piece by piece."""
        total: dict[str, Tensor] = {}
        pieces = list(whole.pieces(compute.micro_batch or per_process))
        for piece in pieces:
            share = len(piece.x0) / per_process
            alone = contextlib.nullcontext() if piece is pieces[-1] else accelerator.no_sync(wrapped)
            with alone:
                with accelerator.autocast():
                    loss, logs = method.loss(wrapped, piece, schedule)
                accelerator.backward(loss * share)
            for name, value in {"loss": loss.detach(), **logs}.items():
                total[name] = total.get(name, 0) + value * share
        return total.pop("loss"), total

    def row_of(loss: Tensor, norm: Tensor, logs: dict[str, Tensor]) -> dict[str, float]:
        """One row of the log, its values the means over the processes."""
        values = {"loss": loss, "grad_norm": norm.detach(), **logs}
        means = accelerator.reduce(torch.stack([v.float() for v in values.values()]), "mean")
        return dict(zip(values, means.tolist(), strict=True))

    stop = _SigtermFlag(accelerator)
    batches = _batches(batch, part, done, own.steps, accelerator.device)
    wrapped.train()
    info = ""
    with stop, contextlib.closing(batches), Progress(label, own.steps, "step") as progress:
        if done:
            progress.skip(done)
        if watch is not None and accelerator.is_main_process:
            watch.begin(done)
        while done < own.steps:
            lr = own.lr * min(1.0, (done + 1) / max(own.warmup_steps, 1))
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, logs = gradients(next(batches).to(accelerator.device))
            limit = math.inf if shared.grad_clip is None else shared.grad_clip
            norm = torch.as_tensor(accelerator.clip_grad_norm_(net.parameters(), limit))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
            ema.update(net, done)

            saving = done < own.steps and (done % shared.checkpoint_every == 0 or stop.agreed(done))
            logging = done % shared.log_every == 0 or done == own.steps
            if saving or logging:
                row = row_of(loss, norm, logs)
                check_health(label, done, row, folder, scaled=accelerator.scaler is not None)
                if logging:
                    log.append({"step": done, "lr": lr, **row})
                    if watch is not None and accelerator.is_main_process:
                        info = watch.saw(log[-1], own.batch_size)
            progress.advance(1, info)
            if watch is not None and accelerator.is_main_process and watch.wants_preview(done):
                watch.preview(done, ema.state())
            if saving:
                if accelerator.is_main_process:
                    save()
                if stop.agreed(done):
                    raise Stopped(f"{label}: stopped at step {done}; the next run goes on from there")
    return Trained({name: value.cpu() for name, value in ema.state().items()}, log)


def _batches(
    batch: Callable[[int, slice], Batch], part: slice, start: int, stop: int, device: torch.device
) -> Generator[Batch, None, None]:
    """The batches of all steps; for a GPU made ahead, in memory that it can copy from by itself."""

    def pinned(step: int) -> Batch:
        torch.cuda.set_device(device)  # a thread begins with the first GPU
        return batch(step, part).map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    if device.type == "cuda":
        yield from prefetched(pinned, start, stop)
    else:
        for step in range(start, stop):
            yield batch(step, part)


class _SigtermFlag:
    """Remembers SIGTERM while it is active, instead of dying in the middle of a step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._raised, self._agreed = accelerator, False, False

    def agreed(self, step: int) -> bool:
        """Whether to stop after `step`, the same answer in every process."""
        several = self._accelerator.num_processes > 1
        if several and step % AGREE_EVERY == 0 and not self._agreed:
            flag = torch.tensor(float(self._raised), device=self._accelerator.device)
            self._agreed = bool(self._accelerator.reduce(flag, "sum").item())
        return self._agreed if several else self._raised

    def __enter__(self) -> None:
        def remember(*_: object) -> None:
            print("SIGTERM: saving the state", file=sys.stderr)
            self._raised = True

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
