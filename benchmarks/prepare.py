"""The prepare stage against a bare loop of decode and resize, in as many processes as processors.

The images are 600 x 450 JPEGs, as ISIC 2018's. The bare loop keeps nothing; the stage also hashes the files,
encodes PNGs and writes the artefact. `ours` is 10,000 images at 64 pixels; the details have 1,000 and 10,000
with the peak memory of each, and 256 pixels in the two storages that are meant for that size.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import Result, sized

PROJECT = Path(__file__).resolve().parents[1]
FEW, MANY = sized(1_000, 40), sized(10_000, 80)
RUNS = [(FEW, 64, "png"), (MANY, 64, "png"), (FEW, 256, "png-fast"), (FEW, 256, "raw")]


def run() -> Result:
    details: dict[str, float | str] = {}
    ours = reference = 0.0
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder))
        for images, size, storage in RUNS:
            rate, peak = stage(Path(folder), images, size, storage)
            bare = loop(files[:images], size)
            name = f"{images}_images_{size}_px_{storage}"
            details |= {f"{name}_img_s": rate, f"{name}_bare_img_s": bare, f"{name}_ratio": rate / bare}
            details[f"{name}_peak_mb"] = peak
            if images == MANY:
                ours, reference = rate, bare
    return Result(ours, reference, "img/s", details)


def draw(folder: Path) -> list[Path]:
    """MANY files, a few hundred of them different, in two classes of data/raw/few and data/raw/many."""
    rng = np.random.default_rng(0)
    originals = []
    for number in range(200):
        blobs = Image.fromarray(rng.integers(60, 220, (9, 12, 3), dtype=np.uint8)).resize((600, 450), 3)
        noise = rng.normal(0, 5, (450, 600, 3))
        original = folder / f"original-{number}.jpg"
        Image.fromarray(np.clip(blobs + noise, 0, 255).astype(np.uint8)).save(original, quality=85)
        originals.append(original)
    for name, count in (("few", FEW), ("many", MANY)):
        for label in "ab":
            (folder / "data/raw" / name / label).mkdir(parents=True)
        for number in range(count):
            os.link(
                originals[number % len(originals)],
                folder / "data/raw" / name / "ab"[number % 2] / f"{number:05d}.jpg",
            )
    return sorted((folder / "data/raw/many").rglob("*.jpg"))


def stage(folder: Path, images: int, size: int, storage: str) -> tuple[float, float]:
    """(img/s, MB of resident memory at most) of the stage in a process of its own."""
    name = "few" if images == FEW else "many"
    command = [sys.executable, "-m", "benchmarks.prepare", name, str(size), storage]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    out = subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, peak = json.loads(out)
    return images / seconds, peak


def prepare(name: str, size: int, storage: str) -> None:
    """Run the stage in this folder, then print its seconds and this process's peak memory in MB."""
    import yaml

    from vap.datasets.prepare import run as stage
    from vap.params import parse

    data = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = [name], {name: {"adapter": "folder", "modality": "dermoscopy"}}
    data["prepare"] |= {"image_size": size, "storage": storage, "max_train": None, "max_test": None}
    start = time.perf_counter()
    stage(parse(data), name)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def bare(job: tuple[Path, int]) -> None:
    path, size = job
    with Image.open(path) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def loop(files: list[Path], size: int) -> float:
    """img/s of the bare loop, its processes already there."""
    from vap.datasets.ahead import processors

    with multiprocessing.get_context("spawn").Pool(processors()) as pool:
        pool.map(bare, [(path, size) for path in files[:32]])
        start = time.perf_counter()
        pool.map(bare, [(path, size) for path in files], chunksize=16)
        return len(files) / (time.perf_counter() - start)


if __name__ == "__main__":
    prepare(sys.argv[1], int(sys.argv[2]), sys.argv[3])
