"""Where an image's content is: endoscopes and dermatoscopes give a round picture in a black frame.

The frame may hold burnt-in marks (text, a position sketch); these go with it. Marks inside the picture
stay, and so do the dark corners that a round picture has in its own bounding box.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

DARK = 24  # of 255: the brightest channel of a black border, noise included
SHARE = 0.2  # of a row's or column's pixels that are brighter, where it crosses the picture
LEAST = 0.25  # of a side that the picture must take up; a darker image is left as it is
SIDE = 256  # pixels to which an image is reduced for the search

Box = tuple[int, int, int, int]  # left, top, right, bottom


def content_box(image: Image.Image) -> Box:
    """The picture in its black border, or the whole image where there is none.

    Args:
        image: mode RGB.
    """
    width, height = image.size
    factor = max(1, min(width, height) // SIDE)
    small = np.asarray(image.reduce(factor) if factor > 1 else image)
    bright = small.max(axis=2) > DARK
    top, bottom = _longest(bright.mean(axis=1) > SHARE)
    left, right = _longest(bright[top:bottom].mean(axis=0) > SHARE) if bottom > top else (0, 0)
    box = (left * factor, top * factor, min(right * factor, width), min(bottom * factor, height))
    if box[2] - box[0] < LEAST * width or box[3] - box[1] < LEAST * height:
        return 0, 0, width, height
    return box


def _longest(flags: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """(start, stop) of the longest run of true values; gaps of a fiftieth of the length count as true."""
    gap = max(1, len(flags) // 50)
    best = start = stop = 0
    best_stop = 0
    open_run = False
    for i in np.flatnonzero(flags).tolist():
        if not open_run or i - stop > gap:
            start, open_run = i, True
        stop = i + 1
        if stop - start > best_stop - best:
            best, best_stop = start, stop
    return best, best_stop
