"""Toy images of two classes that any network tells apart, as prepared and as sampled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from toy import settings, write

from vap.datasets.images import encode
from vap.params import Params, parse

CLASSES = ["dark", "light"]
PREPARED = Path("data/prepared/own.arrow")
SAMPLES = Path("results/samples/own/vap-seen.arrow")
NETWORK = {"model": "test_resnet", "weights": None, "image_size": 32, "steps": 6, "batch_size": 6, "lr": 1e-2}


def image(number: int, light: bool, size: int = 16) -> bytes:
    rng = np.random.default_rng(number)
    return encode(rng.integers(130 if light else 0, 255 if light else 120, (size, size, 3), np.uint8))


def write_prepared(train: int = 24, test: int = 10, classes: list[str] = CLASSES) -> Path:
    rows = [
        {
            "id": f"i{i}",
            "label": CLASSES[i % 2],
            "split": "train" if i < train else "test",
            "group": f"g{i}",
            "sha256": "",
            "image": image(i, bool(i % 2)),
            "attributes": None,
        }
        for i in range(train + test)
    ]
    return write(PREPARED, "prepared", rows, classes=classes, modality="dermoscopy")


def write_samples(n: int = 9) -> Path:
    """Two thirds of them dark."""
    rows = [
        {
            "index": i,
            "label": CLASSES[i % 3 == 0],
            "text": None,
            "image": image(1000 + i, i % 3 == 0),
        }
        for i in range(n)
    ]
    return write(SAMPLES, "samples", rows, classes=CLASSES)


def params(**changes: Any) -> Params:
    """Of one small network, `net`; `changes` by key of downstream, network__KEY for the network's."""
    own = {key.removeprefix("network__"): changes[key] for key in changes if key.startswith("network__")}
    shared = {key: value for key, value in changes.items() if not key.startswith("network__")}
    lists = {"classifiers": ["net"], "ratios": ["1", "50", "100"], "sources": ["vap"]}
    return with_downstream(settings(), {**lists, "classifier": {"net": {**NETWORK, **own}}, **shared})


def with_downstream(params: Params, changes: Mapping[str, Any]) -> Params:
    """Settings with these keys of downstream, and the runs that generator_ratios asks for."""
    data = params.model_dump()
    data["downstream"] |= changes
    own = data["downstream"]
    for names in data["learns_from"].values():
        names += [f"{m}_data{r}" for m in own["sources"] if m in names for r in own["generator_ratios"]]
    return parse(data)
