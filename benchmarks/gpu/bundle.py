"""What a GPU machine without a network needs, in one folder: code, wheels of what it lacks, and data.

`python -m benchmarks.gpu.bundle FOLDER` packs (`make gpu-bundle`); README.txt in the folder says what to run
there. The machine has Python, torch >= 2.11, numpy, pyarrow, safetensors, accelerate, PyYAML, pillow, scipy
and pytest; the wheels are of the versions that requirements.lock pins.
"""

from __future__ import annotations

import argparse
import io
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vap.common.artifacts import ROOT, ArrowFile
from vap.common.errors import VapError

if TYPE_CHECKING:
    from torch import Tensor

LIMIT_MB = 60
WHEELS = (
    "annotated-types",
    "diffusers",
    "importlib-metadata",
    "pydantic",
    "pydantic-core",
    "rich",
    "typer",
    "typing-extensions",
    "typing-inspection",
)
PLATFORMS = ("2_28_x86_64", "2_27_x86_64", "2_17_x86_64", "2014_x86_64", "1_x86_64")
CODE = (
    "vap",
    "benchmarks",
    "config",
    "tests/gpu",
    "tests/unit/toy.py",
    "tests/conftest.py",
    "pyproject.toml",
)
DATA = ("data/latents/{}.arrow", "data/prompts/{}.arrow", "data/autoencoders/{}", "params.yaml")
PREPARED = "data/prepared/{}.arrow"
FEATURES_WEIGHTS, REAL = "efficientnet-lite0.pth", "real.npz"
REAL_N = 2048  # real images of either split, whose features go along
UNUSED = ("diffusers/pipelines/", "diffusers/modular_pipelines/", "diffusers/commands/")  # half of it
# of four bytes at four-byte places: less by a twentieth than xz's own choice
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 1, "lp": 2, "pb": 2}]
README = """To run on the GPU machine, in this folder:

    tar -xf code.tar.xz
    python3 -m pip install --no-index --no-deps --target site wheels/*.whl
    export PYTHONPATH=$PWD/site:$PWD/code
    (cd code && python3 -m pytest tests/gpu)           # right to a stated tolerance?
    (cd code && python3 -m benchmarks train_step)      # a benchmark; also sample_50, train_loop, methods
{data}"""
WITH_DATA = """    tar -xf data.tar.xz
    python3 -m benchmarks.gpu.repeat . out {dataset} uvit vap vap_without_pcm --minutes 7.5
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu-bundle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is made, or made anew")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to take instead of downloading them")
    parser.add_argument("--project", type=Path, help="folder whose data go along; none: code and wheels")
    parser.add_argument("--dataset", help="whose latents, prompts and autoencoder go along")
    args = parser.parse_args(argv)
    try:
        pack(args.folder, args.python, args.wheels, args.project, args.dataset)
    except VapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def pack(folder: Path, python: str, wheels: Path | None, project: Path | None, dataset: str | None) -> None:
    """Make the folder.

    Raises:
        VapError: an artefact is absent, a wheel cannot be had, or the whole is larger than LIMIT_MB.
    """
    if folder.exists() and not (folder / "README.txt").exists():
        raise VapError(folder, "a folder that is no bundle", "a new one", "name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    compress(folder / "code.tar.xz", add_code)
    if wheels is None:
        download(folder / "wheels", python)
    else:
        for wheel in sorted(wheels.glob("*.whl")):
            shutil.copy(wheel, folder / "wheels")
    for wheel in (folder / "wheels").glob("diffusers-*.whl"):
        trim(wheel, UNUSED)
    if project is not None and dataset is not None:
        compress(folder / "data.tar.xz", lambda archive: add_data(archive, project, dataset))
    data = WITH_DATA.format(dataset=dataset) if dataset is not None else ""
    (folder / "README.txt").write_text(README.format(data=data), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > LIMIT_MB:
        fix = "fewer images, another bank dtype, or the data by other means"
        raise VapError(folder, f"{size:.0f} MB", f"at most {LIMIT_MB} MB", fix)
    print(f"{folder}: {size:.1f} MB; README.txt says what to run")


def compress(path: Path, fill: Callable[[tarfile.TarFile], None]) -> None:
    with lzma.open(path, "wb", filters=XZ) as file, tarfile.open(fileobj=file, mode="w") as archive:
        fill(archive)


def add_code(archive: tarfile.TarFile) -> None:
    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if Path(entry.name).name in ("__pycache__", "out") else entry

    for name in CODE:
        archive.add(ROOT / name, f"code/{name}", filter=wanted)


def add_data(archive: tarfile.TarFile, project: Path, dataset: str) -> None:
    for pattern in DATA:
        source = project / pattern.format(dataset)
        if not source.exists():
            raise VapError(source, "no such file", "an artefact of the dataset", "run its stage")
        archive.add(source, pattern.format(dataset))
    weights = features_weights()
    add_bytes(archive, FEATURES_WEIGHTS, weights)
    prepared = project / PREPARED.format(dataset)
    if prepared.exists():
        add_bytes(archive, REAL, real_features(prepared, weights))


def add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def features_weights() -> bytes:
    """The weights of EfficientNet-Lite0, rounded to float16: half the size."""
    import torch

    from vap.metrics.features import weights_file
    from vap.metrics.networks import read_weights

    weights = read_weights(weights_file("efficientnet-lite0", None))
    buffer = io.BytesIO()
    torch.save({name: v.half() if v.is_floating_point() else v for name, v in weights.items()}, buffer)
    return buffer.getvalue()


def real_features(prepared: Path, weights: bytes) -> bytes:
    """The features of real images by split, float16, for distances on the GPU machine."""
    import torch

    from vap.common.progress import Progress
    from vap.metrics.evaluate import SPLITS, split_rows
    from vap.metrics.features import features_of, load_extractor
    from vap.metrics.store import pixels

    rounded = torch.load(io.BytesIO(weights), weights_only=True)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        whole = {name: v.float() if v.is_floating_point() else v for name, v in rounded.items()}
        torch.save(whole, file.name)
        extractor = load_extractor("efficientnet-lite0", Path(file.name))
    images = ArrowFile(prepared, "prepared")
    parts: dict[str, Any] = {}
    for split in SPLITS:
        if len(rows := split_rows(images, split, REAL_N, 0)):
            with Progress(f"features {prepared.stem} {split}", len(rows), "img") as progress:
                found = features_of(pixels(images, rows), extractor, 64, progress)
            parts[split] = found["pooled"].half().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **parts)
    return buffer.getvalue()


def read_real(path: Path) -> dict[str, Tensor]:
    """What `real_features` packed, float32."""
    import torch

    with np.load(path) as parts:
        return {split: torch.from_numpy(parts[split]).float() for split in parts.files}


def trim(wheel: Path, unused: tuple[str, ...]) -> None:
    """Leave folders out of a wheel of which nothing is used here."""
    words = tuple(name.encode() for name in unused)
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as part:
        for entry in whole.infolist():
            data = whole.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data = b"".join(line for line in data.splitlines(True) if not line.startswith(words))
            if not entry.filename.startswith(unused):
                part.writestr(entry, data)
    smaller.replace(wheel)


def download(folder: Path, python: str) -> None:
    """The wheels that `requirements.lock` pins, for another machine's Python.

    Raises:
        VapError: pip says no.
    """
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = [found[0] for name in WHEELS if (found := re.findall(rf"^{name}==[^ ]+", lock, re.M))]
    own = ROOT / ".tools/bin/python"  # the project's own environment has no pip
    pip = [str(own if own.exists() else sys.executable), "-m", "pip", "download", "--quiet", "--no-deps"]
    target = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    platforms = [
        word for name in PLATFORMS for word in ("--platform", f"manylinux{'_' * (name[1] == '_')}{name}")
    ]
    done = subprocess.run(
        [*pip, *target, *platforms, "-d", str(folder), *pinned], capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise VapError(
            "pip download", said[0], "the wheels that requirements.lock pins", "look at the network"
        )


if __name__ == "__main__":
    sys.exit(main())
