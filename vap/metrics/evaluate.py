"""evaluate: samples against the real images of a dataset, by every metric of docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vap.captioning.adherence import adherence
from vap.common.artifacts import ArrowFile, provenance, rank_and_world, write_json
from vap.common.errors import VapError
from vap.common.places import metrics_path, prepared_path, samples_path, set_up_torch
from vap.metrics.fidelity import frechet_distance, frechet_distance_by_class, measure
from vap.metrics.store import FeatureStore, pixels, size_of
from vap.params import EvaluateParams, Params

LIBRARIES = ("numpy", "pillow", "pyarrow", "safetensors", "scikit-image", "scipy", "torch")
SPLITS = ("train", "test")


def run(params: Params, dataset: str, method: str, condition: str) -> Path:
    """Write `metrics_path`, whose keys docs/metrics.md lists.

    The first evaluate.n samples are measured against as many images of the split
    evaluate.reference, drawn by seed, or against all of them where there are fewer (`n_reference`
    says how many). `fid_train` and `fid_test` are of `n_matched` images on every side, so that they can be
    compared with one another and with the floor. Images are streamed; only their features are held. Of
    several processes the first measures and the others return at once.

    Raises:
        VapError: an input is absent, foreign, too small or damaged, the two differ in image size,
            or a metric is not a number.
    """
    path = metrics_path(dataset, method, condition)
    if rank_and_world()[0]:
        return path
    device = set_up_torch(params.compute)
    settings = params.evaluate
    samples = ArrowFile(samples_path(dataset, method, condition), "samples")
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    if len(samples) < settings.n:
        found = f"{len(samples)} samples (sample.n: {params.sample.n})"
        fix = "lower evaluate.n, or raise sample.n and sample again"
        raise VapError(samples.path, found, f"evaluate.n: {settings.n} or more", fix)
    rows = {split: split_rows(prepared, split, settings.n, params.seed) for split in SPLITS}
    reference = rows[settings.reference]
    _check_sets(samples, prepared, reference, settings)
    sets = ImageSets(settings, device)
    record = provenance(
        "evaluate",
        (dataset, method, condition),
        params={"seed": params.seed, "evaluate": settings.model_dump()},
        inputs={"samples": samples.path, "prepared": prepared.path, **sets.inputs},
        libraries=[*LIBRARIES, *sets.libraries],
    )
    label = f"evaluate {dataset} {method} {condition}"
    generated = sets.get(samples, range(settings.n), label)
    real = {split: sets.get(prepared, rows[split], label) for split in SPLITS if len(rows[split]) > 1}
    labels = samples.column("label")[: settings.n]
    metrics = compare(
        generated, real[settings.reference], labels, labels_of(prepared, reference), prepared, params
    )
    n_matched = min(settings.n, *(len(found["pooled"]) for found in real.values()))
    for split in SPLITS:
        metrics[f"fid_{split}"] = None
        if split in real:
            few = some(len(real[split]["pooled"]), n_matched, params.seed)
            matched = generated["pooled"][:n_matched], real[split]["pooled"][few]
            metrics[f"fid_{split}"] = frechet_distance(*matched)
    metrics["n_matched"] = n_matched
    metrics |= adherence(samples, settings.n, str(prepared.metadata.get("modality")), params.seed)
    check_numbers(metrics, samples.path)
    write_json(
        path,
        {
            "dataset": dataset,
            "method": method,
            "condition": condition,
            "features": settings.features,
            "reference": settings.reference,
            "n": settings.n,
            "n_reference": len(reference),
            "seed": params.seed,
            "prc_features": settings.prc_features or settings.features,
            **metrics,
            "provenance": record,
        },
    )
    return path


# ── sets ──────────────────────────────────────────────────────────────────────────────────────────


class ImageSets:
    """The features of image sets by the networks that params.yaml names: evaluate.features, and
    evaluate.prc_features where that is another.

    Attributes:
        inputs: the weights' files that params.yaml names.
        libraries: distributions that the numbers depend on.
    """

    def __init__(self, settings: EvaluateParams, device: torch.device) -> None:
        named = {"features": (settings.features, settings.features_path)}
        if settings.prc_features is not None:
            named["prc_features"] = (settings.prc_features, settings.prc_features_path)
        self.stores = {
            key: FeatureStore(features, path, device, settings.batch_size, f"evaluate.{key}_path")
            for key, (features, path) in named.items()
        }
        self.inputs = {key: Path(path) for key, (_, path) in named.items() if path is not None}
        libraries = {name for store in self.stores.values() for name in store.libraries}
        self.libraries = sorted(libraries | ({"scikit-learn"} if settings.prd else set()))
        # linear algebra in float64 is for CPUs and CUDA; elsewhere features alone use the device
        self.place = device if device.type == "cuda" else torch.device("cpu")

    def get(self, file: ArrowFile, rows: Sequence[int], label: str) -> dict[str, Tensor]:
        """What `measure` needs of the images in `rows`."""
        found = self.stores["features"].get(file, rows, label)
        if "prc_features" in self.stores:
            found["prc"] = self.stores["prc_features"].get(file, rows, label)["pooled"]
        return {name: value.to(self.place) for name, value in found.items()}


def compare(
    generated: Mapping[str, Tensor],
    real: Mapping[str, Tensor],
    labels: Sequence[str],
    real_labels: Sequence[str],
    prepared: ArrowFile,
    params: Params,
) -> dict[str, Any]:
    """All metrics of one set against another, and `fid_by_class` over the dataset's classes."""
    settings = params.evaluate
    metrics: dict[str, Any] = dict(measure(generated, real, settings, params.seed))
    classes = prepared.metadata.get("classes") or sorted({*labels, *real_labels})
    metrics["fid_by_class"] = frechet_distance_by_class(
        generated, real, labels, real_labels, classes, settings.class_n
    )
    return metrics


def split_rows(prepared: ArrowFile, split: str, n: int, seed: int) -> list[int]:
    """Rows of a split in the file's order: n drawn by seed, or all if there are fewer.

    The same for every method and condition of a dataset.
    """
    rows = prepared.rows_of(split)
    if len(rows) > n:
        rows = np.random.default_rng(seed).choice(rows, n, replace=False)
    return sorted(int(row) for row in rows)


def labels_of(prepared: ArrowFile, rows: Sequence[int]) -> list[str]:
    labels = prepared.column("label")
    return [labels[row] for row in rows]


def some(n: int, most: int, seed: int) -> Tensor:
    """At most `most` of n places, drawn by seed, in order."""
    return torch.from_numpy(np.sort(np.random.default_rng([seed, 32]).permutation(n)[:most]))


# ── checks ────────────────────────────────────────────────────────────────────────────────────────


def check_numbers(metrics: Mapping[str, Any], where: Path) -> None:
    """Raise a VapError where a metric, at any depth, is neither finite nor null."""
    if bad := [f"{name} {value}" for name, value in _leaves(metrics) if not math.isfinite(value)]:
        fix = "look at the samples' preview; train or sample again"
        raise VapError(where, f"images that give {', '.join(bad)}", "numbers", fix)


def _leaves(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves({f"{name}.{key}": inner for key, inner in value.items()})
        elif value is not None:
            yield name, value


def _check_sets(
    samples: ArrowFile, prepared: ArrowFile, reference: list[int], settings: EvaluateParams
) -> None:
    """Raise a VapError where sets are too small for the metrics or differ in image size."""
    if len(reference) < 2:
        found = f"{len(reference)} images of split {settings.reference}"
        fix = "correct evaluate.reference, or prepare again"
        raise VapError(prepared.path, found, "two or more", fix)
    smaller = min(settings.n, len(reference))
    for key, value, most in (
        ("neighbours", settings.neighbours, smaller - 1),
        ("isc_splits", settings.isc_splits, settings.n),
    ):
        if value > most:
            found = f"{value} for {settings.n} samples and {len(reference)} reference images"
            where = f"params.yaml: evaluate.{key}"
            raise VapError(where, found, f"{most} or less", "lower it, or measure more images")
    ours, theirs = (
        size_of(next(pixels(file, [row]))) for file, row in ((samples, 0), (prepared, reference[0]))
    )
    if ours != theirs:
        found = f"images of {ours} pixels"
        expected = f"{theirs} as in {prepared.path}"
        raise VapError(samples.path, found, expected, "train and sample on the prepared images")
