"""What a GPU machine without a network needs, in one folder: code, wheels of what it lacks, and data.

`python -m benchmarks.gpu.bundle FOLDER` packs (`make gpu-bundle`); README.txt in the folder says what to run
there. The machine has Python, torch >= 2.11, numpy, pyarrow, safetensors, accelerate, PyYAML, pillow, scipy
and pytest; the wheels are of the versions that requirements.lock pins.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from vap.artifacts import ROOT
from vap.errors import VapError

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
README = """To run on the GPU machine, in this folder:

    python3 -m pip install --no-index --no-deps --target site wheels/*.whl
    export PYTHONPATH=$PWD/site:$PWD/code
    (cd code && python3 -m pytest tests/gpu)           # right to a stated tolerance?
    (cd code && python3 -m benchmarks train_step)      # a benchmark; also sample_50, train_loop, methods
{data}"""
WITH_DATA = """    tar -xf data.tar.xz
    python3 -m benchmarks.gpu.repeat . out {dataset} uvit vap vap_without_pcm
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
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / "code" / name, ignore=shutil.ignore_patterns("__pycache__", "out")
            )
        else:
            (folder / "code" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "code" / name)
    if wheels is None:
        download(folder / "wheels", python)
    else:
        for wheel in sorted(wheels.glob("*.whl")):
            shutil.copy(wheel, folder / "wheels")
    for wheel in (folder / "wheels").glob("diffusers-*.whl"):
        trim(wheel, "diffusers/pipelines/")
    if project is not None and dataset is not None:
        with tarfile.open(folder / "data.tar.xz", "w:xz") as archive:
            for pattern in DATA:
                source = project / pattern.format(dataset)
                if not source.exists():
                    raise VapError(source, "no such file", "an artefact of the dataset", "run its stage")
                archive.add(source, pattern.format(dataset))
            add_features_weights(archive, folder)
    data = WITH_DATA.format(dataset=dataset) if dataset is not None else ""
    (folder / "README.txt").write_text(README.format(data=data), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > LIMIT_MB:
        fix = "fewer images, another bank dtype, or the data by other means"
        raise VapError(folder, f"{size:.0f} MB", f"at most {LIMIT_MB} MB", fix)
    print(f"{folder}: {size:.1f} MB; README.txt says what to run")


def add_features_weights(archive: tarfile.TarFile, folder: Path) -> None:
    """The weights of EfficientNet-Lite0, rounded to float16: half the size."""
    import torch

    from vap.metrics.features import weights_file
    from vap.metrics.networks import read_weights

    weights = read_weights(weights_file("efficientnet-lite0", None))
    small = folder / "efficientnet-lite0.pth"
    torch.save({name: v.half() if v.is_floating_point() else v for name, v in weights.items()}, small)
    archive.add(small, small.name)
    small.unlink()


def trim(wheel: Path, unused: str) -> None:
    """Leave a folder out of a wheel: half of diffusers is pipelines, of which nothing is used here."""
    smaller = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as part:
        for entry in whole.infolist():
            data = whole.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                data = b"".join(
                    line for line in data.splitlines(True) if not line.startswith(unused.encode())
                )
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
