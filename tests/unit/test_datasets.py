"""The dataset adapters: layouts, bad input and image decoding."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vap.common.errors import VapError
from vap.datasets import images
from vap.datasets.base import Source
from vap.datasets.folder import FolderSource
from vap.datasets.isic2018 import CLASSES, Isic2018Source

PROJECT = Path(__file__).resolve().parents[2]
TRAIN = "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
TEST = "ISIC2018_Task3_Test_GroundTruth/ISIC2018_Task3_Test_GroundTruth.csv"
IMAGES = "ISIC2018_Task3_Training_Input"
GROUPS = "ISIC2018_Task3_Training_LesionGroupings.csv"


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (24, 18)) -> Path:
    """Save noise of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def isic(root: Path, train: int = 14, test: int = 7, val: int = 0) -> Path:
    """The official layout in miniature: labels in turn, two images a lesion."""
    number = 0
    for name, count in (("Training", train), ("Validation", val), ("Test", test)):
        lines = ["image," + ",".join(CLASSES)]
        for i in range(count):
            number += 1
            picture(root / f"ISIC2018_Task3_{name}_Input" / f"ISIC_{number:07d}.jpg", number)
            one_hot = ["1.0" if j == i % 7 else "0.0" for j in range(7)]
            lines.append(f"ISIC_{number:07d}," + ",".join(one_hot))
        table = root / f"ISIC2018_Task3_{name}_GroundTruth/ISIC2018_Task3_{name}_GroundTruth.csv"
        table.parent.mkdir(parents=True)
        table.write_text("\n".join(lines) + "\n")
    rows = [f"ISIC_{i:07d},HAM_{(i - 1) % 7:07d},histopathology" for i in range(1, train + 1)]
    (root / GROUPS).write_text("\n".join(["image,lesion_id,diagnosis_confirm_type", *rows]) + "\n")
    return root


def edit(path: Path, old: str, new: str) -> None:
    path.write_text(new.join(path.read_text().split(old, 1)))


def classes_folder(root: Path, counts: dict[str, int]) -> Path:
    for i, (name, count) in enumerate(counts.items()):
        for j in range(count):
            picture(root / name / f"{j:03d}.png", 100 * i + j)
    return root


def folder(root: Path) -> FolderSource:
    return FolderSource(root, 0.2, seed=0)


# ── isic2018 ────────────────────────────────────────────────────────────────────────────────────


def test_isic_official_split_order_and_lesions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source: Source = Isic2018Source(isic(tmp_path / "isic2018"))
    assert source.classes == CLASSES
    assert [item.id for item in source.items] == [f"ISIC_{i:07d}" for i in range(1, 22)]
    assert Counter(item.split for item in source.items) == {"train": 14, "test": 7}
    assert [item.label for item in source.items[:8]] == [*CLASSES, "MEL"]
    assert source.items[0].group == source.items[7].group == "HAM_0000000"
    assert source.items[-1].group == source.items[-1].id
    assert capsys.readouterr().err.count("the validation set is left out") == 1
    raw = source.load(source.items[0])
    assert (raw.pixels.shape, raw.attributes) == ((18, 24, 3), None)
    assert source.items[0].source
    assert raw.sha256 == hashlib.sha256(source.items[0].source.read_bytes()).hexdigest()
    assert set(source.inputs) == {"groups", "train labels", "test labels"}


def test_isic_validation_bom_crlf_and_upper_case(tmp_path: Path) -> None:
    root = isic(tmp_path, val=7)
    for name in (TRAIN, TEST, GROUPS):
        header, *rows = (root / name).read_text().splitlines()
        text = "\r\n".join(["\ufeff" + header, *reversed(rows), "", ""])
        (root / name).write_bytes(text.encode())
    for file in (root / "ISIC2018_Task3_Test_Input").iterdir():
        file.rename(file.with_suffix(".JPG"))
    (root / "ISIC2018_Task3_Test_Input/LICENSE.txt").write_text("CC")
    items = Isic2018Source(root).items
    assert [i.split for i in items] == ["train"] * 14 + ["val"] * 7 + ["test"] * 7
    assert [i.id for i in items] == [f"ISIC_{i:07d}" for i in range(1, 29)]


def _drop(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).rename(root / "elsewhere")


def _edit(name: str, old: str, new: str) -> Callable[[Path], object]:
    return lambda root: edit(root / name, old, new)


def _latin1(root: Path) -> None:
    (root / GROUPS).write_bytes((root / GROUPS).read_bytes().replace(b"histo", b"\xe9", 1))


ONE = "1.0,0.0,0.0,0.0,0.0,0.0,0.0"
NONE, TWO = ONE.replace("1", "0"), ONE.replace("1.0,0.0", "1.0,1.0", 1)
FIRST, LAST = "ISIC_0000001", "ISIC_0000021"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop(IMAGES), "Training_Input.zip from https"),
        (_drop(TRAIN), "Training_GroundTruth.csv: found no such file"),
        (_drop(GROUPS), "LesionGroupings.csv: found no such file"),
        (_edit(TRAIN, "BKL", "BLK"), "found no column 'BKL' in 'image,MEL,NV,BCC,AKIEC,BLK"),
        (_edit(TRAIN, "BKL", "DF"), "found no column 'BKL'"),
        (_edit(TRAIN, "MEL,NV", "MEL,MEL,NV"), "found 2 column 'MEL'"),
        (_drop(f"ISIC2018_Task3_Test_Input/{LAST}.jpg"), f"Test_Input/{LAST}.jpg; expected an"),
        (_edit(TRAIN, f"{FIRST},{ONE}", f"{FIRST},{TWO}"), f"csv:2: found MEL and NV of {FIRST}"),
        (_edit(TRAIN, f"{FIRST},{ONE}", f"{FIRST},{NONE}"), f"csv:2: found no label of {FIRST}"),
        (_edit(TRAIN, f"{FIRST},1.0", f"{FIRST},yes"), "found MEL = 'yes' of"),
        (_edit(TRAIN, f"{FIRST},1.0,", f"{FIRST},"), "csv:2: found 7 values; expected 8"),
        (_edit(TRAIN, "ISIC_0000002", FIRST), f"csv:3: found a second row of {FIRST}"),
        (_edit(TRAIN, FIRST, "../secret"), "csv:2: found the image id '../secret'"),
        (_edit(TEST, LAST, "/etc/passwd"), "csv:8: found the image id '/etc/passwd'"),
        (_edit(GROUPS, FIRST, "a/b"), "found the image id 'a/b'"),
        (_edit(GROUPS, FIRST, "ISIC_9"), f"LesionGroupings.csv: found no row of {FIRST}"),
        (lambda root: picture(root / f"{IMAGES}/{FIRST}.JPG"), f"{FIRST}.JPG and {FIRST}.jpg"),
        (_latin1, "csv:2: found the byte 0xe9, which is not UTF-8"),
        (lambda root: (root / TRAIN).write_text("image," + ",".join(CLASSES)), "no row below"),
        (lambda root: (root / TRAIN).write_bytes(b""), "found no column 'image'"),
    ],
)
def test_isic_bad_input_is_one_clear_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    root = isic(tmp_path / "isic2018")
    spoil(root)
    with pytest.raises(VapError) as caught:
        Isic2018Source(root)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_isic_one_id_in_two_splits_and_a_class_without_training(tmp_path: Path) -> None:
    root = isic(tmp_path / "a")
    edit(root / TEST, LAST, FIRST)
    file = root / "ISIC2018_Task3_Test_Input" / f"{LAST}.jpg"
    file.rename(file.with_stem(FIRST))
    with pytest.raises(VapError, match=f"found the id '{FIRST}' twice .*Training.* and .*Test"):
        Isic2018Source(root)
    with pytest.raises(VapError, match="no training image of class 'DF', 'VASC'"):
        Isic2018Source(isic(tmp_path / "b", train=5))


def test_isic_real_counts() -> None:
    data = os.environ.get("VAP_TEST_DATA", PROJECT.parent / "shared" / "data")
    root = Path(data) / "isic2018"
    if not root.is_dir():
        pytest.skip(f"the ISIC 2018 images are not at {root} (VAP_TEST_DATA names their folder)")
    source = Isic2018Source(root)
    train = Counter(i.label for i in source.items if i.split == "train")
    test = Counter(i.label for i in source.items if i.split == "test")
    assert (train.total(), test.total()) == (10_015, 1_512)
    assert [train[c] for c in CLASSES] == [1113, 6705, 514, 327, 1099, 115, 142]
    assert [test[c] for c in CLASSES] == [171, 909, 93, 43, 217, 44, 35]
    assert len({i.group for i in source.items if i.split == "train"}) == 7_470


# ── folder ──────────────────────────────────────────────────────────────────────────────────────


def test_folder_finds_images_and_ignores_the_rest(tmp_path: Path) -> None:
    root = classes_folder(tmp_path / "own", {"b": 5, "a": 5})
    picture(root / "a/deep/er/x.JPEG")
    (root / "a/loop").symlink_to(root / "a")
    outside = picture(tmp_path / "outside/far.bmp")
    (root / "a/far.bmp").symlink_to(outside)
    for junk in (".DS_Store", "Thumbs.db", "README", "._x.png"):
        (root / "a" / junk).write_text("junk")
    source = folder(root)
    assert source.classes == ["a", "b"]
    found = {i.id for i in source.items if i.label == "a"}
    assert found == {*(f"a__00{j}" for j in range(5)), "a__deep__er__x", "a__far"}
    assert all(source.load(item).pixels.dtype == np.uint8 for item in source.items)
    assert Counter(i.label for i in source.items if i.split == "test") == {"a": 1, "b": 1}
    assert source.items == folder(root).items


def test_folder_given_split(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("test", 2)):
        classes_folder(tmp_path / name, {"a": count, "b": count})
    items = folder(tmp_path).items
    assert Counter(i.split for i in items) == {"train": 8, "test": 4}
    assert items[0].id == "train__a__000"


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [
        ("Train", "Test", "Val"),
        ("Training", "Testing", "valid"),
        ("TRAIN", "tst", "Validation"),
        ("trn", "test", "dev"),
    ],
)
@pytest.mark.parametrize("above", ["", "chest_xray"])
def test_folder_split_in_any_of_its_usual_names_also_one_level_too_deep(
    above: str, train: str, test: str, val: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in ((train, 4), (test, 2), (val, 1)):
        classes_folder(tmp_path / above / name, {"NORMAL": count, "PNEUMONIA": count})
    source = folder(tmp_path)
    assert source.classes == ["NORMAL", "PNEUMONIA"]
    assert Counter(i.split for i in source.items) == {"train": 8, "test": 4, "val": 2}
    told = "the dataset is taken from chest_xray/, the only folder there"
    assert (told in capsys.readouterr().err) == bool(above)


def test_folder_passes_over_what_desktops_and_servers_leave_and_counts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes_folder(tmp_path / "own", {"a": 5, "b": 5})
    for junk in (
        "@eaDir/000.png/SYNOPHOTO_THUMB_M.jpg",
        "__MACOSX/x.png",
        ".ipynb_checkpoints/x.png",
        "Thumbs.db",
    ):
        for home in (root, root / "a"):
            picture(home / f"{junk}") if junk.endswith(("png", "jpg")) else (home / junk).write_text("junk")
    for name in ("x.dcm", "y.DCM", "notes.txt", "README"):
        (root / "b" / name).write_text("junk")
    assert len(folder(root).items) == 10
    said = capsys.readouterr().err
    assert "passed over, as no images by their suffix: 2 .dcm, 1 .txt, 1 no suffix" in said
    assert "passed over, as left by a desktop or file server: 8" in said


def test_folder_reads_jpegs_and_gifs_by_all_their_suffixes(tmp_path: Path) -> None:
    root = classes_folder(tmp_path, {"a": 3, "b": 3})
    for suffix, form in (("jfif", "JPEG"), ("jpe", "JPEG"), ("JIF", "JPEG"), ("gif", "GIF"), ("dib", "DIB")):
        Image.new("RGB", (8, 8), (200, 10, 10)).save(root / f"a/x{suffix}.{suffix}", form)
    source = folder(root)
    found = [item for item in source.items if "x" in item.id]
    assert len(found) == 5
    for item in found:
        assert np.abs(source.load(item).pixels.astype(int) - (200, 10, 10)).max() < 12


def test_folder_tells_a_class_of_folders_and_refuses_names_that_are_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for patient in ("p1", "p2"):
        classes_folder(tmp_path / "deep/melanoma", {patient: 3})
    classes_folder(tmp_path / "deep", {"naevus": 3})
    assert folder(tmp_path / "deep").classes == ["melanoma", "naevus"]
    assert "melanoma: all folders in it are the one class 'melanoma'" in capsys.readouterr().err
    for layout, told in (
        (("Train", "lesions"), "found a class of this name, which is a split's"),
        (("train", "Training", "test"), "found Training/ and train/"),
    ):
        root = tmp_path / "-".join(layout)
        classes_folder(root, dict.fromkeys(layout, 3))
        with pytest.raises(VapError, match=told):
            folder(root)


def test_names_are_the_same_in_either_unicode_form(tmp_path: Path) -> None:
    composed, apart = "N\u00e4vus", "Na\u0308vus"
    root = classes_folder(tmp_path, {apart: 4, "b": 4})
    rows = [f"{composed}/{j:03d}.png,p{j}" for j in range(4)] + [f"b/{j:03d}.png,q{j}" for j in range(4)]
    (root / "groups.csv").write_text("\n".join(["path,group", *rows]), encoding="utf-8")
    source = folder(root)
    assert source.classes == [composed, "b"]
    assert {i.group for i in source.items} == {f"{c}{j}" for c in "pq" for j in range(4)}


def test_a_png_with_much_text_is_read(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("log", "x" * 3_000_000, zip=True)
    path = tmp_path / "x.png"
    Image.new("RGB", (4, 4), (1, 2, 3)).save(path, pnginfo=text)
    assert (images.read(path)[0] == (1, 2, 3)).all()


REPORTS = Path(os.environ.get("VAP_TEST_REPORTS", PROJECT.parent / "shared/reports"))
REPORTED = {
    "kaggle-train-test/kag-train-test": {"train", "test"},
    "kaggle-train-test/brain": {"train", "test"},
    "kaggle-train-test/nested": {"train", "test"},
    "synology-eadir/syno": 16,
    "jfif-gif-dropped/jfif": 26,
    "png-big-text/bigtext": 13,
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_users_reported(name: str) -> None:
    if not REPORTS.is_dir():
        pytest.skip(f"no reports at {REPORTS}")
    source = folder(REPORTS / name)
    right = REPORTED[name]
    for item in source.items:
        source.load(item)
    if isinstance(right, int):
        assert len(source.items) == right
    else:
        assert {item.split for item in source.items} == right
        assert not {name.lower() for name in source.classes} & {"train", "test", "training", "testing"}


def test_folder_groups(tmp_path: Path) -> None:
    root = classes_folder(tmp_path, {"a": 10, "b": 10})
    rows = [f"{name}/{j:03d}.png,patient {j // 2}" for name in "ab" for j in range(10)]
    (root / "groups.csv").write_text("\n".join(["path,group", *rows]))
    source = folder(root)
    sides = {(item.group, item.split) for item in source.items}
    assert len(sides) == len({group for group, _ in sides}) == 5
    assert source.inputs == {"groups": root / "groups.csv"}
    first, second = rows[:2]
    for changed, message in (
        ([f"../{first}", *rows[1:]], "csv:2: found the path '../a/000.png', which leaves"),
        (["a/gone.png,p", *rows[1:]], "found the path 'a/gone.png', no image"),
        ([first, second, f"{second}9", *rows[2:]], "found a second group of 'a/001.png'"),
        ([f"{first[:9]},", *rows[1:]], "csv:2: found no group"),
        (rows[2:], "found no row of 'a/000.png' (nor 1 more)"),
    ):
        (root / "groups.csv").write_text("\n".join(["path,group", *changed]))
        with pytest.raises(VapError) as caught:
            folder(root)
        assert message in str(caught.value)


def test_folder_bad_layouts(tmp_path: Path) -> None:
    def fails(root: Path, message: str) -> None:
        with pytest.raises(VapError, match=message):
            folder(root)

    fails(tmp_path / "absent", "found no folder.*put the images there as CLASS/")
    (tmp_path / "empty/a").mkdir(parents=True)
    fails(tmp_path / "empty", "found no image; expected CLASS/")
    picture(tmp_path / "flat/x.png")
    fails(tmp_path / "flat", "found 1 images outside a class")
    (classes_folder(tmp_path / "hole", {"a": 3}) / "b").mkdir()
    fails(tmp_path / "hole", "no training image of class 'b'")
    picture(classes_folder(tmp_path / "twice", {"a": 3}) / "a/000.jpg")
    fails(tmp_path / "twice", r"the id 'a__000' twice \(.*000.jpg and .*000.png\)")
    classes_folder(tmp_path / "half/train", {"a": 3})
    fails(tmp_path / "half", "train/ without test/")
    classes_folder(tmp_path / "half", {"test": 1, "odd": 1})
    fails(tmp_path / "half", "odd/ beside train/ and test/")
    fails(classes_folder(tmp_path / "single", {"a": 1, "b": 1}), "none to spare for testing")
    (tmp_path / "afile").touch()
    fails(tmp_path / "afile", "found a file; expected the dataset's folder")
    for side in ("train", "test"):
        picture(tmp_path / "leak" / side / "a/x.png")
    (tmp_path / "leak/groups.csv").write_text("path,group\ntrain/a/x.png,p\ntest/a/x.png,p\n")
    fails(tmp_path / "leak", "the group 'p' in train/ and in test/")


# ── images ──────────────────────────────────────────────────────────────────────────────────────


def test_read_every_kind_of_pixel(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    grey = np.round(ramp / 257).astype(np.uint8)
    rgba = np.dstack([grey, grey, grey, np.where(np.arange(64).reshape(8, 8) < 32, 0, 255)])
    black = np.where(np.arange(64).reshape(8, 8) < 32, 0, grey)
    cases = {
        "grey.png": (Image.fromarray(grey), grey),
        "deep.png": (Image.fromarray(ramp), grey),
        "deep.tif": (Image.fromarray(ramp), grey),
        "deep.pgm": (Image.fromarray(ramp.astype(np.int32)).convert("I"), grey),
        "palette.png": (Image.fromarray(grey).convert("P"), grey),
        "rgba.png": (Image.fromarray(rgba.astype(np.uint8)), black),
        "la.png": (Image.fromarray(rgba.astype(np.uint8)).convert("LA"), black),
        "bits.bmp": (Image.fromarray(grey > 127), np.where(grey > 127, 255, 0)),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        pixels, _ = images.read(tmp_path / name)
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8), name
        assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2)), name


def test_read_turns_as_exif_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    left = np.repeat([[255, 0]], 20, axis=0).repeat(20, axis=1).astype(np.uint8)
    Image.fromarray(left).save(tmp_path / "x.jpg", exif=exif)
    pixels, _ = images.read(tmp_path / "x.jpg")
    assert pixels.shape == (40, 20, 3)
    assert pixels[:15].min() > 240 > 15 > pixels[-15:].max()


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"  # a program


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.jpg").read_bytes()
    for name, kind in (("wide", np.int32), ("float", np.float32)):
        Image.fromarray(np.full((4, 4), 1e6, kind)).save(tmp_path / f"{name}.tif")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    for name, data, message in (
        ("cut.jpg", whole[: len(whole) // 2], "truncated"),
        ("page.png", b"<html>not found</html>", "no image that pillow can read"),
        ("script.png", EPS, "no image that pillow can read"),
        ("empty.png", b"", "an empty file"),
        ("zero.png", png(0, 0), "no image that pillow can read"),
        ("bomb.png", png(10_000, 10_000), "10000x10000 pixels, a decompression bomb"),
        ("bigger.png", png(60_000, 60_000), "a decompression bomb"),
        ("wide.tif", None, "32-bit pixels of unknown range"),
        ("float.tif", None, "floating-point pixels"),
        ("link.png", None, "a broken link"),
        ("gone.png", None, "no regular file"),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(images.UnreadableImage) as caught:
            images.read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert message in str(caught.value).lower(), name


def test_fit_and_encode() -> None:
    half = np.zeros((40, 80, 3), dtype=np.uint8)
    half[:, 40:] = 255
    for how in ("squash", "crop"):
        small = images.fit(half, 16, how)
        assert small.shape == (16, 16, 3)
        assert small[:, :6].max() < 20 < 235 < small[:, -6:].min()
    lines = np.tile(np.array([[[255], [0]]], np.uint8), (64, 32, 3))
    # an antialiased filter averages them, any other gives 0 or 255
    assert np.abs(images.fit(lines, 16, "squash")[:, 2:-2].astype(int) - 127).max() < 12
    half[:, :20] = half[:, 60:] = 128  # outside the centre square
    assert 128 not in images.fit(half, 40, "crop")
    assert images.fit(half[:, :40], 40, "squash").shape == (40, 40, 3)
    assert images.encode(half) == images.encode(half.copy())
