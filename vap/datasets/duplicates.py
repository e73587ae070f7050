"""Images that are there twice: the same bytes, or the same picture in another size or compression.

Two pictures count as the same if their 8 x 8 thumbnails differ by less than NEAR. Measured on ISIC
2018: copies at half the size and JPEG quality 60 differ by 1.3 at most; of all pairs of its 11,527 images
14 differ by less than 3, each of one lesion. Flat or very dark images may be told falsely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 8
NEAR = 3.0  # root mean square over the thumbnail's values, of 255
BLOCK = 2048  # images whose thumbnails are compared at once with as many others


@dataclass(frozen=True)
class Print:
    """What is kept of an image to find its copies.

    Attributes:
        dataset, split, group, id: where it is.
        sha256: of its file.
        thumbnail: uint8 [192], the means of 8 x 8 areas, RGB.
    """

    dataset: str
    split: str
    group: str
    id: str
    sha256: str
    thumbnail: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """Two images, the first of the dataset in question; `exact` if their files have the same bytes."""

    one: Print
    other: Print
    exact: bool

    @property
    def where(self) -> str:
        """Which boundary it crosses, the worst first: dataset, split or group."""
        if self.one.dataset != self.other.dataset:
            return f"with {self.other.dataset}"
        if self.one.split != self.other.split:
            return f"across {self.one.split} and {self.other.split}"
        return f"within {self.one.split}" + (", one group" if self.one.group == self.other.group else "")


def thumbnail(image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 [192] of an image of mode RGB."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.HAMMING, reducing_gap=4.0)).reshape(-1)


def pairs(prints: Sequence[Print], others: Sequence[Print] = ()) -> Iterator[Pair]:
    """All pairs of copies among `prints`, and of one of them with one of `others`."""
    everything = [*prints, *others]
    values = (
        np.stack([p.thumbnail for p in everything]).astype(np.float32) if everything else np.empty((0, 1))
    )
    squares = (values**2).sum(axis=1)
    limit = NEAR**2 * values.shape[1]
    for start in range(0, len(prints), BLOCK):
        rows = slice(start, min(start + BLOCK, len(prints)))
        for begin in range(start, len(everything), BLOCK):
            columns = slice(begin, begin + BLOCK)
            distances = squares[rows, None] + squares[None, columns] - 2 * values[rows] @ values[columns].T
            for i, j in zip(*np.nonzero(distances <= limit), strict=True):
                one, other = int(i) + start, int(j) + begin
                if one < other:
                    same = everything[one].sha256 == everything[other].sha256
                    yield Pair(everything[one], everything[other], same)
