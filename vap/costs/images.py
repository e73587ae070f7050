"""How many images a dataset has, or will have once it is prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vap.common.places import prepared_path
from vap.params import (
    ChestXray14Params,
    DatasetParams,
    Isic2019Params,
    Params,
    PlainDatasetParams,
    PrepareParams,
)


@dataclass(frozen=True)
class Images:
    """Images of a dataset by split; None where that is not known."""

    train: int | None
    val: int | None
    test: int | None
    classes: int | None
    source: str

    @property
    def all(self) -> int | None:
        parts = (self.train, self.val, self.test)
        return None if None in parts else sum(part for part in parts if part is not None)


def images_of(params: Params, name: str, official: Mapping[str, Any]) -> Images:
    """What the dataset has, or will have once it is prepared.

    Args:
        official: counts by adapter, of vap/costs/rates.yaml.
    """
    path = prepared_path(name)
    if path.is_file():
        from vap.common.artifacts import ArrowFile

        file = ArrowFile(path, "prepared")
        splits = file.column("split")
        train, val, test = (sum(split == own for split in splits) for own in ("train", "val", "test"))
        return Images(train, val, test, len(file.metadata["classes"]), "prepared")
    found = _official(params.dataset[name], name, params.prepare, official)

    def least(n: int | None, limit: int | None) -> int | None:
        return n if n is None or limit is None else min(n, limit)

    train = least(found.train, params.prepare.max_train)
    test = least(found.test, params.prepare.max_test)
    return Images(train, found.val, test, found.classes, found.source)


def _official(own: DatasetParams, name: str, prepare: PrepareParams, official: Mapping[str, Any]) -> Images:
    if isinstance(own, PlainDatasetParams) and own.adapter == "phantom":
        return _phantom(name)
    if isinstance(own, PlainDatasetParams) and own.adapter == "isic2018":
        known = official["isic2018"]
        return Images(known["train"], known["val"], known["test"], known["classes"], "official")
    if isinstance(own, Isic2019Params):
        known = official["isic2019"]
        n = known["all"] - (known["isic2018"] if own.exclude_isic2018 else 0)
        return _divided(n, prepare, known["classes"], "official; split by share, about")
    if isinstance(own, ChestXray14Params) and own.table == "v2020":
        known = official["chestxray14"]
        more = known["no_finding"] if own.include_no_finding else [0, 0]
        train, test = known["train"] + more[0], known["test"] + more[1]
        classes = known["classes"] + own.include_no_finding
        if own.split == "patient":
            return _divided(train + test, prepare, classes, "official; split by share, about")
        return Images(train, 0, test, classes, "official")
    return Images(None, None, None, None, "unknown until it is prepared")


def _divided(n: int, prepare: PrepareParams, classes: int, source: str) -> Images:
    test = math.floor(n * prepare.test_fraction + 0.5)
    return Images(n - test, 0, test, classes, source)


def _phantom(name: str) -> Images:
    from vap.datasets.phantom import load_spec

    path = Path("data/raw") / name / "phantom.yaml"
    if not path.is_file():
        return Images(None, None, None, None, f"unknown: no {path}")
    spec = load_spec(path)
    train, test = (sum(spec.counts[split].values()) for split in ("train", "test"))  # type: ignore[index]
    return Images(train, 0, test, len(spec.classes), "phantom.yaml")
