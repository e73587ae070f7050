"""`vap generate`: images from a bundle, with a grid and a record of what made each."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vap import __version__
from vap.common.artifacts import atomic, require_place, write_json
from vap.common.errors import VapError
from vap.datasets.images import encode, write_grid
from vap.sampling.bundle import bundle_hash
from vap.sampling.pipeline import VAPDiffusion

RECORD, GRID = "images.json", "grid.png"
LIBRARIES = ("torch", "numpy", "pillow", "safetensors")


def generate(
    bundle: Path,
    labels: Sequence[str],
    texts: Sequence[str],
    n: int,
    out: Path,
    *,
    seed: int = 0,
    guidance_scale: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    dtype: str = "fp32",
) -> list[Path]:
    """Write n PNGs of each class and text, `grid.png` and `images.json` into a new folder.

    Args:
        labels, texts: as VAPDiffusion's; no text draws from the bank.
        out: a folder that is not there, or empty.

    Returns:
        the images' files.

    Raises:
        VapError: `out` holds something, or as VAPDiffusion's.
    """
    require_new(out, "name another with -o")
    pipe = VAPDiffusion.from_pretrained(bundle, device=device, dtype=dtype)
    if not labels and len(pipe.classes) > 1:
        raise VapError("--class", "none", f"one of {', '.join(pipe.classes)}", "name one")
    drawn = pipe(
        list(labels) or pipe.classes,
        list(texts) or None,
        n,
        guidance_scale=guidance_scale,
        steps=steps,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    entries: list[dict[str, Any]] = []
    with atomic(out) as part:
        part.mkdir(parents=True)
        for i, image in enumerate(drawn.images):
            name = f"{i:05d}-{file_part(drawn.labels[i])}.png"
            (part / name).write_bytes(encode(np.asarray(image)))
            entries.append(
                {
                    "file": name,
                    "class": drawn.labels[i],
                    "text": drawn.texts[i],
                    "seed": drawn.seed,
                    "index": i,
                }
            )
        write_grid(part / GRID, [np.asarray(image) for image in drawn.images])
        own = pipe.generator.varied(guidance_scale, steps)
        record = {
            "bundle": {"path": bundle.name, "sha256": bundle_hash(bundle), "model": pipe.name},
            "n": n,
            **own.told(),
            "device": _device_name(pipe.device),
            "threads": pipe.threads,
            "libraries": {"vap": __version__, **{name: version(name) for name in LIBRARIES}},
            "images": entries,
        }
        write_json(part / RECORD, record)
    return [out / entry["file"] for entry in entries]


def require_new(folder: Path, fix: str) -> None:
    """A folder that is not there, or empty, and can be written.

    Raises:
        VapError: something is there.
        OSError: it cannot be made.
    """
    if (folder.exists() and not folder.is_dir()) or (folder.is_dir() and any(folder.iterdir())):
        raise VapError(folder, "something there", "a new or an empty folder", fix)
    require_place(folder)


def file_part(label: str) -> str:
    """A class's name as part of a file's: letters, digits, dots, dashes and underscores, at most 40."""
    return re.sub(r"[^\w.-]+", "_", label).strip(".-")[:40] or "class"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
