"""`vap data check`: files, counts, damage and copies; and that it changes and fetches nothing."""

from __future__ import annotations

import io
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import yaml
from layouts import lay_out
from PIL import Image
from typer.testing import CliRunner

from vap.cli import app
from vap.common.errors import VapError
from vap.datasets import isic2018
from vap.datasets.duplicates import Print, pairs, thumbnail

ROOT = Path("data/raw/own")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the check went to the network")

    monkeypatch.setattr(socket, "socket", no_network)


def check(adapter: str, options: Mapping[str, Any] = layouts.NOTHING, *words: str) -> tuple[int, str]:
    data = layouts.settings(adapter, options).model_dump(mode="json")
    data["dataset"]["other"] = {"adapter": "folder", "modality": "dermoscopy"}
    Path("params.yaml").write_text(yaml.safe_dump(data))
    before = {p: p.read_bytes() for p in ROOT.rglob("*") if p.is_file()}
    result = CliRunner().invoke(app, ["data", "check", "own", *words])
    assert before == {p: p.read_bytes() for p in ROOT.rglob("*") if p.is_file()}
    return result.exit_code, result.stdout


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_whole_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(ROOT, layouts.isic2018_files(val=7), layouts.ISIC2018_ZIPS)
    counts = {"train": dict.fromkeys(isic2018.CLASSES, 2), "test": dict.fromkeys(isic2018.CLASSES, 1)}
    monkeypatch.setattr(isic2018, "COUNTS", counts)
    status, text = check("isic2018")
    assert status == 0
    assert "an archive (CC BY-NC 4.0)" in line(text, "ISIC2018_Task3_Training_Input")
    assert "a folder" in line(text, "ISIC2018_Task3_Validation_Input")
    assert line(text, "MEL").split() == ["MEL", "2", "1", "1", "3"]
    assert line(text, "all").split() == ["all", "14", "7", "7", "21"]
    assert "28 readable, 0 damaged" in text
    assert "MISSING" not in text


def test_counts_beside_the_official_ones() -> None:
    lay_out(ROOT, layouts.isic2018_files())
    status, text = check("isic2018", {}, "--quick")
    assert status == 1
    assert line(text, "NV").split() == ["NV", "2", "(6705)", "1", "(909)", "3"]
    assert "readable" not in text


def test_what_is_missing_is_named_with_its_place_and_licence() -> None:
    files = layouts.chest_files()
    del files["test_list.txt"]
    lay_out(ROOT, files)
    status, text = check("chestxray14")
    assert status == 1
    missing = line(text, "test_list.txt")
    assert "MISSING: https://nihcc.app.box.com/v/ChestXray-NIHCC (free, with citation)" in missing
    assert "## Not usable" in text
    assert "test_list.txt: found no such file" in text
    status, text = check("chestxray14", {"split": "patient"})
    assert "not there" in line(text, "test_list.txt")
    assert status == 1  # the counts


def test_nothing_there_at_all() -> None:
    status, text = check("isic2019")
    assert status == 1
    assert text.count("MISSING") + text.count("found no folder") >= 1
    assert "fetch ISIC_2019_Training_Input.zip" in text


def test_damaged_images_and_rows_are_counted() -> None:
    files = layouts.isic2019_files()
    for number in range(7):
        files[f"ISIC_2019_Training_Input/ISIC_000000{number}.jpg"] = b"junk"
    del files["ISIC_2019_Training_Input/ISIC_0000009.jpg"]
    lay_out(ROOT, files)
    status, text = check("isic2019")
    assert status == 1
    assert "left out 1 rows without an image" in text
    assert "112 readable, 7 damaged" in text
    assert "ISIC_0000000.jpg: no image that Pillow can read" in text
    assert "and 2 more" in text


def test_copies_within_across_splits_and_in_another_dataset() -> None:
    files = layouts.isic2018_files()
    train, test = "ISIC2018_Task3_Training_Input/", "ISIC2018_Task3_Test_Input/"
    files[f"{train}ISIC_0000008.jpg"] = files[f"{train}ISIC_0000001.jpg"]  # one lesion
    files[f"{train}ISIC_0000003.jpg"] = files[f"{train}ISIC_0000002.jpg"]  # two
    again = io.BytesIO()
    Image.open(io.BytesIO(smooth(5))).resize((120, 90)).save(again, "JPEG", quality=60)
    files[f"{train}ISIC_0000005.jpg"], files[f"{test}ISIC_0000016.jpg"] = smooth(5), again.getvalue()
    lay_out(ROOT, files)
    lay_out(
        Path("data/raw/other"),
        {f"{c}/{i}.jpg": layouts.picture(900 + i + ord(c)) for c in "ab" for i in range(3)}
        | {"a/copy.jpg": files[f"{train}ISIC_0000006.jpg"]},
    )
    status, text = check("isic2018", {}, "--against", "other")
    assert status == 1
    told = text[text.index("## Copies") :].replace("\n  ", " ").splitlines()
    assert "4 pairs" in told
    assert {line for line in told if " pairs of " in line} == {
        "within train, one group: 1 pairs of the same file ISIC_0000001 and ISIC_0000008",
        "within train: 1 pairs of the same file ISIC_0000002 and ISIC_0000003",
        "across train and test: 1 pairs of nearly the same picture ISIC_0000005 and ISIC_0000016",
        "with other: 1 pairs of the same file ISIC_0000006 and a__copy",
    }


def test_a_dataset_is_not_compared_with_itself() -> None:
    lay_out(ROOT, {f"{c}/{i}.jpg": layouts.picture(i + 10 * ord(c)) for c in "ab" for i in range(3)})
    check("folder")
    result = CliRunner().invoke(app, ["data", "check", "own", "--against", "own"])
    assert isinstance(result.exception, VapError)
    assert "--against: found own itself; expected another dataset" in str(result.exception)
    assert not result.stdout
    assert (
        "Not compared with other: --quick opens no image"
        in check("folder", {}, "--against", "other", "--quick")[1]
    )


@pytest.mark.parametrize("images", [True, False])
def test_files_that_a_folder_of_images_ignores_are_counted(images: bool) -> None:
    files = {f"{c}/{i}.dcm": b"DICM" for c in "ab" for i in range(3)}
    files |= {"a/deep/x.DCM": b"DICM", "b/notes": b"", "b/more.zip": b"", "a/.hidden.dcm": b""}
    if images:
        files |= {f"{c}/{i}.webp": layouts.picture(i + 10 * ord(c), "WEBP") for c in "ab" for i in range(3)}
        rows = "".join(f"{c}/{i}.webp,{c}{i}\n" for c in "ab" for i in range(3))
        files["groups.csv"] = f"path,group\n{rows}".encode()
    lay_out(ROOT, files)
    status, text = check("folder")
    told = line(text, "Warning: passed over, as no images by their suffix")
    assert told.endswith(": 7 .dcm, 1 .zip (to be unpacked), 1 no suffix")
    assert status == (0 if images else 1)
    assert ("found no image" in text) is not images


def test_nothing_is_said_where_nothing_is_ignored() -> None:
    lay_out(ROOT, {f"{c}/{i}.jpg": layouts.picture(i + 10 * ord(c)) for c in "ab" for i in range(3)})
    assert "Warning" not in check("folder")[1]


def file_of(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_pictures_that_are_hardly_meant_are_told_by_kind() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    disc = (np.hypot(*np.mgrid[-99:99, -70:128]) < 60).astype(np.uint8)
    pages = [Image.fromarray(noise[i:]) for i in range(3)]
    files = {f"{c}/{i}.jpg": layouts.picture(i + 10 * ord(c)) for c in "ab" for i in range(3)}
    files |= {f"a/black{i}.png": file_of(np.zeros((9, 9), np.uint8)) for i in range(4)}
    files |= {
        "a/clear.png": file_of(np.dstack([noise, 0 * noise[..., 0]])),
        "a/dark.png": file_of(noise // 16),
        "a/twelve.png": file_of(noise[..., 0].astype(np.uint16) * 16),
        "a/stack.tif": file_of(noise, "TIFF", save_all=True, append_images=pages),
        "b/two.png": file_of(disc * 255),
        "b/lossy.jpg": file_of(disc * 255, "JPEG", quality=60),
        "b/labels.png": file_of(disc + disc.T),
        "b/ISIC_0000001_segmentation.png": file_of(noise),
        "b/masks/17.png": file_of(noise[::-1]),
        "b/damask.png": file_of(noise[:, ::-1]),
        "b/16.png": file_of(noise[..., 0].astype(np.uint16) * 257),
    }
    lay_out(ROOT, {f"train/{path}": data for path, data in files.items()})
    lay_out(ROOT, {f"test/{c}/0.jpg": layouts.picture(ord(c)) for c in "ab"})
    status, text = check("folder")
    assert status == 0  # it is no fault of the dataset's
    told = [line.removeprefix("Warning: ") for line in text.splitlines() if line.startswith("Warning: ")]
    assert {line.replace("train__", "") for line in told} == {
        "4 images of a single color: a__black0, a__black1, a__black2, …",
        "1 images wholly transparent, so black: a__clear",
        "1 images whose values differ by 16 of 255 at most: a__dark",
        "1 images of 16 bits that use a quarter of them or less (12 bits in a file of 16?): a__twelve",
        "1 images with several pages or frames, of which the first is used: a__stack",
        "3 images that look like masks: two values, or 8 colors at most: b__labels, b__lossy, b__two",
        "2 images named like masks: b__ISIC_0000001_segmentation, b__masks__17",
    }


def smooth(seed: int) -> bytes:
    """A larger picture without much noise."""
    areas = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(areas).resize((240, 180), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_colonoscopy_by_part() -> None:
    lay_out(ROOT, layouts.within("polypsset", layouts.polypsset_files()))
    status, text = check("colonoscopy")
    assert status == 1
    assert "polypsset train2019: 20 (officially 28773)" in text
    assert "a folder (CC0 1.0)" in line(text, "PolypsSet")


def test_pairs_are_those_of_every_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks or at once; a pair once, and none among `others` alone."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (40, 192)).astype(np.uint8)
    prints = [Print("d", "train", str(i), str(i), str(i % 25), v) for i, v in enumerate(values)]
    others = [Print("e", "train", p.id, p.id, p.sha256, p.thumbnail) for p in prints[:5]]
    everything = list(pairs(prints, others))
    monkeypatch.setattr("vap.datasets.duplicates.BLOCK", 7)
    in_blocks = list(pairs(prints, others))

    def key(pair: Any) -> tuple[str, ...]:
        return (pair.one.id, pair.other.dataset, pair.other.id)

    assert sorted(map(key, everything)) == sorted(map(key, in_blocks))
    assert len(everything) == 40 * 39 // 2 + 40 * 5
    assert list(pairs([], others)) == []


def test_a_thumbnail_does_not_change_with_size_or_compression() -> None:
    one = Image.open(io.BytesIO(smooth(1)))
    buffer = io.BytesIO()
    one.resize((120, 90)).save(buffer, "JPEG", quality=60)
    other = Image.open(io.BytesIO(buffer.getvalue()))
    difference = thumbnail(one).astype(float) - thumbnail(other)
    assert np.sqrt((difference**2).mean()) < 3 < np.abs(thumbnail(one).astype(float) - 128).mean()
