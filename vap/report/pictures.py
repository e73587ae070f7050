"""The report's pictures: rows of images beside each other, sweeps, neighbours, and described images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from vap.captioning.measured_text import summary
from vap.captioning.measured_tools import Lesion
from vap.captioning.statements import UNSAID, stated
from vap.common.artifacts import ArrowFile
from vap.common.places import bank_path, captions_path, prepared_path, samples_path, set_up_torch
from vap.datasets.attributes import VOCABULARY
from vap.metrics.copies import nearest
from vap.metrics.store import FeatureStore
from vap.params import Params
from vap.prompts.bank import PromptBank
from vap.sampling.pipeline import VAPDiffusion

COLUMNS, NEIGHBOURS, EXAMPLES = 8, 6, 3
SIDE = 128  # pixels, of an image at most
MOST = 20_000  # training images among which neighbours are looked for


@dataclass(frozen=True)
class Picture:
    """An image of the page, with what is told of it."""

    source: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Row:
    name: str
    pictures: list[Picture]


def embedded(image: Image.Image) -> str:
    """A data URL of an image, not larger than SIDE pixels a side."""
    image = image.convert("RGB")
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return data_url(target.getvalue())


def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _picture(file: ArrowFile, row: int, alt: str, caption: str = "") -> Picture:
    return Picture(embedded(Image.open(io.BytesIO(file.value("image", row)))), alt, caption)


# ── real images and samples, class by class ─────────────────────────────────────────────────────────


def side_by_side(params: Params, dataset: str, methods: Sequence[str]) -> list[Row]:
    """A row of real training images and one a method, the classes in the same columns (Fig. 2)."""
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    classes = prepared.metadata["classes"]
    columns = [classes[i % len(classes)] for i in range(COLUMNS)]
    rows = [_row("real", prepared, prepared.rows_of("train"), columns)]
    for method in methods:
        samples = ArrowFile(samples_path(dataset, method, "seen"), "samples")
        rows.append(_row(method, samples, np.arange(len(samples)), columns))
    return rows


def _row(name: str, file: ArrowFile, rows: Sequence[int] | np.ndarray, columns: Sequence[str]) -> Row:
    labels = file.column("label")
    queue = {label: iter([int(row) for row in rows if labels[row] == label]) for label in set(columns)}
    found = [(label, next(queue[label], None)) for label in columns]
    return Row(
        name, [_picture(file, row, f"{name}, {label}", label) for label, row in found if row is not None]
    )


# ── one attribute at a time ─────────────────────────────────────────────────────────────────────────


def sweeps(params: Params, dataset: str, method: str) -> list[Row]:
    """Images from the same noise, one attribute of the sentence changed at a time; none where the words of
    the modality are not known, or no description of the bank states all that a sentence needs.
    """
    modality = params.dataset[dataset].modality
    bank = PromptBank(bank_path(dataset))
    found = next(_whole(bank, modality), None)
    if found is None:
        return []
    label, start = found
    pipe = VAPDiffusion.of_run(params, dataset, method)
    rows = []
    for attribute in ("size", "color", "shape", "texture"):
        values = VOCABULARY[modality][attribute]
        texts = [_sentence(modality, start | {attribute: value}) for value in values]
        # image i has noise i of the seed: the first of every call has the same
        drawn = [pipe(label, text, seed=0).images[0] for text in texts]
        pictures = [
            Picture(embedded(image), f"{label}: {text}", value)
            for image, text, value in zip(drawn, texts, values, strict=True)
        ]
        rows.append(Row(attribute, pictures))
    return rows


def _whole(bank: PromptBank, modality: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(class, attributes) of descriptions of training images that state every attribute once."""
    for entry in bank.file.rows(["text", "labels", "splits"]):
        said = stated(entry["text"] or "", modality)
        known = UNSAID | {name: values[0] for name, values in said.items() if len(values) == 1}
        labels = [a for a, b in zip(entry["labels"], entry["splits"], strict=True) if b == "train"]
        if labels and set(VOCABULARY.get(modality, {"?": ()})) <= known.keys():
            yield labels[0], known


# Of the image, within vap.datasets.attributes.SIZE_LIMITS: a sentence says it beside the size's name.
AREAS = {
    "dermoscopy": {"small": 0.05, "medium": 0.15, "large": 0.35},
    "chest_xray": {"small": 0.01, "medium": 0.02, "large": 0.05},
    "colonoscopy": {"small": 0.05, "medium": 0.1, "large": 0.25},
}


def _sentence(modality: str, found: dict[str, str]) -> str:
    area = AREAS[modality][found["size"]]
    return summary(modality, found, Lesion(np.ones((1, 1), bool), area, 1.0, 1.0, 0.0, 0.0, (0.5, 0.5)))


# ── nearest training images ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Neighbours:
    """Samples beside their nearest training images.

    Attributes:
        n: training images that were looked through.
        samples, test: median distance of a sample, and of a test image, to its nearest training image;
            `test` is None without test images.
    """

    pairs: list[tuple[Picture, Picture]]
    n: int
    samples: float
    test: float | None


def neighbours(params: Params, dataset: str, method: str) -> Neighbours:
    """Euclidean distances in the pooled features of evaluate.features, as the Fréchet distance has them."""
    settings = params.evaluate
    store = FeatureStore(
        settings.features, settings.features_path, set_up_torch(params.compute), settings.batch_size
    )
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    samples = ArrowFile(samples_path(dataset, method, "seen"), "samples")
    rows = prepared.rows_of("train")
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng(params.seed).choice(rows, MOST, replace=False))
    train = [int(row) for row in rows]
    n = min(len(samples), settings.n)
    label = f"report {dataset}"
    real = store.get(prepared, train, label)["pooled"].float()
    drawn = store.get(samples, range(n), label)["pooled"].float()
    near, place = nearest(drawn, real)
    test_rows = [int(row) for row in prepared.rows_of("test")][: settings.n]
    test = None
    if test_rows:
        test = float(nearest(store.get(prepared, test_rows, label)["pooled"].float(), real)[0].median())
    labels, own = samples.column("label"), prepared.column("label")
    closest = near.argsort(stable=True)[:NEIGHBOURS].tolist()  # where copies would be
    pairs = []
    for i in closest:
        j = train[int(place[i])]
        pairs.append(
            (
                _picture(samples, i, f"sample {i}, {labels[i]}", f"sample, {labels[i]}"),
                _picture(
                    prepared, j, f"nearest training image, {own[j]}", f"training, {own[j]}; {near[i]:.2f}"
                ),
            )
        )
    return Neighbours(pairs, len(train), float(near.median()), test)


# ── described images ────────────────────────────────────────────────────────────────────────────────


def described(dataset: str) -> list[tuple[Picture, dict[str, Any]]]:
    """The first training images of different classes, with the three answers of VAPS about each."""
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    labels = prepared.column("label")
    first: dict[str, int] = {}
    for row in prepared.rows_of("train"):
        first.setdefault(labels[row], int(row))
    wanted = {prepared.value("id", row): row for row in list(first.values())[:EXAMPLES]}
    found = []
    with pq.ParquetFile(captions_path(dataset)) as file:
        for batch in file.iter_batches(columns=["id", "t1", "t2", "t_mix", "model"]):
            for entry in batch.to_pylist():
                if entry["id"] in wanted:
                    row = wanted[entry["id"]]
                    found.append(
                        (_picture(prepared, row, f"{labels[row]}: {entry['t_mix']}", labels[row]), entry)
                    )
    return found
