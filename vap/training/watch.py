"""What an onlooker sees of a training run, and when a run is past saving."""

from __future__ import annotations

import csv
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vap.common.errors import VapError, tell

if TYPE_CHECKING:
    from vap.training.loop import Learner


def check_health(
    learner: Learner[Any], label: str, step: int, row: Mapping[str, float], folder: Path
) -> None:
    """Stop a run that logs what is no number, or whose loss has exploded.

    Args:
        learner: says which loss is past saving, whether gradients may overflow, and what to try.
        row: of the log, with `loss` and, where it has parts, `denoising_loss`.
        folder: of the run's checkpoints.

    Raises:
        VapError: with the step, the last good checkpoint, and what to try.
    """
    denoising = row.get("denoising_loss", row["loss"])
    bad = [name for name, value in row.items() if not math.isfinite(value)]
    if learner.scaled:
        bad = [name for name in bad if not name.endswith("grad_norm")]
    if bad:
        found = f"a {bad[0]} that is not finite"
    elif learner.explodes is not None and denoising > learner.explodes:
        found = f"a denoising loss of {denoising:.3g}: it has exploded"
    else:
        return
    good = sorted(path.name for path in folder.glob("step-*"))
    raise VapError(
        f"{label}, step {step}",
        found,
        "finite numbers" if learner.explodes is None else f"a number below {learner.explodes:g}",
        f"try {learner.remedy}; last good: {good[-1] if good else 'none'}",
    )


def memory_mb(device: torch.device) -> float:
    """The most memory used so far, in MB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KB; bytes on macOS
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


class Watch:
    """Live curves and previews of one run, in a folder of their own; no artefact depends on them.

    Args:
        folder: gets curves.csv, with the rate and the memory beside what train.csv will have.
        device: of the network.
        preview_every: steps between previews; None for none.
        draw: (step, averaged parameters) to a preview.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        preview_every: int | None = None,
        draw: Callable[[int, Mapping[str, Tensor]], None] | None = None,
    ) -> None:
        self.file, self.device = folder / "curves.csv", device
        self._every, self._draw = preview_every, draw
        self._last = (0, time.monotonic())  # step and time of the row before

    def begin(self, done: int) -> None:
        """The run starts, or goes on, after step `done`: rows beyond it are dropped."""
        self._last = (done, time.monotonic())
        if self.file.exists():
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",")[0]) <= done]
            self.file.write_text("".join([*lines[:1], *kept]) if done else "", encoding="utf-8")

    def saw(self, row: Mapping[str, float], batch_size: int) -> str:
        """Take a row of the log; returns it as text for the progress line."""
        step, now = int(row["step"]), time.monotonic()
        rate = (step - self._last[0]) * batch_size / max(now - self._last[1], 1e-9)
        self._last = step, now
        whole = {**row, "images_per_s": rate, "memory_mb": memory_mb(self.device)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(whole)
            writer.writerow([step, *(f"{value:.6g}" for name, value in whole.items() if name != "step")])
        return ", ".join(f"{name} {value:.4g}" for name, value in whole.items() if name != "step")

    def wants_preview(self, step: int) -> bool:
        return self._every is not None and self._draw is not None and step % self._every == 0

    def preview(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Draw with the averaged weights of `step`; a preview that fails is one line, the run goes on."""
        assert self._draw is not None
        try:
            self._draw(step, weights)
        except (VapError, OSError) as error:
            tell(f"no preview of step {step}: {error}")
