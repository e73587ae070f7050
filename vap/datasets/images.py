"""Image files in, fixed-size PNGs out: decode, fit, encode.

Pixels are uint8 [H, W, 3], RGB, 0 to 255, throughout. All of it may run in several threads: Pillow
decodes, resizes and encodes without the interpreter's lock.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vap.common.artifacts import atomic
from vap.common.errors import VapError
from vap.datasets.kinds import FROM_DICOM, HEAD, READ, content
from vap.datasets.modes import UnknownRange, as_rgb

Pixels = npt.NDArray[np.uint8]
Storage = Literal["png", "png-fast", "raw"]

FORMATS = (
    "PNG",
    "JPEG",
    "TIFF",
    "BMP",
    "DIB",
    "GIF",
    "WEBP",
    "PPM",
)  # no format that runs a program, as EPS does
REPLACE = "replace or remove the file"
CONVERT = "convert it to a PNG of 8 or 16 bits"
MAX_PIXELS = 89_478_485  # of one image (256 MiB as RGB); Pillow's own bound
MAX_BYTES = 2**29  # of one image file
PNG_LEVEL = 6  # fixed, so that the same pixels are the same bytes
PNG_FAST = {"compress_level": 1, "compress_type": 3}  # zlib's run-length strategy
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = (
    MAX_BYTES  # microscopes write their logs there
)
GAP = 3  # an image is reduced by averaging to about this many times its target, then by Lanczos

# of sizes, which are checked here, and of odd metadata; once, since a filter is no thread's own
warnings.filterwarnings("ignore", module=r"PIL\.")


class File(Protocol):
    """A file on disk (Path) or in an archive (vap.datasets.archives.Member)."""

    def is_file(self) -> bool: ...

    def is_symlink(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


class UnreadableImage(VapError):
    """One image file cannot be used; the others may be."""

    def __init__(self, path: object, found: str, fix: str = REPLACE) -> None:
        expected = "a whole image (PNG, JPEG, TIFF, BMP, GIF, WebP or PNM)"
        super().__init__(path, found, expected, f"{fix}, or set prepare.on_error: skip")


def read(file: File) -> tuple[Pixels, str]:
    """The pixels of an image file, and the sha256 of its bytes (hex).

    The picture is the one that an ordinary viewer shows (vap.datasets.modes), upright as its EXIF says; of a
    file with several the first. What kind of image it is, its content says, not its suffix.

    Raises:
        UnreadableImage: no regular file, no image, truncated, empty, over MAX_PIXELS or MAX_BYTES,
            not to be opened, or with pixel values of unknown range.
    """
    image, digest, _ = open_rgb(file)
    return np.asarray(image), digest


def open_rgb(file: File, at_least: int = 0) -> tuple[Image.Image, str, tuple[str, ...]]:
    """As `read`, with the image as Pillow's, mode RGB; and what is odd about it (modes.as_rgb).

    Args:
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (libjpeg's scaled IDCT, which
            averages) while both of its sides keep this many pixels; 0: never.

    Raises:
        UnreadableImage: as `read`.
    """
    if not file.is_file():
        raise UnreadableImage(file, "a broken link" if file.is_symlink() else "no regular file")
    data = b""
    try:
        if isinstance(file, Path) and (size := file.stat().st_size) > MAX_BYTES:
            raise UnreadableImage(file, f"{size} bytes (limit {MAX_BYTES})")
        data = file.read_bytes()
        image, odd = _decode(file, data, at_least)
        return image, hashlib.sha256(data).hexdigest(), odd
    except (VapError, MemoryError):
        raise
    except PermissionError:
        raise UnreadableImage(file, "no permission to read it") from None
    except UnidentifiedImageError:
        what = "no image that Pillow can read" if data else "an empty file"
        if kind := content(data[:HEAD]):
            fix = FROM_DICOM if kind == "DICOM" else REPLACE if kind in READ and kind != "TIFF" else CONVERT
            raise UnreadableImage(file, f"{what}, {kind} by its content", fix) from None
        raise UnreadableImage(file, what) from None
    except Image.DecompressionBombError as error:
        raise UnreadableImage(file, f"a decompression bomb? ({error})") from None
    except Exception as error:  # decoders raise whatever a broken file leads them to
        raise UnreadableImage(file, f"a broken image ({error})") from None


def _decode(file: File, data: bytes, at_least: int) -> tuple[Image.Image, tuple[str, ...]]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
        width, height = opened.size
        if width * height > MAX_PIXELS:
            found = f"{width}x{height} pixels, a decompression bomb? (limit {MAX_PIXELS})"
            raise UnreadableImage(file, found)
        if not width * height:
            raise UnreadableImage(file, f"an image of {width}x{height} pixels")
        if at_least:
            opened.draft("", (at_least, at_least))
        try:
            return as_rgb(opened, data)
        except UnknownRange as error:
            raise UnreadableImage(file, str(error), CONVERT) from None


def fit(pixels: Pixels, size: int, how: Literal["squash", "crop"]) -> Pixels:
    """Resize to uint8 [size, size, 3], antialiased (averaged to about GAP times the size, then Lanczos).

    Args:
        size: side in pixels.
        how: squash the aspect ratio (the authors' way), or crop the centre square.
    """
    return np.asarray(fit_image(Image.fromarray(pixels), size, how))


def fit_image(image: Image.Image, size: int, how: Literal["squash", "crop"]) -> Image.Image:
    """As `fit`, of Pillow's images, mode RGB."""
    width, height = image.size
    if height == width == size:
        return image
    box = (0, 0, width, height)
    if how == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box, reducing_gap=float(GAP))


def tiled(images: Sequence[Pixels], columns: int) -> Pixels:
    """Images of one shape as one image, row by row; what is left of the last row is white."""
    height, width = images[0].shape[:2]
    page = np.full((-(-len(images) // columns) * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * width
        page[y : y + height, x : x + width] = image
    return page


def write_grid(path: Path, images: Sequence[Pixels], columns: int = 8) -> None:
    """Images of one shape as one PNG, row by row, written atomically."""
    with atomic(path) as part:
        part.write_bytes(encode(tiled(images, min(columns, len(images)))))


def encode(pixels: Pixels) -> bytes:
    """PNG of uint8 [H, W, 3]; the same pixels give the same bytes."""
    return encode_image(Image.fromarray(pixels))


def encode_image(image: Image.Image, storage: Storage = "png") -> bytes:
    """PNG of an image of mode RGB; the same pixels give the same bytes.

    Args:
        storage: png | png-fast (about as small, four times as fast at 256 x 256) | raw (a PNG that does
            not compress: 3 bytes a pixel).
    """
    if storage == "raw":
        return _stored(np.asarray(image))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **(PNG_FAST if storage == "png-fast" else {"compress_level": PNG_LEVEL}))
    return buffer.getvalue()


def _stored(pixels: Pixels) -> bytes:
    """A PNG of filter 0 and stored blocks: what is left of the work is two checksums."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # a row is its filter's number, then its pixels
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 0)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def decode(png: bytes) -> Pixels:
    """uint8 [H, W, 3] of a PNG that `encode` wrote."""
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))
