"""Pixels of every mode that Pillow reads as 8-bit RGB: the picture that an ordinary viewer shows.

Integers are scaled from the whole range of their file's bits, 0 to 2^bits - 1, whatever part of it they use;
floating-point values from 0 to 1. Transparency is laid over black. ICC profiles and gamma are not applied.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, TiffImagePlugin

TRANSPARENT: Final = "wholly transparent, so black"
PAGES: Final = "with several pages or frames, of which the first is used"
FAINT: Final = "of 16 bits that use a quarter of them or less (12 bits in a file of 16?)"
WHITE_IS_ZERO, BITS, PHOTOMETRIC, PLANAR = 0, 258, 262, 284  # TIFF's value of a tag, and its tags
OVERSHOOT = 1e-3  # of a floating-point value below 0 or above 1, by rounding
BIT_DEPTH = 24  # the place of a PNG's bit depth in its bytes

# Pillow reads this kind in the other order of bytes alone
TiffImagePlugin.OPEN_INFO.setdefault((b"MM", WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


class UnknownRange(ValueError):
    """Pixels whose values do not say what is black and what is white."""


def as_rgb(opened: Image.Image, data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    """The first picture of an image file, mode RGB, upright; and what is odd about it.

    Args:
        opened: as Image.open gives it.
        data: the file's bytes.

    Returns:
        The image, and those of TRANSPARENT, PAGES and FAINT that hold.

    Raises:
        UnknownRange: no viewer would know either.
        Exception: whatever a broken file leads Pillow to.
    """
    inverted, bits = False, 16
    if opened.format == "TIFF":
        tags = opened.tag_v2  # type: ignore[attr-defined]
        inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO  # absent: black is, as libtiff has it
        sizes = tags.get(BITS, (1,))
        bits = 12 if tuple(sizes) == (12,) else 16
        if tags.get(PLANAR) == 2 and len(sizes) > 1 and max(sizes) > 8:  # Pillow takes its bytes for pixels
            raise UnknownRange(f"{max(sizes)}-bit colors in separate planes, which are not read")
    opened.load()
    odd = []
    if opened.format != "MPO" and getattr(opened, "is_animated", False):  # a camera's MPO adds a preview
        odd.append(PAGES)
    try:
        image = ImageOps.exif_transpose(opened)
    except Exception:  # a broken EXIF block does not spoil the pixels
        image = opened
    clear = _transparent_value(image, data[BIT_DEPTH]) if opened.format == "PNG" else None
    if image.mode == "F":
        return _from_float(np.asarray(image), inverted), tuple(odd)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnknownRange("32-bit pixels of unknown range (8 or 16 bits are read)")
        if bits == 16 and values.max() < 2**14:
            odd.append(FAINT)
        deepest = 2**bits - 1
        values = (values * 255 + deepest // 2) // deepest
        if isinstance(clear, int):
            values[np.asarray(image) == clear] = 0
        return _grey(values, inverted), tuple(odd)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if clear is not None:
            image.info["transparency"] = clear
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() == (0, 0):
            odd.append(TRANSPARENT)
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB"), tuple(odd)
    return image.convert("RGB"), tuple(odd)


def _transparent_value(image: Image.Image, depth: int) -> int | tuple[int, ...] | None:
    """The one value that a PNG calls transparent, in the range of Pillow's pixels instead of the file's."""
    match image.info.get("transparency"):
        case tuple() as color if depth == 16:
            return tuple(value >> 8 for value in color)
        case int(value):
            return value * 255 // (2**depth - 1) if image.mode == "L" else value
    return None


def _from_float(values: npt.NDArray[np.float32], inverted: bool) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # NaN is neither
        raise UnknownRange(f"floating-point pixels from {low:g} to {high:g} (0 to 1 are read)")
    return _grey(np.rint(values.clip(0, 1) * 255), inverted)


def _grey(values: npt.NDArray[np.generic], inverted: bool) -> Image.Image:
    """An image of values from 0 to 255."""
    pixels = values.astype(np.uint8)
    return Image.fromarray(255 - pixels if inverted else pixels).convert("RGB")
