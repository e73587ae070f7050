"""prepare's images: borders, storage, scaled decoding, and bytes that do not depend on the threads."""

from __future__ import annotations

import io
from pathlib import Path

import layouts
import numpy as np
import pytest
from layouts import lay_out
from PIL import Image, ImageDraw

from vap.common.artifacts import ArrowFile
from vap.datasets import images, prepare
from vap.datasets.ahead import Ahead
from vap.datasets.borders import content_box

ROOT = Path("data/raw/own")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(**changes: object) -> ArrowFile:
    prepare.run(layouts.settings("isic2018", **changes), "own")
    return ArrowFile(Path("data/prepared/own.arrow"), "prepared")


def test_bytes_do_not_depend_on_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(ROOT, layouts.isic2018_files())
    monkeypatch.setattr(prepare, "PART_ROWS", 4)
    found = set()
    for workers in (1, 2, 7):
        monkeypatch.setattr("vap.datasets.ahead.processors", lambda workers=workers: workers)
        found.add(prepared().path.read_bytes())
    assert len(found) == 1


def test_work_ahead_is_bounded_ordered_and_tells_the_first_error() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i >= 25:
            raise ValueError(i)
        return i * i

    with Ahead(range(40), work, workers=3) as ahead:
        assert ahead.take(range(10)) == [i * i for i in range(10)]
        assert max(begun) < 20
        assert ahead.take(range(10, 20)) == [i * i for i in range(10, 20)]
        with pytest.raises(ValueError, match="25"):
            ahead.take(range(20, 30))
    assert sorted(begun) == sorted(set(begun))


def test_every_storage_holds_the_same_pixels() -> None:
    lay_out(ROOT, layouts.isic2018_files())
    files = {}
    for storage in ("png", "png-fast", "raw"):
        file = prepared(storage=storage)
        files[storage] = [file.value("image", row) for row in range(len(file))]
    for png, fast, raw in zip(*files.values(), strict=True):
        assert np.array_equal(images.decode(png), images.decode(fast))
        assert np.array_equal(images.decode(png), images.decode(raw))
        assert Image.open(io.BytesIO(raw)).format == "PNG"
        assert len(raw) == 16 * (3 * 16 + 1) + len(raw) % 1000 - 784 % 1000
    assert files["png"] != files["raw"] != files["png-fast"]


def test_png_is_as_it_was() -> None:
    pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=6)
    assert images.encode(pixels) == images.encode_image(Image.fromarray(pixels)) == buffer.getvalue()


def test_a_large_jpeg_is_decoded_no_larger_than_is_of_use(tmp_path: Path) -> None:
    areas = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(areas).resize((600, 450), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95)
    whole, digest, _ = images.open_rgb(tmp_path / "x.jpg")
    for at_least, size in ((0, (600, 450)), (225, (300, 225)), (226, (600, 450)), (192, (300, 225))):
        image, same, _ = images.open_rgb(tmp_path / "x.jpg", at_least)
        assert (image.size, same) == (size, digest)
    smaller, *_ = images.open_rgb(tmp_path / "x.jpg", images.GAP * 64)
    difference = np.asarray(images.fit_image(smaller, 64, "squash")).astype(int)
    difference -= np.asarray(images.fit_image(whole, 64, "squash"))
    assert np.abs(difference).mean() < 1
    assert np.abs(difference).max() < 12


def endoscope(mark: bool = True) -> Image.Image:
    """A picture of 300 x 280 at (200, 60) in a black frame of 640 x 400 with noise and a burnt-in mark."""
    frame = np.random.default_rng(0).integers(0, 12, (400, 640, 3), dtype=np.uint8)
    image = Image.fromarray(frame)
    drawing = ImageDraw.Draw(image)
    drawing.rounded_rectangle((200, 60, 499, 339), 40, fill=(200, 90, 80))
    if mark:
        drawing.text((20, 100), "12/03/2019\n11:20:45\nCVP: A1/4", fill=(255, 255, 255))
    return image


def test_the_border_is_found_and_the_mark_goes_with_it() -> None:
    left, top, right, bottom = content_box(endoscope())
    assert abs(left - 200) <= 3
    assert abs(top - 60) <= 3
    assert abs(right - 500) <= 3
    assert abs(bottom - 340) <= 3
    large = endoscope().resize((1920, 1200))
    assert all(abs(a - 3 * b) <= 12 for a, b in zip(content_box(large), (200, 60, 500, 340), strict=True))


@pytest.mark.parametrize("level", [0, 10, 200])
def test_an_image_without_a_border_stays_whole(level: int) -> None:
    noise = np.random.default_rng(1).integers(level, level + 12, (90, 120, 3), dtype=np.uint8)
    assert content_box(Image.fromarray(noise)) == (0, 0, 120, 90)
    dot = noise // 200
    dot[40:50, 50:60] = 255  # a light, no picture
    assert content_box(Image.fromarray(dot)) == (0, 0, 120, 90)


def test_a_dark_lesion_is_no_border() -> None:
    skin = np.full((90, 120, 3), 180, np.uint8)
    skin[10:80, 20:100] = 5
    assert content_box(Image.fromarray(skin)) == (0, 0, 120, 90)


def test_prepare_crops_borders_where_it_is_told_to() -> None:
    files = layouts.isic2018_files()
    buffer = io.BytesIO()
    endoscope().save(buffer, "JPEG", quality=95)
    files["ISIC2018_Task3_Training_Input/ISIC_0000001.jpg"] = buffer.getvalue()
    lay_out(ROOT, files)
    dark = images.decode(prepared().value("image", 0))
    cropped = images.decode(prepared(crop_borders=True).value("image", 0))
    assert dark[:, :2].max() < 80
    assert cropped[4:-4].min(axis=(0, 1))[0] > 150
    other = ArrowFile(Path("data/prepared/own.arrow"), "prepared")
    assert len(other) == 21
