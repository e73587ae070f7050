"""Every mode that Pillow, OpenCV and scanners write gives the picture that a viewer shows."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from vap.captioning.describer_chat import decode_image
from vap.datasets import images, modes

Array = npt.NDArray[Any]
BLOCK = 8  # pixels a side of each of the four fields of a picture that is compressed with loss

G = np.array([0, 50, 100, 255])  # the grey picture, in a row
RGB = np.array([[0, 255, 0], [50, 100, 25], [100, 50, 51], [255, 0, 127]])  # the colored one
OVER_BLACK = np.array([[0, 0, 0], [10, 20, 5], [39, 20, 20], [255, 0, 127]])  # with G as its alpha
FIRST_CLEAR = np.where(G == 50, 0, G)  # with one value transparent
PALETTE = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
COLORS = np.frombuffer(PALETTE, np.uint8).reshape(3, 3)[[0, 1, 2, 0]]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, color: int, row: bytes, *chunks: bytes, width: int = 4) -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def interlaced(depth: int, values: Sequence[int]) -> bytes:
    """A grey PNG of 1 x 4 pixels by Adam7: pass 1 has column 0, pass 4 column 2, pass 6 columns 1 and 3."""
    rows = [[values[0]], [values[2]], [values[1], values[3]]]
    packed = b"".join(b"\0" + b"".join(v.to_bytes(depth // 8, "big") for v in row) for row in rows)
    header = struct.pack(">IIBBBBB", 4, 1, depth, 0, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def clear(*values: int) -> bytes:
    """PNG's chunk of the one transparent value."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def tiff(
    data: bytes, photometric: int | None, bits: Sequence[int], order: str = "<", pages: int = 1, **tags: int
) -> bytes:
    """An uncompressed TIFF of 1 x 4 pixels; `tags`: planar, extra (samples), form (of samples)."""
    strips = len(bits) if tags.get("planar") == 2 else 1
    entries = {
        256: [4],
        257: [1],
        258: bits,
        259: [1],
        **({} if photometric is None else {262: [photometric]}),
        273: [8 + i * len(data) // strips for i in range(strips)],
        277: [len(bits)],
        278: [1],
        279: [len(data) // strips] * strips,
        284: [tags.get("planar", 1)],
        339: [tags.get("form", 1)] * len(bits),
    }
    if "extra" in tags:
        entries[338] = [tags["extra"]]
    data += b"\0" * (len(data) % 2)
    file = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data)) + data
    for page in range(pages):
        longs = b""
        start = len(file) + 2 + 12 * len(entries) + 4
        table = struct.pack(f"{order}H", len(entries))
        for tag, values in sorted(entries.items()):
            packed = struct.pack(f"{order}{len(values)}H", *values)
            table += struct.pack(f"{order}HHI", tag, 3, len(values))
            if len(packed) > 4:
                table += struct.pack(f"{order}I", start + len(longs))
                longs += packed
            else:
                table += packed.ljust(4, b"\0")
        end = start + len(longs) + len(longs) % 2
        table += struct.pack(f"{order}I", end if page + 1 < pages else 0)
        file = (file + table + longs).ljust(end, b"\0")
    return file


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def small(values: Array, mode: str | None = None) -> Image.Image:
    """The row of fields, a pixel each."""
    pixels = values.astype(np.uint8)[None]
    return Image.frombytes(mode, (4, 1), pixels.tobytes()) if mode else Image.fromarray(pixels)


def fields(values: Array, mode: str = "RGB") -> Image.Image:
    """The row of fields, BLOCK x BLOCK pixels each, in which a lossy format keeps their colors."""
    pixels = values.astype(np.uint8)[None].repeat(BLOCK, 0).repeat(BLOCK, 1)
    return Image.frombytes(mode, (4 * BLOCK, BLOCK), pixels.tobytes())


def ycck() -> bytes:
    """A JPEG as Photoshop writes CMYK: inverted, and CMY as YCbCr (transform 2 of Adobe's marker)."""
    ycc = np.asarray(Image.fromarray(CMYK[None, :, :3].astype(np.uint8)).convert("YCbCr"))[0]
    data = saved(fields(np.column_stack([255 - ycc, CMYK[:, 3]]), "CMYK"), "JPEG", quality=100)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    return data[:at] + b"\x02" + data[at + 1 :]


def words(values: Array, order: str = ">") -> bytes:
    return (values.astype(np.int64) * 257).astype(f"{order}u2").tobytes()


def floats(values: Array, order: str = "<") -> bytes:
    return (values / 255).astype(f"{order}f4").tobytes()


TWELVE = bytes([0x00, 0x0F, 0xFF, 0x80, 0x0F, 0xFF])  # 0, 4095, 2048, 4095: packed
RGBA = np.column_stack([RGB, G])
PREMULTIPLIED = np.column_stack([OVER_BLACK, G])
LA = np.column_stack([[200, 200, 100, 255], G])
LA_OVER_BLACK = np.array([0, 39, 39, 255])
CMYK = np.column_stack([G, np.zeros(4), np.zeros(4), np.full(4, 20)]).astype(int)
CMYK_SHOWN = np.column_stack([np.rint((255 - G) * 235 / 255), np.full(4, 235), np.full(4, 235)])
TWO = np.array([0, 255, 0, 255])
LAB = ImageCms.profileToProfile(
    small(RGB), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
)

# name, file, picture, and how far a lossy format may be off
ROWS: list[tuple[str, Callable[[], bytes], Array, int]] = [
    ("1 bit png", lambda: png(1, 0, b"\x50"), TWO, 0),
    ("1 bit png, white transparent", lambda: png(1, 0, b"\x50", clear(1)), 0 * G, 0),
    ("1 bit bmp", lambda: saved(Image.fromarray(G[None] > 60), "BMP"), np.sort(TWO), 0),
    ("1 bit pbm", lambda: b"P4 4 1\n\xa0", TWO, 0),
    ("1 bit tiff, black is zero", lambda: tiff(b"\x50", 1, [1]), TWO, 0),
    ("1 bit tiff, white is zero", lambda: tiff(b"\x50", 0, [1]), 255 - TWO, 0),
    ("2 bit png", lambda: png(2, 0, b"\x1b"), np.array([0, 85, 170, 255]), 0),
    ("2 bit png, a value transparent", lambda: png(2, 0, b"\x1b", clear(1)), np.array([0, 0, 170, 255]), 0),
    ("4 bit png", lambda: png(4, 0, b"\x05\xaf"), np.array([0, 85, 170, 255]), 0),
    (
        "4 bit png, a value transparent",
        lambda: png(4, 0, b"\x05\xaf", clear(10)),
        np.array([0, 85, 0, 255]),
        0,
    ),
    ("L png", lambda: saved(small(G), "PNG"), G, 0),
    ("L png, a value transparent", lambda: png(8, 0, bytes(G.tolist()), clear(50)), FIRST_CLEAR, 0),
    ("L png, interlaced", lambda: interlaced(8, G.tolist()), G, 0),
    ("L bmp", lambda: saved(small(G), "BMP"), G, 0),
    ("L pgm of 100 levels", lambda: b"P2 4 1 100\n0 50 75 100\n", np.array([0, 128, 191, 255]), 0),
    ("L tiff, black is zero", lambda: tiff(bytes(G.tolist()), 1, [8]), G, 0),
    ("L tiff, white is zero", lambda: tiff(bytes((255 - G).tolist()), 0, [8], ">"), G, 0),
    ("L jpeg", lambda: saved(fields(G, "L"), "JPEG", quality=98), G, 2),
    ("LA png", lambda: saved(small(LA, "LA"), "PNG"), LA_OVER_BLACK, 0),
    ("LA tiff", lambda: tiff(bytes(LA.astype(np.uint8)), 1, [8, 8], extra=2), LA_OVER_BLACK, 0),
    ("LA png of 16 bits", lambda: png(16, 4, words(LA)), LA_OVER_BLACK, 0),
    ("P png of 3 colors", lambda: png(8, 3, bytes([0, 1, 2, 0]), chunk(b"PLTE", PALETTE)), COLORS, 0),
    (
        "P png, a pixel beyond its palette",
        lambda: png(8, 3, bytes([0, 1, 2, 9]), chunk(b"PLTE", PALETTE)),
        np.vstack([COLORS[:3], [[0, 0, 0]]]),
        0,
    ),
    ("P png of 2 bits", lambda: png(2, 3, b"\x18", chunk(b"PLTE", PALETTE)), COLORS, 0),
    (
        "P png with transparency",
        lambda: png(8, 3, bytes([0, 1, 2, 0]), chunk(b"PLTE", PALETTE), chunk(b"tRNS", b"\0\x80")),
        np.array([[0, 0, 0], [0, 128, 0], [0, 0, 255], [0, 0, 0]]),
        0,
    ),
    ("P bmp", lambda: saved(small(COLORS).convert("P", palette=Image.Palette.ADAPTIVE), "BMP"), COLORS, 0),
    ("P gif", lambda: saved(small(G), "GIF"), G, 0),
    (
        "gif of two frames",
        lambda: saved(small(RGB), "GIF", save_all=True, append_images=[small(255 - RGB)]),
        RGB,
        0,
    ),
    ("RGB png", lambda: saved(small(RGB), "PNG"), RGB, 0),
    (
        "RGB png, a color transparent",
        lambda: png(8, 2, RGB.astype(np.uint8).tobytes(), clear(50, 100, 25)),
        np.where(G[:, None] == 50, 0, RGB),
        0,
    ),
    ("RGB bmp", lambda: saved(small(RGB), "BMP"), RGB, 0),
    ("RGB tiff in planes", lambda: tiff(RGB.T.astype(np.uint8).tobytes(), 2, [8] * 3, planar=2), RGB, 0),
    ("RGB png of 16 bits", lambda: png(16, 2, words(RGB)), RGB, 0),
    (
        "RGB png of 16 bits, a color transparent",
        lambda: png(16, 2, words(RGB), clear(50 * 257 + 3, 100 * 257 + 1, 25 * 257)),
        np.where(G[:, None] == 50, 0, RGB),
        0,
    ),
    ("RGB ppm of 16 bits", lambda: b"P6 4 1 65535\n" + words(RGB), RGB, 0),
    *(
        (f"RGB tiff of 16 bits {o}", lambda o=o: tiff(words(RGB, o), 2, [16] * 3, o), RGB, 0)
        for o in "<>"  # type: ignore[misc]
    ),
    ("RGB jpeg (YCbCr)", lambda: saved(fields(RGB), "JPEG", quality=98, subsampling=0), RGB, 3),
    ("RGB jpeg (RGB)", lambda: saved(fields(RGB), "JPEG", quality=98, keep_rgb=True), RGB, 3),
    ("RGB webp, lossless", lambda: saved(small(RGB), "WEBP", lossless=True), RGB, 0),
    ("RGB webp, lossy", lambda: saved(fields(RGB), "WEBP", quality=98), RGB, 6),
    ("RGBA png", lambda: saved(small(RGBA, "RGBA"), "PNG"), OVER_BLACK, 1),
    ("RGBA png of 16 bits", lambda: png(16, 6, words(RGBA)), OVER_BLACK, 1),
    ("RGBA tiff", lambda: tiff(RGBA.astype(np.uint8).tobytes(), 2, [8] * 4, extra=2), OVER_BLACK, 1),
    (
        "RGBA tiff, premultiplied",
        lambda: tiff(PREMULTIPLIED.astype(np.uint8).tobytes(), 2, [8] * 4, extra=1),
        OVER_BLACK,
        1,
    ),
    ("RGBA tiff of 16 bits", lambda: tiff(words(RGBA, "<"), 2, [16] * 4, extra=2), OVER_BLACK, 1),
    (
        "RGB tiff, a fourth sample that is no alpha",
        lambda: tiff(bytes(RGBA.astype(np.uint8)), 2, [8] * 4, extra=0),
        RGB,
        0,
    ),
    ("RGBA webp", lambda: saved(small(RGBA, "RGBA"), "WEBP", lossless=True, exact=True), OVER_BLACK, 1),
    ("CMYK jpeg, inverted", lambda: saved(fields(CMYK, "CMYK"), "JPEG", quality=98), CMYK_SHOWN, 3),
    ("CMYK jpeg, inverted, as YCCK", ycck, CMYK_SHOWN, 3),
    ("CMYK tiff", lambda: tiff(CMYK.astype(np.uint8).tobytes(), 5, [8] * 4), CMYK_SHOWN, 1),
    ("YCbCr tiff", lambda: saved(small(RGB).convert("YCbCr"), "TIFF"), RGB, 3),
    ("LAB tiff", lambda: saved(LAB, "TIFF"), RGB, 16),  # 8 bits of L, a and b, and colors at the gamut's edge
    ("grey png of 16 bits", lambda: png(16, 0, words(G)), G, 0),
    ("grey png of 16 bits, interlaced", lambda: interlaced(16, (G * 257).tolist()), G, 0),
    (
        "grey png of 16 bits, a value transparent",
        lambda: png(16, 0, words(G), clear(50 * 257)),
        FIRST_CLEAR,
        0,
    ),
    (
        "grey png, 12 bits in 16",
        lambda: png(16, 0, (G * 16).astype(">u2").tobytes()),
        np.array([0, 3, 6, 16]),
        0,
    ),
    ("grey pgm of 12 bits", lambda: b"P5 4 1 4095\n" + (G * 4095 // 255).astype(">u2").tobytes(), G, 0),
    ("grey tiff of 12 bits", lambda: tiff(TWELVE, 1, [12]), np.array([0, 255, 128, 255]), 0),
    *(
        row
        for o in "<>"
        for row in (
            (f"grey tiff of 16 bits {o}, black is zero", lambda o=o: tiff(words(G, o), 1, [16], o), G, 0),
            (
                f"grey tiff of 16 bits {o}, white is zero",
                lambda o=o: tiff(words(G, o), 0, [16], o),
                255 - G,
                0,
            ),
            (f"float tiff {o}", lambda o=o: tiff(floats(G, o), 1, [32], o, form=3), G, 0),
            (
                f"float tiff {o}, white is zero",
                lambda o=o: tiff(floats(G, o), 0, [32], o, form=3),
                255 - G,
                0,
            ),
        )
    ),
    ("grey tiff of 16 bits that does not say which", lambda: tiff(words(G, "<"), None, [16]), G, 0),
    ("tiff of two pages", lambda: tiff(bytes(G.tolist()), 1, [8], pages=2), G, 0),
]


@pytest.mark.parametrize(("file", "picture", "off"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_mode_gives_its_picture(
    file: Callable[[], bytes], picture: Array, off: int, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(file())
    pixels, _ = images.read(tmp_path / "x")
    if pixels.shape[0] == BLOCK:
        pixels = pixels[BLOCK // 2 : BLOCK // 2 + 1, BLOCK // 2 :: BLOCK]
    assert (pixels.shape, pixels.dtype) == ((1, 4, 3), np.uint8)
    right = picture if picture.ndim == 2 else picture[:, None].repeat(3, 1)
    assert np.abs(pixels[0].astype(int) - right).max() <= off, pixels[0].tolist()


def test_the_measured_describer_sees_the_same_picture() -> None:
    for file, picture in ((png(16, 0, words(G)), G), (saved(small(RGBA, "RGBA"), "PNG"), OVER_BLACK)):
        seen = decode_image(f"data:image/png;base64,{base64.b64encode(file).decode()}")
        right = picture if picture.ndim == 2 else picture[:, None].repeat(3, 1)
        assert np.abs(seen[0].astype(int) - right).max() <= 1


TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    stored = np.concatenate([np.asarray(fields(RGB)), np.asarray(fields(255 - RGB))])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    (tmp_path / "x").write_bytes(saved(Image.fromarray(stored), kind, exif=exif, **options))
    pixels, _ = images.read(tmp_path / "x")
    right = TURNS[orientation](stored).astype(int)
    assert pixels.shape == right.shape
    assert np.abs(pixels - right).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (tiff(floats(G * 10), 1, [32], form=3), "floating-point pixels from 0 to 10 (0 to 1 are read)"),
        (tiff(floats(G - 1), 1, [32], form=3), "floating-point pixels from -0.0"),
        (tiff(floats(G * np.nan), 1, [32], form=3), "floating-point pixels from nan"),
        (tiff(words(RGB.T), 2, [16] * 3, ">", planar=2), "16-bit colors in separate planes"),
        (tiff(floats(RGB), 2, [32] * 3, form=3), "no image that Pillow can read, TIFF by its content"),
        (b"\0" * 128 + b"DICM" + b"\0" * 99, "DICOM by its content"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 99, "HEIC or AVIF by its content"),
    ],
)
def test_what_no_viewer_knows_is_told_with_what_to_do(file: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(file)
    with pytest.raises(images.UnreadableImage) as caught:
        images.read(tmp_path / "x.png")
    assert message in str(caught.value)
    assert "convert it" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "odd"),
    [
        (saved(small(RGBA, "RGBA"), "PNG"), ()),
        (saved(small(RGBA * [1, 1, 1, 0], "RGBA"), "PNG"), (modes.TRANSPARENT,)),
        (tiff(bytes(G.tolist()), 1, [8], pages=2), (modes.PAGES,)),
        (tiff(bytes(G.tolist()), 1, [8]), ()),
        (saved(small(RGB), "GIF", save_all=True, append_images=[small(255 - RGB)]), (modes.PAGES,)),
        (png(16, 0, (G * 16).astype(">u2").tobytes()), (modes.FAINT,)),
        (png(16, 0, words(G)), ()),
        (tiff(TWELVE, 1, [12]), ()),
        (saved(small(RGB), "JPEG"), ()),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_what_is_odd_about_a_file(file: bytes, odd: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(file)
    assert images.open_rgb(tmp_path / "x")[2] == odd
