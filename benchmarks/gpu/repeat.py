"""Train, draw and measure several methods side by side on one machine, and pack what is to be looked at.

`python -m benchmarks.gpu.repeat PROJECT OUT DATASET RUN …`: PROJECT has params.yaml, and data/ with the
latents, prompts and autoencoder of DATASET; a RUN is a method, or one with other settings for a comparison:
`vap:final_init=published,steps=1400,n=128`. Each run is the pipeline's own `vap train` and `vap sample` in a
folder of its own; OUT gets curves.zip (train.csv and logs), grids.zip, features-*.zip (float16,
EfficientNet-Lite0, if PROJECT has its weights) and samples.zip (JPEG). What exists when a run fails is packed
all the same.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vap.artifacts import ArrowFile
from vap.datasets.images import decode
from vap.methods.base import method_class

MODEL, SAMPLE = ("final_init",), ("n",)  # keys of a run's own settings that are not of its training
GRID = (14, 8)
KEPT = 800  # samples of the first run with descriptions, as JPEG
FILE_MB = 15


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


def say(start: float, *words: object) -> None:
    print(f"[{time.monotonic() - start:6.1f} s]", *words, flush=True)


def lay_out(project: Path, folder: Path, run: Run, steps: int | None, n: int | None) -> None:
    """A folder in which the run's stages find their inputs and settings."""
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
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def vap(folder: Path, *words: str) -> bool:
    """Run a stage in `folder`, its words in log.txt there; whether it went well."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p or ".") for p in sys.path)}
    with (folder / "log.txt").open("a") as log:
        return (
            subprocess.run([sys.executable, "-m", "vap", *words], cwd=folder, env=env, stderr=log).returncode
            == 0
        )


def complete(folder: Path, run: Run, dataset: str, start: float) -> None:
    """Train, then draw from its own descriptions, and from unseen ones where there are any."""
    say(start, run.name, "trains")
    if not vap(folder, "train", dataset, run.method):
        say(start, run.name, "FAILED:", (folder / "log.txt").read_text()[-500:])
        return
    say(start, run.name, "is trained")
    described = method_class(run.method).kind == "prompts" and "n" not in run.changes
    for condition in ("seen", "unseen") if described else ("seen",):
        done = vap(folder, "sample", dataset, run.method, condition)
        say(start, run.name, condition, "drawn" if done else (folder / "log.txt").read_text()[-500:])


def pictures(path: Path) -> list[np.ndarray]:
    file = ArrowFile(path, "samples")
    return [decode(file.value("image", row)) for row in range(len(file))]


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


def pack(work: Path, out: Path, runs: list[Run], dataset: str, weights: Path, start: float) -> None:
    """What comes back."""
    import torch

    from vap.metrics.features import features_of
    from vap.metrics.networks import EfficientNetLite0, read_weights

    device = "cuda" if torch.cuda.is_available() else "cpu"
    extractor = None
    if weights.exists():  # in float16, as the bundle has them
        whole = {name: v.float() if v.is_floating_point() else v for name, v in read_weights(weights).items()}
        torch.save(whole, work / weights.name)
        extractor = EfficientNetLite0(work / weights.name).to(device)
    features: dict[str, bytes] = {}
    kept = False
    with (
        zipfile.ZipFile(out / "curves.zip", "w", zipfile.ZIP_DEFLATED) as curves,
        zipfile.ZipFile(out / "grids.zip", "w") as grids,
        zipfile.ZipFile(out / "samples.zip", "w") as samples,
    ):
        for run in runs:
            folder = work / run.name
            for path in (
                folder / "log.txt",
                *folder.glob("results/models/*/*/train.csv"),
                *folder.glob("logs/train/*/*.csv"),
            ):
                curves.write(path, f"{run.name}-{path.name}")
            for path in sorted(folder.glob("results/*/*/*.arrow")):
                name = f"{run.name}-{path.stem.rpartition('-')[2]}"
                images = pictures(path)
                grids.writestr(f"{name}.jpg", jpeg(grid_of(images), 90))
                if not kept and run.method == "vap":
                    kept = True
                    for i, image in enumerate(images[:KEPT]):
                        samples.writestr(f"{name}-{i:04d}.jpg", jpeg(image, 88))
                if extractor is not None:
                    found = features_of(iter(images), extractor, 256)["pooled"].numpy().astype(np.float16)
                    labels = np.asarray(ArrowFile(path, "samples").column("label"))
                    buffer = io.BytesIO()
                    np.savez(buffer, pooled=found, label=labels)
                    features[name] = buffer.getvalue()
                say(start, name, f"{len(images)} images packed")
    number, size = 0, 0.0
    for name, data in features.items():
        if size + len(data) / 1e6 > FILE_MB:
            number, size = number + 1, 0.0
        size += len(data) / 1e6
        with zipfile.ZipFile(out / f"features-{number}.zip", "a") as archive:
            archive.writestr(f"{name}.npz", data)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.repeat", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("run", nargs="+", type=Run.parse)
    parser.add_argument("--steps", type=int, help="of training, for all runs; default: those of params.yaml")
    parser.add_argument("--n", type=int, help="samples; default: those of params.yaml")
    args = parser.parse_args(argv)
    start = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.project / "runs"
    for run in args.run:
        lay_out(args.project, work / run.name, run, args.steps, args.n)
    with ThreadPoolExecutor(len(args.run)) as pool:
        for _ in pool.map(lambda run: complete(work / run.name, run, args.dataset, start), args.run):
            pass
    pack(work, args.out, args.run, args.dataset, args.project / "efficientnet-lite0.pth", start)
    say(
        start,
        "packed:",
        ", ".join(f"{p.name} {p.stat().st_size / 1e6:.1f} MB" for p in sorted(args.out.iterdir())),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
