"""Pictures that are hardly meant: of one color, transparent, nearly black, one page of a stack, a mask.

They are told by their content, each when it is read; what is kept of them is a count and the first names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from PIL import Image

from vap.datasets.archives import Source
from vap.datasets.modes import FAINT, TRANSPARENT

FEW: Final = 8  # colors at most, of a mask or a map of labels
EDGE: Final = (
    16  # of 255: a narrower range shows next to nothing; and how far a JPEG blurs a mask's two values
)
BETWEEN: Final = 0.02  # the share of a JPEG mask's pixels that are at most farther from both values
NAMED: Final = re.compile(
    r"(^|[_\W\d])(masks?|seg|segmentations?|superpixels|ground_?truth|gt|annotations?|labelmap)(\W|_|\d|$)",
    re.I,
)
PLAIN: Final = "of a single color"
NARROW: Final = f"whose values differ by {EDGE} of 255 at most"
TWO: Final = f"that look like masks: two values, or {FEW} colors at most"
MASK_NAME: Final = "named like masks"
FIRST = 3  # names of each kind that are told


def reasons(image: Image.Image, odd: Iterable[str], source: Source | None) -> list[str]:
    """Why an image is hardly meant; empty of an ordinary one.

    Args:
        image: mode RGB.
        odd: what is odd about its file (modes.as_rgb).
        source: the file, whose name, and folder, may be a mask's.
    """
    found = list(odd)
    colors = image.getcolors(FEW)
    if colors is not None and len(colors) == 1:
        found += [PLAIN] if TRANSPARENT not in found else []
    elif colors is not None:
        found.append(TWO)
    elif all(high - low <= EDGE for low, high in image.getextrema()):  # type: ignore[union-attr,misc]
        if FAINT not in found:
            found.append(NARROW)
    elif _two_values(image):
        found.append(TWO)
    if source is not None:
        path = PurePosixPath(str(source))
        if NAMED.search(path.stem) or NAMED.search(path.parent.name):
            found.append(MASK_NAME)
    return found


def _two_values(image: Image.Image) -> bool:
    """Whether nearly all pixels are near the darkest or near the brightest grey, and these are far apart."""
    counts = image.convert("L").histogram()
    used = [value for value, count in enumerate(counts) if count]
    low, high = used[0], used[-1]
    between = sum(counts[low + EDGE + 1 : high - EDGE])
    return high - low > 8 * EDGE and between < BETWEEN * sum(counts)


class Suspects:
    """Counts the images of each kind, and keeps the first names."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, name: str, kinds: Iterable[str]) -> None:
        """Count the image `name` under each of `kinds`."""
        for kind in kinds:
            self._counts[kind] += 1
            names = self._first.setdefault(kind, [])
            if len(names) < FIRST:
                names.append(name)

    @property
    def lines(self) -> list[str]:
        """A line a kind, the most frequent first."""
        return [
            f"{n} images {kind}: {', '.join(self._first[kind])}" + (", …" if n > FIRST else "")
            for kind, n in self._counts.most_common()
        ]
