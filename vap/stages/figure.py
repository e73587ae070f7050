"""figure: for one dataset, a page of real images and each method's samples, class by class."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vap.artifacts import ArrowFile, atomic
from vap.datasets.images import Pixels, decode, encode_image
from vap.params import Params
from vap.stages.common import prepared_path, samples_path

GAP, LINE, MARGIN, FONT = 4, 11, 76, 10  # pixels: between images, a line of text, left margin, type
LINES = 9  # of a description below its image


@dataclass
class Row:
    name: str
    images: list[Pixels | None]
    texts: list[str | None]


def figure_path(dataset: str) -> Path:
    return Path("results/figures") / f"{dataset}.png"


def run(params: Params, dataset: str) -> Path:
    """Write results/figures/{dataset}.png: a row of real training images, then a row a method.

    The columns go through the classes in turn, so that a sample stands below a real image of its class.
    Under a sample of a method that uses descriptions stands the description it was drawn from.
    """
    settings = params.figure
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    classes: list[str] = prepared.metadata["classes"]
    columns = [classes[i % len(classes)] for i in range(settings.columns)]
    rows = [_row("real", prepared, prepared.rows_of("train"), columns)]
    for method in params.methods:
        samples = ArrowFile(samples_path(dataset, method, "seen"), "samples")
        rows.append(_row(method, samples, np.arange(len(samples)), columns))
    page = _draw(rows, columns, params.prepare.image_size * settings.zoom)
    with atomic(figure_path(dataset)) as part:
        part.write_bytes(encode_image(page))
    return figure_path(dataset)


def _row(name: str, file: ArrowFile, rows: Sequence[int] | np.ndarray, columns: list[str]) -> Row:
    """The first images of each column's class that no column has taken yet; None where there is none."""
    labels = file.column("label")
    queue = {label: iter([int(r) for r in rows if labels[r] == label]) for label in set(columns)}
    chosen = [next(queue[label], None) for label in columns]
    has_text = file.kind == "samples"
    return Row(
        name,
        [None if row is None else decode(file.value("image", row)) for row in chosen],
        [file.value("text", row) if has_text and row is not None else None for row in chosen],
    )


def _draw(rows: list[Row], columns: list[str], side: int) -> Image.Image:
    font = ImageFont.load_default(FONT)
    heights = [side + GAP + (LINES * LINE if any(row.texts) else 0) for row in rows]
    page = Image.new("RGB", (MARGIN + len(columns) * (side + GAP), LINE + 2 * GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(page)
    for j, label in enumerate(columns):
        draw.text((MARGIN + j * (side + GAP), GAP), label[: side // 6], "black", font)
    y = LINE + 2 * GAP
    for row, height in zip(rows, heights, strict=True):
        draw.text((GAP, y + side // 2), row.name, "black", font)
        for j, (pixels, text) in enumerate(zip(row.images, row.texts, strict=True)):
            x = MARGIN + j * (side + GAP)
            if pixels is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), outline="lightgray")
            else:
                image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
                page.paste(image, (x, y))
            wrapped = textwrap.wrap(text or "", max(side // 5, 8))[:LINES]
            for k, line in enumerate(wrapped):
                draw.text((x, y + side + 2 + k * LINE), line, "dimgray", font)
        y += height
    return page
