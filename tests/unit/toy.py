"""Toy artefacts of two classes, small enough to train on in a blink; and the settings that fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from vap.common.artifacts import SCHEMAS, Kind, build_arrow
from vap.common.errors import VapError
from vap.datasets.images import encode
from vap.params import Params, parse
from vap.profiles import profile_text

PROJECT = Path(__file__).resolve().parents[2]
SMOKE = profile_text(PROJECT / "config/smoke.yaml")  # as params.yaml
CLASSES = ["mole", "scar"]
SHAPE = (2, 4, 4)  # of the latents
WIDTH = 6  # of a token state
SIDE = 16  # pixels of the images
LATENTS = Path("data/latents/own.arrow")
PREPARED = Path("data/prepared/own.arrow")
BANK = Path("data/prompts/own.arrow")


def settings(seeds: Sequence[int] = (), **changes: Any) -> Params:
    """params.yaml with one dataset, `own`, and tiny networks; `changes` by dotted key, __ for the dot.

    Args:
        seeds: of further runs of every method.
    """
    data = yaml.safe_load(SMOKE)
    data["datasets"], data["dataset"] = ["own"], {"own": data["dataset"]["phantom-isic2018"]}
    data["compute"] |= {"device": "cpu", "threads": 1}
    data["train"] |= {"log_every": 2, "checkpoint_every": 3}
    for method in data["method"].values():
        sizes = {"width": 16, "depth": 2, "heads": 2, "patch": 2, "image_size": SIDE, "multipliers": [1, 2]}
        sizes |= {"attention": [1], "layers": 4, "channel_max": 8, "discriminator_channel_max": 8}
        method["model"] |= {key: value for key, value in sizes.items() if key in method["model"]}
        method["train"] |= {"steps": 8, "batch_size": 4}
        method["train"] |= {"warmup_steps": 2} if "warmup_steps" in method["train"] else {"r1_interval": 3}
    data["method"]["vap"]["model"]["prototype_tokens"] = 2
    for key, value in changes.items():
        *path, last = key.split("__")
        place = data
        for name in path:
            place = place[name]
        place[last] = value
    data["methods"] = [run for m in data["methods"] for run in (m, *(f"{m}_seed{s}" for s in seeds))]
    for kind, names in data["learns_from"].items():
        data["learns_from"][kind] = [run for m in names for run in (m, *(f"{m}_seed{s}" for s in seeds))]
    data["downstream"]["sources"] = [m for m in data["downstream"]["sources"] if m in data["methods"]]
    return parse(data)


def write(path: Path, kind: Kind, rows: list[dict[str, Any]], **metadata: Any) -> Path:
    """An artefact of any kind with the given rows."""

    def make_part(span: range) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows[span.start : span.stop], schema=SCHEMAS[kind])

    record = {"stage": f"toy-{kind}", "item": [path.stem]}
    build_arrow(path, kind, len(rows), make_part, record, part_rows=5, metadata=metadata)
    return path


def write_latents(path: Path, train: int = 11, test: int = 3) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(train + test):
        mean = rng.normal(0, 2, SHAPE)
        logvar = rng.normal(-4, 0.1, SHAPE)
        rows.append(
            {
                "id": f"i{i:02d}",
                "label": CLASSES[i % 2],
                "split": "train" if i < train else "test",
                "moments": np.concatenate([mean, logvar]).astype(np.float32).ravel(),
            }
        )
    return write(path, "latents", rows, shape=list(SHAPE), scale=0.5, factor=2, classes=CLASSES)


def write_prepared(path: Path, train: int = 11, test: int = 3, side: int = SIDE) -> Path:
    """Images of one colour each, near that of their class."""
    rng = np.random.default_rng(2)
    rows = []
    for i in range(train + test):
        colour = np.array([200, 120, 90] if i % 2 else [40, 60, 160]) + rng.integers(-30, 30, 3)
        pixels = np.broadcast_to(colour, (side, side, 3)) + rng.integers(-8, 8, (side, side, 3))
        rows.append(
            {
                "id": f"i{i:02d}",
                "label": CLASSES[i % 2],
                "split": "train" if i < train else "test",
                "group": f"g{i:02d}",
                "sha256": f"{i:064x}",
                "image": encode(pixels.clip(0, 255).astype(np.uint8)),
                "attributes": None,
            }
        )
    return write(path, "prepared", rows, classes=CLASSES)


def bank_row(text: str, tokens: np.ndarray, images: list[tuple[str, str, str]]) -> dict[str, Any]:
    """A row of a bank; `images` are (id, label, split)."""
    return {
        "text": text,
        "tokens": tokens.astype(np.float16).tobytes(),
        "scales": [],
        "pooled": tokens.mean(0).astype(np.float16),
        "ids": [image for image, _, _ in images],
        "labels": [label for _, label, _ in images],
        "splits": [split for _, _, split in images],
    }


def write_bank(path: Path, images: int = 14, train: int = 11) -> Path:
    """Descriptions of the images of `write_latents`; images 0 and 2 share one."""
    rng = np.random.default_rng(1)
    rows = [bank_row("", rng.normal(size=(2, WIDTH)), [])]
    for i in range(images):
        entry = (f"i{i:02d}", CLASSES[i % 2], "train" if i < train else "test")
        if i == 2:
            for key, value in zip(("ids", "labels", "splits"), entry, strict=True):
                rows[1][key].append(value)
            continue
        rows.append(bank_row(f"text {i}", rng.normal(size=(2 + i % 4, WIDTH)), [entry]))
    return write(
        path,
        "bank",
        rows,
        width=WIDTH,
        max_tokens=6,
        dtype="fp16",
        encoder="toy",
        revision="toy",
        classes=CLASSES,
    )


def write_bank_of(path: Path, ids: list[str], label: str) -> Path:
    """A bank in which each image has a description of its own."""
    rng = np.random.default_rng(3)
    rows = [bank_row("", rng.normal(size=(2, WIDTH)), [])]
    rows += [bank_row(f"text {i}", rng.normal(size=(3, WIDTH)), [(i, label, "train")]) for i in ids]
    names = {"width": WIDTH, "max_tokens": 6, "dtype": "fp16", "encoder": "toy", "revision": "toy"}
    return write(path, "bank", rows, classes=[label], **names)


def write_own() -> None:
    """What every method learns from, where the stages look for it."""
    write_latents(LATENTS)
    write_prepared(PREPARED)
    write_bank(BANK)


def said_by(work: Callable[[], object]) -> str:
    """What `work` says when it refuses its input, one line; nothing where it is done."""
    try:
        work()
    except VapError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said
    return said
