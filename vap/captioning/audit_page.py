"""A page of images with their descriptions: one HTML file that needs no other."""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vap.common.artifacts import ArrowFile
from vap.common.markup import html_text

EXAMPLES = 24  # of each kind

STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(540px, 1fr)); gap: 1rem }
figure { display: flex; gap: .8rem; margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: .7rem }
img { width: 192px; height: 192px; object-fit: contain; image-rendering: pixelated; flex: none }
figcaption p { margin: 0 0 .5rem } .id, .t1, .truth { color: #666; font-size: .85rem }
.wrong { color: #b00020; font-weight: 600 }
"""


@dataclass(frozen=True)
class Example:
    """One image's description.

    Attributes:
        row: in the file of images.
        t1: the first impression; None where there is none.
        truth: the image's attributes; empty where they are not known.
        wrong: the attributes about which the description states anything but the truth.
    """

    row: int
    id: str
    t1: str | None
    text: str | None
    error: str | None
    truth: Mapping[str, str]
    wrong: Sequence[str]


class Chosen:
    """The examples of a page: some evenly spaced, and those with the most faults, earlier ones first.

    Args:
        n: rows of the file of images.
    """

    def __init__(self, n: int) -> None:
        self._rows = {round(i * (n - 1) / (EXAMPLES - 1)) for i in range(EXAMPLES)}
        self._spaced: list[Example] = []
        self._worst: list[tuple[int, int, Example]] = []  # a heap: faults, minus the row

    def see(self, example: Example) -> None:
        """Take it if it stands at one of the evenly spaced rows."""
        if example.row in self._rows:
            self._spaced.append(example)

    def blame(self, example: Example, faults: int) -> None:
        """Take it if few have more faults."""
        heapq.heappush(self._worst, (faults, -example.row, example))
        if len(self._worst) > EXAMPLES:
            heapq.heappop(self._worst)

    def parts(self, worst: str) -> dict[str, list[Example]]:
        """Heading to examples, for `write_page`; `worst` is the heading of those with the most faults."""
        ordered = sorted(self._worst, reverse=True, key=lambda entry: entry[:2])
        return {"Evenly spaced": self._spaced, worst: [example for _, _, example in ordered]}


def write_page(
    path: Path,
    title: str,
    images: ArrowFile,
    parts: Mapping[str, Sequence[Example]],
    attributes: str = "Drawn as",
) -> None:
    """Write the page: a heading for each part, then its examples.

    Args:
        images: of prepared images or of samples; the examples' rows are its.
        attributes: what the examples' attributes are.
    """
    title = html_text(title)
    with path.open("w", encoding="utf-8") as file:
        file.write(f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>')
        file.write(f"<style>{STYLE}</style>\n<h1>{title}</h1>\n")
        for heading, examples in parts.items():
            if examples:
                file.write(f'<h2>{html_text(heading)}</h2>\n<div class="grid">\n')
                file.writelines(_figure(example, images, attributes) for example in examples)
                file.write("</div>\n")


def _figure(example: Example, images: ArrowFile, attributes: str) -> str:
    image = base64.b64encode(images.value("image", example.row)).decode()
    label = images.value("label", example.row)
    failed = f'<span class="wrong">no description: {html_text(example.error or "?")}</span>'
    truth = "; ".join(
        f'<span class="{"wrong" if name in example.wrong else "right"}">{html_text(name)}: '
        f"{html_text(value)}</span>"
        for name, value in example.truth.items()
    )
    lines = [
        f'<p class="id">{html_text(example.id)}, {html_text(label)}</p>',
        f"<p>{html_text(example.text) if example.text else failed}</p>",
        f'<p class="t1">First impression: {html_text(example.t1)}</p>' if example.t1 else "",
        f'<p class="truth">{html_text(attributes)}: {truth}</p>' if truth else "",
    ]
    source = f"data:image/png;base64,{image}"
    return f'<figure><img src="{source}" alt=""><figcaption>{"".join(lines)}</figcaption></figure>\n'
