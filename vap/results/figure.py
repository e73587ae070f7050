"""figure: for one dataset, a page of real images and each method's samples, class by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vap.common.artifacts import ArrowFile, atomic
from vap.common.errors import tell
from vap.common.places import prepared_path, samples_path
from vap.datasets.images import Pixels, decode, encode_image
from vap.params import Params
from vap.results.lettering import Lettering

GAP, LINE, MARGIN, FONT = 4, 11, 76, 10  # pixels: between images, a line of text, left margin at least, type
HEADING_LINES, TEXT_LINES = 3, 14  # at most: of a class above its column, of a description below its image


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

    Raises:
        VapError: the font of figure.font is absent or none.
    """
    settings = params.figure
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    classes: list[str] = prepared.metadata["classes"]
    columns = [classes[i % len(classes)] for i in range(settings.columns)]
    rows = [_row("real", prepared, prepared.rows_of("train"), columns)]
    for method in params.rows:
        samples = ArrowFile(samples_path(dataset, method, "seen"), "samples")
        rows.append(_row(method, samples, np.arange(len(samples)), columns))
    letters = Lettering(None if settings.font is None else Path(settings.font), FONT)
    page = _draw(rows, columns, params.prepare.image_size * settings.zoom, letters)
    if letters.lacking:
        letter, text = next(iter(letters.lacking.items()))
        tell(
            f"figure {dataset}: the font has no {letter!r} of {text!r}; such letters lose their accents, or "
            "stand there as code points; name a font that has them in params.yaml: figure.font"
        )
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


def _draw(rows: list[Row], columns: list[str], side: int, letters: Lettering) -> Image.Image:
    headings = [letters.wrapped(label, side, HEADING_LINES) for label in columns]
    texts = [[letters.wrapped(text or "", side, TEXT_LINES) for text in row.texts] for row in rows]
    names = [letters.spelled(row.name) for row in rows]
    left = max(MARGIN, 2 * GAP + math.ceil(max(map(letters.width, names))))
    top = 2 * GAP + LINE * max(map(len, headings))
    heights = [side + 2 * GAP + LINE * max(map(len, row)) for row in texts]
    page = Image.new("RGB", (left + len(columns) * (side + GAP), top + sum(heights)), "white")
    draw = ImageDraw.Draw(page)

    def write(x: int, y: int, lines: Sequence[str], color: str) -> None:
        for k, line in enumerate(lines):
            draw.text((x, y + k * LINE), line, color, letters.font)

    places = [left + j * (side + GAP) for j in range(len(columns))]
    for x, lines in zip(places, headings, strict=True):
        write(x, top - GAP - LINE * len(lines), lines, "black")
    y = top
    for row, name, row_texts, height in zip(rows, names, texts, heights, strict=True):
        write(GAP, y + side // 2, [name], "black")
        for x, pixels, lines in zip(places, row.images, row_texts, strict=True):
            if pixels is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), outline="lightgray")
            else:
                image = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
                page.paste(image, (x, y))
            write(x, y + side + 2, lines, "dimgray")
        y += height
    return page
