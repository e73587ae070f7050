"""Train, draw and measure several methods side by side on one machine, within a time, and pack what is to be
looked at.

`python -m benchmarks.gpu.repeat PROJECT OUT DATASET RUN … --minutes 7.5`: PROJECT has params.yaml, and data/
with the latents, prompts and autoencoder of DATASET; a RUN is a method, or one with other settings for a
comparison: `vap:final_init=published,steps=1400,n=128`. Each run is the pipeline's own `vap train` and
`vap sample` in a folder of its own. A training that would outlast the time, by the rate of its first rows of
the log, begins anew with as many steps as fit. Whatever is made is packed at once, so that OUT holds all that
there is whenever the machine is taken away:

results.csv  a row a set of samples: distances, precision and recall against real images (PROJECT/real.npz)
runs-N.zip   train.csv, curves and logs, grids of samples, and the first samples of one run as JPEG
features-N.zip  float16, EfficientNet-Lite0 (PROJECT/efficientnet-lite0.pth), as far as there is room
RUN-weights-N.safetensors  the averaged weights of one run in bf16; `join` makes model.safetensors of them
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from benchmarks.gpu.bundle import FEATURES_WEIGHTS, REAL, read_real
from vap.common.artifacts import ArrowFile, write_safetensors
from vap.common.errors import VapError
from vap.common.places import model_path, samples_path, training_log_path
from vap.datasets.images import decode
from vap.generators.base import method_class
from vap.generators.trained import CONFIG, WEIGHTS
from vap.metrics.features import features_of, load_extractor
from vap.metrics.fidelity import frechet_distance
from vap.metrics.kernel import neighbour_metrics
from vap.metrics.networks import read_weights

MODEL, SAMPLE = ("final_init", "linear_init"), ("n",)  # a run's own keys that are not of its training
GRID = (14, 8)
KEPT = 800  # samples of the run whose weights are kept, as JPEG
FILE_MB, FILES, TOTAL_MB = 15.5, 8, 64.0  # of what comes back
PICTURES_MB = 7.0  # kept free for what matters more than features
DRAWING = 0.3  # share of the time that is kept for drawing and measuring
PROBE = 3  # rows of the log, of which the last tells the rate
NEIGHBOURS = 3


@dataclass(frozen=True)
class Run:
    name: str  # of its folder
    method: str
    changes: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> Run:
        method, _, rest = text.partition(":")
        changes = {k: yaml.safe_load(v) for k, v in (pair.split("=") for pair in rest.split(",") if pair)}
        return cls("-".join([method, *(f"{k}_{v}" for k, v in changes.items())]), method, changes)

    @property
    def described(self) -> bool:
        return method_class(self.method).kind == "prompts"


class Clock:
    """The time that has gone, and the time that is left.

    Args:
        minutes: for all together; None: as long as it takes.
    """

    def __init__(self, minutes: float | None) -> None:
        self.start = time.monotonic()
        self.end = math.inf if minutes is None else 60 * minutes
        self.trained = self.end if minutes is None else self.end * (1 - DRAWING)  # when training has to end

    @property
    def now(self) -> float:
        return time.monotonic() - self.start

    def say(self, *words: object) -> None:
        print(f"[{self.now:6.1f} s]", *words, flush=True)


# ── running ─────────────────────────────────────────────────────────────────────────────────────────


def lay_out(project: Path, folder: Path, run: Run, steps: int | None, n: int | None) -> None:
    """A folder in which the run's stages find their inputs and settings.

    Raises:
        VapError: it is there already.
    """
    if folder.exists():
        raise VapError(folder, "a run of before", "none of that name", "remove it, or name another project")
    folder.mkdir(parents=True)
    (folder / "data").symlink_to((project / "data").resolve())
    params = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))
    entry = params["method"][run.method]
    if steps is not None:
        entry["train"]["steps"] = steps
    if n is not None:
        params["sample"]["n"] = n
    for key, value in run.changes.items():
        place = entry["model"] if key in MODEL else params["sample"] if key in SAMPLE else entry["train"]
        place[key] = value
    write_params(folder, params)


def write_params(folder: Path, params: Mapping[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def begun(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A stage in `folder`, its words in log.txt there."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p or ".") for p in sys.path)}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "vap", *words], cwd=folder, env=env, stderr=log)


def ended(process: subprocess.Popen[bytes], clock: Clock) -> bool:
    """Whether a stage ended well, and in time; one that does not is stopped."""
    try:
        return process.wait(None if clock.end == math.inf else max(clock.end - clock.now, 0)) == 0
    except subprocess.TimeoutExpired:
        stop(process)
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def trained(folder: Path, run: Run, dataset: str, clock: Clock) -> bool:
    """`vap train`, with fewer steps where the rate says that it would outlast its time."""
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    own = params["method"][run.method]["train"]
    began = clock.now
    process = begun(folder, "train", dataset, run.method)
    while clock.trained < math.inf and process.poll() is None:
        time.sleep(0.2)
        rows = read_rows(folder / training_log_path(dataset, run.method) / "curves.csv")
        if clock.now > clock.end:
            stop(process)
            return False
        if len(rows) < PROBE:
            continue
        rate = float(rows[PROBE - 1]["images_per_s"]) / own["batch_size"]  # steps a second
        left = (own["steps"] - int(rows[-1]["step"])) / rate
        if clock.now + left > clock.trained:
            stop(process)
            delay = max(clock.now - began - int(rows[-1]["step"]) / rate, 0)  # until the first step
            fit = int(0.95 * rate * (clock.trained - clock.now - delay))
            own["steps"] = max(min(fit, own["steps"]), 1)
            clock.say(run.name, f"makes {rate:.1f} steps/s: begins anew with {own['steps']} steps")
            write_params(folder, params)
            process = begun(folder, "train", dataset, run.method)
        break
    return ended(process, clock)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole lines of a CSV file that may be growing."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))


def complete(folder: Path, run: Run, dataset: str, clock: Clock, parcel: Parcel) -> bool:
    """Train, then draw from its own descriptions, and from unseen ones where there are any; pack each.

    Returns:
        whether all went well.
    """
    clock.say(run.name, "trains")
    good = trained(folder, run, dataset, clock)
    clock.say(run.name, "is trained" if good else f"FAILED: {last_words(folder)}")
    if good:
        parcel.add_model(run, folder / model_path(dataset, run.method))
    for condition in ("seen", "unseen") if run.described and "n" not in run.changes else ("seen",):
        if good:
            good = ended(begun(folder, "sample", dataset, run.method, condition), clock)
            clock.say(run.name, condition, "drawn" if good else f"FAILED: {last_words(folder)}")
        if good:
            parcel.add_samples(run, condition, folder, dataset)
    parcel.add_logs(run, folder, dataset)
    return good


def last_words(folder: Path) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-500:]


# ── packing ─────────────────────────────────────────────────────────────────────────────────────────


class Parcel:
    """What comes back: at most FILES files of FILE_MB, TOTAL_MB together. Runs pack in turns.

    Args:
        out: folder.
        project: may have EfficientNet-Lite0's weights and the features of real images.
        kept: name of the run whose weights and single samples come back.
    """

    def __init__(self, out: Path, project: Path, kept: str | None, clock: Clock) -> None:
        self.out, self.kept, self.clock = out, kept, clock
        self.turn = threading.RLock()
        self.weights_mb = 0.0  # kept free until they are written
        self.extractor: nn.Module | None = None
        self.real: dict[str, Tensor] = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = project / FEATURES_WEIGHTS
        if not weights.exists():
            return
        whole = {name: v.float() if v.is_floating_point() else v for name, v in read_weights(weights).items()}
        torch.save(whole, project / "runs" / weights.name)
        self.extractor = load_extractor("efficientnet-lite0", project / "runs" / weights.name, self.device)
        if (project / REAL).exists():
            self.real = {split: x.to(self.device) for split, x in read_real(project / REAL).items()}
        if "test" in self.real:
            self.add_result("real, test", None, self.real["test"], {})

    def room(self) -> float:
        """MB that are left of the whole."""
        return TOTAL_MB - sum(path.stat().st_size for path in self.out.iterdir()) / 1e6

    def add(self, kind: str, name: str, data: bytes, free_mb: float = 0.0) -> None:
        """Put a file into the newest KIND-N.zip that has room.

        Args:
            free_mb: what has to stay free; where it would not, the file is left out, which is said.
        """
        size = len(data) / 1e6
        with self.turn:
            number = max(len(list(self.out.glob(f"{kind}-*.zip"))) - 1, 0)
            path = self.out / f"{kind}-{number}.zip"
            if path.exists() and path.stat().st_size / 1e6 + size > FILE_MB:
                path = self.out / f"{kind}-{number + 1}.zip"
            full = not path.exists() and len(list(self.out.iterdir())) >= FILES
            if full or size > FILE_MB or self.room() - size < free_mb:
                self.clock.say(f"no room for {name} ({size:.1f} MB)")
                return
            with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(name, data)

    def add_logs(self, run: Run, folder: Path, dataset: str) -> None:
        for path in (folder / "log.txt", folder / training_log_path(dataset, run.method) / "curves.csv"):
            if path.exists():
                self.add("runs", f"{run.name}-{path.name}", path.read_bytes())

    def add_model(self, run: Run, model: Path) -> None:
        """The curves and settings; the weights too, of the run that is kept."""
        from safetensors.torch import load_file

        with self.turn:
            for name in ("train.csv", CONFIG):
                self.add("runs", f"{run.name}-{name}", (model / name).read_bytes())
            mb = (model / WEIGHTS).stat().st_size / 2e6
            if run.name != self.kept:
                self.weights_mb = self.weights_mb or mb * (self.kept is not None)
                return
            self.weights_mb = 0.0
            pieces = pieces_of(load_file(model / WEIGHTS))
            if len(pieces) + len(list(self.out.iterdir())) > FILES or mb > self.room() - PICTURES_MB:
                self.clock.say(f"no room for the weights of {run.name} ({mb:.0f} MB)")
                return
            for i, piece in enumerate(pieces):
                write_safetensors(self.out / f"{run.name}-weights-{i}.safetensors", piece)
            self.clock.say(run.name, f"weights packed, {mb:.1f} MB")

    def add_samples(self, run: Run, condition: str, folder: Path, dataset: str) -> None:
        """Grid, single samples, features, and the row of numbers."""
        name = f"{run.name}-{condition}"
        file = ArrowFile(folder / samples_path(dataset, run.method, condition), "samples")
        images = [decode(file.value("image", row)) for row in range(len(file))]
        with self.turn:
            self.add("runs", f"{name}.jpg", jpeg(grid_of(images), 90))
            if run.name == self.kept and condition == "seen":
                for i, image in enumerate(images[:KEPT]):
                    self.add("runs", f"{name}-{i:04d}.jpg", jpeg(image, 88))
            numbers = read_rows(folder / model_path(dataset, run.method) / "train.csv")[-1]
            if self.extractor is not None:
                found = features_of(iter(images), self.extractor, 256)["pooled"]
                self.add_result(run.name, condition, found.to(self.device), numbers)
                buffer = io.BytesIO()
                np.savez(
                    buffer, pooled=found.numpy().astype(np.float16), label=np.asarray(file.column("label"))
                )
                self.add("features", f"{name}.npz", buffer.getvalue(), self.weights_mb + PICTURES_MB)
            else:
                self.add_result(run.name, condition, None, numbers)
        self.clock.say(name, f"{len(images)} images packed")

    def add_result(
        self, name: str, condition: str | None, found: Tensor | None, numbers: Mapping[str, str]
    ) -> None:
        row: dict[str, object] = {
            "run": name,
            "condition": condition or "",
            "steps": numbers.get("step", ""),
            "denoising_loss": numbers.get("denoising_loss", numbers.get("loss", "")),
            "uneven_error": numbers.get("uneven_error", ""),
        }
        columns = ["n", "fid_train", "precision", "recall", "fid_test"]
        row |= dict.fromkeys(columns, "")
        if found is not None:
            row["n"] = len(found)
            few = min(len(found), *(len(x) for x in self.real.values())) if self.real else 0
            if "train" in self.real and few > 1:
                row["fid_train"] = frechet_distance(found, self.real["train"])
                if few > NEIGHBOURS:
                    near = neighbour_metrics(found, self.real["train"], NEIGHBOURS)
                    row |= {key: near[key] for key in ("precision", "recall")}
            if "test" in self.real and few > 1 and condition is not None:
                row["fid_test"] = frechet_distance(found, self.real["test"])
        with (self.out / "results.csv").open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        self.clock.say(*(f"{key} {short(value)}" for key, value in row.items() if value != ""))


def short(value: object) -> str:
    try:
        return f"{float(str(value)):.4g}"
    except ValueError:
        return str(value)


def jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def grid_of(images: list[np.ndarray]) -> np.ndarray:
    columns, rows = GRID
    side = images[0].shape[0]
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for i, image in enumerate(images[: columns * rows]):
        y, x = divmod(i, columns)
        sheet[y * side : (y + 1) * side, x * side : (x + 1) * side] = image
    return sheet


def pieces_of(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Weights in bf16, in as many parts as files of FILE_MB take."""
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0.0
    for name, value in weights.items():
        small = value.bfloat16() if value.is_floating_point() else value
        mb = small.numel() * small.element_size() / 1e6
        if pieces[-1] and size + mb > 0.99 * FILE_MB:  # the rest is for the file's own head
            pieces.append({})
            size = 0.0
        pieces[-1][name] = small
        size += mb
    return pieces


def join(pieces: Sequence[Path], target: Path) -> None:
    """The pieces of a run's weights as the model.safetensors that `vap sample` reads, beside config.json."""
    from safetensors.torch import load_file

    whole: dict[str, Tensor] = {}
    for piece in pieces:
        whole |= load_file(piece)
    write_safetensors(target, {k: v.float() if v.is_floating_point() else v for k, v in whole.items()})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.repeat", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("out", type=Path, help="is made; empty, if it is there")
    parser.add_argument("dataset")
    parser.add_argument("run", nargs="+", type=Run.parse)
    parser.add_argument("--steps", type=int, help="of training, for all runs; default: those of params.yaml")
    parser.add_argument("--n", type=int, help="samples; default: those of params.yaml")
    parser.add_argument("--minutes", type=float, help="for all together; default: as long as it takes")
    parser.add_argument("--weights", help="run whose weights come back; default: the first with descriptions")
    args = parser.parse_args(argv)
    clock = Clock(args.minutes)
    runs: list[Run] = args.run
    kept = args.weights or next((run.name for run in runs if run.described), None)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if any(args.out.iterdir()):
            raise VapError(args.out, "files of before", "an empty folder", "name another folder")
        work = args.project / "runs"
        for run in runs:
            lay_out(args.project, work / run.name, run, args.steps, args.n)
        parcel = Parcel(args.out, args.project, kept, clock)
    except VapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(len(runs)) as pool:
        jobs = {
            run.name: pool.submit(complete, work / run.name, run, args.dataset, clock, parcel) for run in runs
        }
    for name, job in jobs.items():
        if (failed := job.exception()) is not None:
            clock.say(name, "FAILED:", repr(failed))
    packed = ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(args.out.iterdir()))
    clock.say("packed:", packed)
    return int(any(job.exception() is not None or not job.result() for job in jobs.values()))


if __name__ == "__main__":
    sys.exit(main())
