"""The training loop of every method: resumable at any step, the same bytes each time.

What a step does is a `Learner`'s: of a diffusion method in denoising.py, of an adversarial one in gan.py, of
an autoencoder in autoencoder.py, of a classifier in vap.downstream.fit.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from vap.common.errors import Stopped, VapError, tell
from vap.common.progress import Progress
from vap.training import checkpoint
from vap.training.batch import Movable
from vap.training.prefetch import prefetched
from vap.training.watch import Watch, check_health

if TYPE_CHECKING:
    from accelerate import Accelerator

B = TypeVar("B", bound=Movable)
L = TypeVar("L", bound="Learner[Any]")
AGREE_EVERY = 10  # steps between the processes' agreements to stop


class Learner(ABC, Generic[B]):
    """The networks of a run and one step of their training. Step n is the (n + 1)-th: 0, 1, …

    Attributes:
        explodes: a mean squared error in the log beyond which a run is past saving; None for none.
        scaled: gradients that overflow are an everyday event of a loss scaler.
        remedy: what to try when a run is past saving.
    """

    explodes: float | None = None
    scaled: bool = False
    remedy: str

    @abstractmethod
    def batch(self, step: int, part: slice) -> B:
        """This process's part of a step's batch: a pure function, which may run in another thread."""

    @abstractmethod
    def step(self, batch: B, step: int) -> dict[str, Tensor]:
        """Learn from a batch.

        Returns:
            detached scalars for the log, `loss` and `grad_norm` among them; of this process.
        """

    @abstractmethod
    def lr(self, step: int) -> float:
        """The learning rate of a step, for the log."""

    @abstractmethod
    def parts(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that the next step needs, by file and name."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the next step needs beside tensors, as JSON."""

    @abstractmethod
    def load(self, parts: Mapping[str, dict[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Take over what `parts` and `state` returned."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What the run is for: of a generator the averaged weights, float32."""


def make_accelerator(device: str, precision: str) -> Accelerator:
    """accelerate's view of the machine; of all processes, where several were started together."""
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    shared = device.startswith("cuda") and here > torch.cuda.device_count()
    # NCCL wants a GPU for each process
    handlers = [InitProcessGroupKwargs(backend="gloo")] if shared else None
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed, kwargs_handlers=handlers)


def train(
    learner_of: Callable[[Accelerator], L],
    steps: int,
    batch_size: int,
    folder: Path,
    *,
    section: str,
    seed: int,
    precision: str,
    log_every: int,
    checkpoint_every: int,
    device: str = "auto",
    label: str = "train",
    watch: Watch | None = None,
) -> tuple[L, list[dict[str, float]]]:
    """Train a method, a classifier or an autoencoder.

    Args:
        learner_of: called once, right after the seed is set.
        batch_size: images a step, of all processes together.
        folder: where checkpoints are kept; an interrupted run goes on from the newest, and the last is the
            finished run's. A checkpoint holds the learner's tensors and state, the log and the step. Learning
            rate, draws and data order are functions of the step, so nothing else is needed.
        section: of params.yaml that has steps and batch_size, for errors.
        seed: of the initial weights.
        precision: fp32, bf16 or fp16.
        log_every, checkpoint_every: steps.
        watch: gets every row of the log, and the averaged weights for previews.

    Returns:
        The learner after its last step, and the log: a row every `log_every` steps.

    Raises:
        VapError: a logged number is no longer finite, or the loss has exploded.
        Stopped: SIGTERM came; the next run goes on from here.
    """
    accelerator = make_accelerator(device, precision)
    share, rank = batch_share(batch_size, accelerator.num_processes, section), accelerator.process_index
    part = slice(rank * share, (rank + 1) * share)
    torch.manual_seed(seed)
    learner = learner_of(accelerator)
    done, log = 0, []
    if (found := checkpoint.load_newest(folder)) is not None:
        parts, state = found
        learner.load(parts, state)
        done, log = state["step"], state["log"]

    def save() -> None:
        checkpoint.save(folder, done, learner.parts(), {"log": log, **learner.state()})

    def mean(values: dict[str, Tensor]) -> dict[str, float]:
        """The means over the processes."""
        stacked = torch.stack([v.float().to(accelerator.device) for v in values.values()])
        means = accelerator.reduce(stacked, "mean")
        return dict(zip(values, means.tolist(), strict=True))

    stop = _SigtermFlag(accelerator)
    batches = _batches(learner, part, done, steps, accelerator.device)
    info = ""
    first = accelerator.is_main_process
    with stop, contextlib.closing(batches), Progress(label, steps, "step") as progress:
        if done:
            progress.skip(done)
        if watch is not None and first:
            watch.begin(done)
        while done < steps:
            lr = learner.lr(done)
            values = _step(learner, next(batches).to(accelerator.device), done, label)
            done += 1
            stopping = done < steps and stop.agreed(done)
            saving = stopping or done % checkpoint_every == 0 or done == steps
            logging = done % log_every == 0 or done == steps
            if saving or logging:
                row = mean(values)
                check_health(learner, label, done, row, folder)
                if logging:
                    log.append({"step": done, "lr": lr, **row})
                    if watch is not None and first:
                        info = watch.saw(log[-1], batch_size)
            progress.advance(1, info)
            if watch is not None and first and watch.wants_preview(done):
                watch.preview(done, learner.weights())
            if saving and first:
                save()
            if stopping:
                raise Stopped(f"{label}: stopped at step {done}; the next run goes on from there")
    return learner, log


def _step(learner: Learner[B], batch: B, step: int, label: str) -> dict[str, Tensor]:
    try:
        return learner.step(batch, step)
    except RuntimeError as error:  # asked for by compute.deterministic, on a GPU
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise VapError(
            label,
            str(error).partition(",")[0],
            "kernels that give the same bytes each time",
            "set compute.deterministic: false",
        ) from None


def batch_share(batch_size: int, processes: int, section: str) -> int:
    """Images of a batch for each process.

    Raises:
        VapError: they are no whole number.
    """
    share, rest = divmod(batch_size, processes)
    if rest:
        raise VapError(
            f"params.yaml: {section}.batch_size",
            str(batch_size),
            f"a multiple of the {processes} processes",
            "change one of the two",
        )
    return share


def _batches(
    learner: Learner[B], part: slice, start: int, stop: int, device: torch.device
) -> Generator[B, None, None]:
    """The batches of all steps; for a GPU made ahead, in memory that it can copy from by itself."""

    def pinned(step: int) -> B:
        if device.index is not None:  # accelerate's device of a single process is "cuda", without a number
            torch.cuda.set_device(device)  # a new thread begins with the first GPU
        moved: B = learner.batch(step, part).map(
            lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory()
        )
        return moved

    if device.type == "cuda":
        yield from prefetched(pinned, start, stop)
    else:
        for step in range(start, stop):
            yield learner.batch(step, part)


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
            tell("SIGTERM: saving the state")
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
