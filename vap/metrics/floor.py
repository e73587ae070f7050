"""floor: real images against other real images of a dataset, by the metrics of the evaluate stage.

No sample can be asked to do better: what is left of a distance here is the size of the sets, and what the two
splits differ in.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vap.captioning.adherence import described_right
from vap.common.artifacts import ArrowFile, provenance, rank_and_world, write_json
from vap.common.places import floor_path, prepared_path, set_up_torch
from vap.metrics.evaluate import (
    LIBRARIES,
    SPLITS,
    ImageSets,
    check_numbers,
    compare,
    labels_of,
    some,
    split_rows,
)
from vap.metrics.features import joined
from vap.params import Params


def run(params: Params, dataset: str) -> Path:
    """Write results/metrics/{dataset}/real.json.

    `train_test`: the split that is not evaluate.reference, in the samples' place, against the one that is.
    `train_halves`: two disjoint draws of the training split, one of them the reference of the evaluate
    stage where that is at most half of the split. Both sides of either have n images: evaluate.n, or as
    many as there are. A part is null where n is too small for the metrics. `described_right`: how often the
    measured describer sees the true attributes of images of evaluate.reference, by attribute, the most that
    `adherence` can reach; null where the truth is not known.

    Raises:
        VapError: the dataset is absent or foreign, an image is damaged, or a metric is not a number.
    """
    path = floor_path(dataset)
    if rank_and_world()[0]:
        return path
    device = set_up_torch(params.compute)
    settings = params.evaluate
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    sets = ImageSets(settings, device)
    record = provenance(
        "floor",
        (dataset,),
        params={"seed": params.seed, "evaluate": settings.model_dump()},
        inputs={"prepared": prepared.path, **sets.inputs},
        libraries=[*LIBRARIES, *sets.libraries],
    )
    label = f"floor {dataset}"
    rows = {split: split_rows(prepared, split, settings.n, params.seed) for split in SPLITS}
    more = _others(prepared, rows["train"], settings.n, params.seed)
    halves = rows["train"] + more
    order = np.arange(len(halves))
    if len(more) < len(rows["train"]):  # fewer than two whole sets: halve what there is
        order = np.random.default_rng([params.seed, 34]).permutation(len(halves))
    half = len(halves) // 2
    images = {split: sets.get(prepared, own, label) for split, own in rows.items() if own}
    if more:
        images["halves"] = joined([images["train"], sets.get(prepared, more, label)])

    def part(one: str, own: np.ndarray, other: str, others: np.ndarray) -> dict[str, Any] | None:
        n = len(own)
        if n <= max(settings.neighbours, settings.isc_splits - 1, 1):
            return None
        places = {"train": rows["train"], "test": rows["test"], "halves": halves}
        labels, real_labels = (
            labels_of(prepared, [places[name][i] for i in chosen])
            for name, chosen in ((one, own), (other, others))
        )
        generated, real = _take(images[one], own), _take(images[other], others)
        found = compare(generated, real, labels, real_labels, prepared, params)
        return {"n": n, "n_reference": n, **found}

    other = SPLITS[1 - SPLITS.index(settings.reference)]
    matched = min(len(rows[split]) for split in SPLITS)
    draws = {split: some(len(rows[split]), matched, params.seed).numpy() for split in SPLITS}
    parts = {
        "train_test": part(other, draws[other], settings.reference, draws[settings.reference]),
        "train_halves": part("halves", order[half : 2 * half], "halves", order[:half]) if more else None,
    }
    check_numbers({name: found for name, found in parts.items() if found}, prepared.path)
    write_json(
        path,
        {
            "dataset": dataset,
            "features": settings.features,
            "reference": settings.reference,
            "seed": params.seed,
            "prc_features": settings.prc_features or settings.features,
            **parts,
            "described_right": described_right(
                prepared, rows[settings.reference], str(prepared.metadata.get("modality"))
            ),
            "provenance": record,
        },
    )
    return path


def _others(prepared: ArrowFile, rows: list[int], n: int, seed: int) -> list[int]:
    """Up to n training rows that are not among `rows`, drawn by seed, in the file's order."""
    train = prepared.rows_of("train")
    rest = np.setdiff1d(train, rows)
    drawn = np.random.default_rng([seed, 33]).permutation(rest)[:n]
    return sorted(int(row) for row in drawn)


def _take(features: Mapping[str, Tensor], rows: np.ndarray) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in features.items()}
