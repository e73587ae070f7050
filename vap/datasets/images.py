"""Image files in, fixed-size PNGs out: decode, fit, encode.

Pixels are uint8 [H, W, 3], RGB, 0 to 255, throughout.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from vap.errors import VapError

Pixels = npt.NDArray[np.uint8]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"})
FORMATS = (
    "PNG",
    "JPEG",
    "TIFF",
    "BMP",
    "WEBP",
    "PPM",
)  # no format that runs a program, as EPS does
MAX_PIXELS = 89_478_485  # of one image (256 MiB as RGB); Pillow's own bound
PNG_LEVEL = 6  # fixed, so that the same pixels are the same bytes


class UnreadableImage(VapError):
    """One image file cannot be used; the others may be."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(
            path,
            found,
            "a whole image (PNG, JPEG, TIFF, BMP, WebP or PNM)",
            "replace or remove the file, or set prepare.on_error: skip",
        )


def read(path: Path) -> tuple[Pixels, str]:
    """The pixels of an image file, and the sha256 of its bytes (hex).

    The EXIF orientation is applied and transparency is laid over black. 16-bit grey is scaled from
    0..65535, whatever range the file uses. Of a file with several images the first is taken.

    Raises:
        UnreadableImage: no regular file, no image, truncated, empty, over MAX_PIXELS, or with
            pixel values of unknown range (float, more than 16 bits).
    """
    if not path.is_file():
        raise UnreadableImage(path, "a broken link" if path.is_symlink() else "no regular file")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(0)
            return _decode(path, file), digest
    except (VapError, MemoryError):
        raise
    except UnidentifiedImageError:
        what = "no image that Pillow can read" if size else "an empty file"
        raise UnreadableImage(path, what) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"a decompression bomb? ({error})") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UnreadableImage(path, f"a broken image ({error})") from None


def _decode(path: Path, file: IO[bytes]) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, checked here, and of odd metadata
        with Image.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                found = f"{width}x{height} pixels, a decompression bomb? (limit {MAX_PIXELS})"
                raise UnreadableImage(path, found)
            if not width * height:
                raise UnreadableImage(path, f"an image of {width}x{height} pixels")
            opened.load()
            try:
                image = ImageOps.exif_transpose(opened)
            except Exception:  # a broken EXIF block does not spoil the pixels
                image = opened
            return np.asarray(_rgb(path, image))


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(path, "32-bit pixels of unknown range (8 or 16 bits are read)")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage(path, "floating-point pixels of unknown range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def fit(pixels: Pixels, size: int, how: Literal["squash", "crop"]) -> Pixels:
    """Resize to uint8 [size, size, 3], antialiased (box-reduced to about 3x, then Lanczos).

    Args:
        size: side in pixels.
        how: squash the aspect ratio (the authors' way), or crop the centre square.
    """
    height, width = pixels.shape[:2]
    if height == width == size:
        return pixels
    box = (0, 0, width, height)
    if how == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=3.0))


def encode(pixels: Pixels) -> bytes:
    """PNG of uint8 [H, W, 3]; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def decode(png: bytes) -> Pixels:
    """uint8 [H, W, 3] of a PNG that `encode` wrote."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
