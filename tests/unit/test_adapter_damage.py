"""Damaged datasets: one clear line each, and the good rest unharmed under prepare.on_error: skip."""

from __future__ import annotations

import errno
import io
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import layouts
import pytest
from layouts import lay_out, picture

from vap import cli
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets import archives, prepare

ROOT = Path("data/raw/own")
OUT = Path("data/prepared/own.arrow")
TRAIN = ROOT / "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv"
IMAGE = ROOT / "ISIC2018_Task3_Training_Input/ISIC_0000008.jpg"
ONE = "1.0,0.0,0.0,0.0,0.0,0.0,0.0"
Spoil = Callable[[], object]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files_of(adapter: str) -> layouts.Files:
    if adapter == "colonoscopy":
        return layouts.within("polypsset", layouts.polypsset_files())
    return {
        "isic2018": layouts.isic2018_files,
        "isic2019": layouts.isic2019_files,
        "chestxray14": layouts.chest_files,
    }[adapter]()


def replace(file: Path | str, old: str, new: str) -> Spoil:
    def spoil() -> None:
        path = ROOT / file
        text = path.read_bytes()
        assert old.encode() in text
        path.write_bytes(text.replace(old.encode(), new.encode(), 1))

    return spoil


def write(file: Path | str, data: bytes) -> Spoil:
    return lambda: (ROOT / file).write_bytes(data)


def link_loop() -> None:
    IMAGE.unlink()
    IMAGE.symlink_to(IMAGE.name)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


CHEST = "Data_Entry_2017_v2020.csv"
PNG = "images_001/images/00000001_000.png"
TRUTH19, META19 = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
XML = "polypsset/PolypsSet/val2019/Annotation/1/1.xml"

# adapter, damage, what is said, images that the good rest has
IMAGES_DAMAGED: dict[str, tuple[str, Spoil, str, int]] = {
    "truncated JPEG": ("isic2018", lambda: IMAGE.write_bytes(IMAGE.read_bytes()[:200]), "a broken image", 20),
    "zero bytes": ("chestxray14", write(PNG, b""), "an empty file", 83),
    "0 x 0": ("chestxray14", write(PNG, png(0, 0)), "no image that Pillow can read", 83),
    "huge": ("chestxray14", write(PNG, png(50_000, 50_000)), "a decompression bomb?", 83),
    "a web page": ("isic2018", lambda: IMAGE.write_bytes(b"<html>404"), "no image that Pillow can read", 20),
    "link loop": ("isic2018", link_loop, "a broken link", 20),
    "missing image": ("isic2018", lambda: IMAGE.unlink(), "no image ISIC2018_Task3_Training_Input/ISIC", 20),
    "two labels": (
        "isic2018",
        replace(TRAIN.relative_to(ROOT), f"08,{ONE}", f"08,{ONE.replace('0.0', '1.0', 1)}"),
        "csv:9: found MEL and NV of ISIC_0000008",
        20,
    ),
    "no label": (
        "isic2018",
        replace(TRAIN.relative_to(ROOT), f"08,{ONE}", f"08,{ONE.replace('1', '0')}"),
        "csv:9: found no label of ISIC_0000008",
        20,
    ),
    "label no number": (
        "isic2019",
        replace(TRUTH19, "ISIC_0000000,1.0", "ISIC_0000000,oui"),
        "csv:2: found MEL = 'oui'",
        119,
    ),
    "duplicated id": (
        "isic2019",
        replace(TRUTH19, "ISIC_0060000_downsampled", "ISIC_0000000"),
        "csv:4: found a second row of ISIC_0000000",
        119,
    ),
    "path escape in a table": (
        "isic2019",
        replace(TRUTH19, "ISIC_0000000", "../../etc/x"),
        "csv:2: found the image id '../../etc/x'",
        119,
    ),
    "no metadata of an image": (
        "isic2019",
        replace(META19, "ISIC_0000007", "ISIC_7"),
        "no row of ISIC_0000007",
        119,
    ),
    "unknown finding": (
        "chestxray14",
        replace(CHEST, "Cardiomegaly,0", "Kardiomegalie,0"),
        "csv:2: found the label 'Kardiomegalie'",
        83,
    ),
    "no patient": ("chestxray14", replace(CHEST, "Cardiomegaly,0,1", "Cardiomegaly,0,"), "no patient of", 83),
    "in neither list": (
        "chestxray14",
        replace("train_val_list.txt", "00000001_000.png", "00000000_000.png"),
        "csv:2: found 00000001_000.png in neither list",
        83,
    ),
    "broken XML": ("colonoscopy", write(XML, b"<annotation><obj"), "no VOC annotation", 55),
    "XML with entities": (
        "colonoscopy",
        write(XML, b'<!DOCTYPE a [<!ENTITY b "c">]><annotation/>'),
        "no VOC annotation (a document type)",
        55,
    ),
    "two classes in a frame": (
        "colonoscopy",
        write(XML, layouts.voc("adenomatous", "hyperplastic")),
        "the classes 'adenomatous' and 'hyperplastic'",
        55,
    ),
    "no annotation": ("colonoscopy", lambda: (ROOT / XML).unlink(), "1/1.jpg: found no annotation", 55),
}


@pytest.mark.parametrize("name", IMAGES_DAMAGED)
def test_a_damaged_image_or_row(name: str) -> None:
    adapter, spoil, message, rest = IMAGES_DAMAGED[name]
    lay_out(ROOT, files_of(adapter))
    whole = {row["id"]: row["image"] for row in rows_of(adapter)}
    OUT.unlink()
    spoil()
    with pytest.raises(VapError) as caught:
        prepare.run(layouts.settings(adapter), "own")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not OUT.exists()
    good = rows_of(adapter, on_error="skip")
    assert len(good) == rest == len(whole) - 1
    assert all(row["image"] == whole[row["id"]] for row in good)
    notes = ArrowFile(OUT, "prepared").metadata["notes"]
    assert len(notes) == 1
    assert notes[0].startswith("left out ")


def rows_of(adapter: str, **changes: str) -> list[dict[str, object]]:
    prepare.run(layouts.settings(adapter, **changes), "own")
    return list(ArrowFile(OUT, "prepared").rows())


TABLES_DAMAGED: dict[str, tuple[str, Spoil, str]] = {
    "missing column": (
        "chestxray14",
        replace(CHEST, "Finding Labels", "Labels"),
        "no column 'Finding Labels'",
    ),
    "Latin-1": (
        "isic2019",
        lambda: _append(META19, b"caf\xe9,1,1,1,1\n"),
        "the byte 0xe9, which is not UTF-8",
    ),
    "empty table": ("isic2019", write(TRUTH19, b""), "found no column 'image'"),
    "header alone": ("chestxray14", lambda: _head(CHEST), "no row below the header"),
    "short row": ("isic2019", lambda: _append(TRUTH19, b"ISIC_9,1.0\n"), "found 2 values"),
    "no table": ("isic2019", lambda: (ROOT / META19).unlink(), "Metadata.csv: found no such file"),
    "no list": (
        "chestxray14",
        lambda: (ROOT / "test_list.txt").unlink(),
        "test_list.txt: found no such file",
    ),
    "empty list": ("chestxray14", write("test_list.txt", b"\n\n"), "test_list.txt: found no name"),
    "wrong list": ("chestxray14", lambda: _copy("train_val_list.txt", "test_list.txt"), "in both lists"),
    "lists of another dataset": (
        "chestxray14",
        lambda: [
            write(f, f"{i}.png".encode())() for i, f in enumerate(("train_val_list.txt", "test_list.txt"))
        ],
        "found none of its 84 images in train_val_list.txt",
    ),
    "path in a list": (
        "chestxray14",
        lambda: _append("test_list.txt", b"\n../x.png"),
        "the image id '../x.png'",
    ),
    "a patient in both lists": (
        "chestxray14",
        lambda: [
            replace("train_val_list.txt", "00000001_000.png", "00000042_000.png")(),
            replace("test_list.txt", "00000042_000.png", "00000001_000.png")(),
        ],
        "in both lists (",
    ),
    "no images": (
        "isic2019",
        lambda: (ROOT / "ISIC_2019_Training_Input").rename("x"),
        "nor an archive of them",
    ),
    "no part": ("colonoscopy", lambda: (ROOT / "polypsset").rename("x"), "own/polypsset: found no folder"),
    "the table twice": (
        "isic2019",
        lambda: lay_out(ROOT / "copy", {TRUTH19: b"image\n"}),
        "Training_GroundTruth.csv twice (",
    ),
}


def _append(file: str, data: bytes) -> None:
    with (ROOT / file).open("ab") as handle:
        handle.write(data)


def _head(file: str) -> None:
    (ROOT / file).write_bytes((ROOT / file).read_bytes().splitlines(True)[0])


def _copy(source: str, target: str) -> None:
    (ROOT / target).write_bytes((ROOT / source).read_bytes())


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("name", TABLES_DAMAGED)
def test_a_damaged_table_stops_in_any_case(name: str, on_error: str) -> None:
    adapter, spoil, message = TABLES_DAMAGED[name]
    lay_out(ROOT, files_of(adapter))
    spoil()
    with pytest.raises(VapError) as caught:
        prepare.run(layouts.settings(adapter, on_error=on_error), "own")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not OUT.exists()


@pytest.mark.parametrize("adapter", ["isic2019", "chestxray14"])
def test_marks_and_line_ends_of_windows_are_accepted(adapter: str) -> None:
    lay_out(ROOT, files_of(adapter))
    expected = rows_of(adapter)
    for file in (*ROOT.glob("*.csv"), *ROOT.glob("*.txt")):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert rows_of(adapter) == expected


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(ROOT, files_of("isic2018"))
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == IMAGE.name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)  # the super-user may read whatever its mode
    with pytest.raises(VapError, match=r"ISIC_0000008\.jpg: found no permission to read it"):
        prepare.run(layouts.settings("isic2018"), "own")
    assert len(rows_of("isic2018", on_error="skip")) == 20


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read whatever its mode")
def test_a_folder_without_permission() -> None:
    lay_out(ROOT, files_of("isic2018"))
    IMAGE.parent.chmod(0)
    with pytest.raises(VapError, match="Permission denied; expected a readable file"):
        prepare.run(layouts.settings("isic2018"), "own")
    IMAGE.parent.chmod(0o755)


def test_a_full_disk_leaves_nothing_half(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(ROOT, files_of("isic2018"))
    params = layouts.settings("isic2018")
    monkeypatch.setattr(cli, "_params", lambda *_: params)
    monkeypatch.setattr(sys, "argv", ["vap", "prepare", "own"])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(OUT))

    with monkeypatch.context() as patch:
        patch.setattr("vap.common.artifacts.pa.ipc.new_file", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 2
    assert "No space left on device; expected enough disk space" in capsys.readouterr().err
    assert not OUT.exists()
    assert len(rows_of("isic2018")) == 21


# ── archives ────────────────────────────────────────────────────────────────────────────────────────

ZIP, TAR = "ISIC_2019_Training_Input.zip", "ISIC_2019_Training_Input.tar.gz"
NAME = "ISIC_2019_Training_Input/ISIC_0000000.jpg"


def archived(name: str) -> Path:
    pack = {name: "ISIC_2019_Training_Input/"}
    lay_out(ROOT, layouts.isic2019_files(), pack)
    return ROOT / name


@pytest.mark.parametrize("name", [ZIP, TAR, TAR.removesuffix(".gz")])
def test_a_truncated_archive(name: str) -> None:
    archive = archived(name)
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2 + 77])
    with pytest.raises(VapError, match=r"Training_Input\.[a-z.]+: found no whole archive"):
        prepare.run(layouts.settings("isic2019", on_error="skip"), "own")
    assert not list(Path("work").rglob("*.part"))


def test_a_damaged_member_of_a_zip() -> None:
    archive = archived(ZIP)
    with zipfile.ZipFile(archive) as zipped:
        info = zipped.getinfo(NAME)
    data = bytearray(archive.read_bytes())
    start = info.header_offset + 30 + len(NAME) + 100
    data[start : start + 20] = bytes(20)
    archive.write_bytes(data)
    with pytest.raises(
        VapError, match=r"zip:ISIC_2019_Training_Input/ISIC_0000000\.jpg: found a broken image"
    ):
        prepare.run(layouts.settings("isic2019"), "own")
    assert len(rows_of("isic2019", on_error="skip")) == 119


@pytest.mark.parametrize("name", [ZIP, TAR])
@pytest.mark.parametrize("path", ["../../outside.jpg", "/tmp/outside.jpg", "a\\..\\outside.jpg"])
def test_a_member_that_leaves_the_archive(name: str, path: str, tmp_path: Path) -> None:
    files = {p: d for p, d in layouts.isic2019_files().items() if p.startswith("ISIC_2019_Training_Input/")}
    lay_out(ROOT, {p: d for p, d in layouts.isic2019_files().items() if p not in files})
    layouts.pack(ROOT / name, files | {path: picture(0)})
    with pytest.raises(VapError, match="which leaves the archive"):
        prepare.run(layouts.settings("isic2019"), "own")
    assert len(rows_of("isic2019", on_error="skip")) == 120
    assert not list(tmp_path.rglob("outside*"))


def test_a_link_in_a_tar_is_not_followed() -> None:
    archive = archived(TAR)
    with tarfile.open(archive) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo(NAME)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for path, data in members.items():
            if path != NAME:
                info = tarfile.TarInfo(path)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with pytest.raises(VapError, match="which is a link or a device"):
        prepare.run(layouts.settings("isic2019"), "own")
    assert len(rows_of("isic2019", on_error="skip")) == 119


@pytest.mark.parametrize("name", [ZIP, TAR])
def test_an_archive_that_is_a_bomb(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = layouts.isic2019_files()
    files[NAME] = bytes(2**22)
    lay_out(ROOT, files, {name: "ISIC_2019_Training_Input/"})
    monkeypatch.setattr(archives, "BOMB_BYTES", 2**20)
    monkeypatch.setattr(archives, "BOMB_RATIO", 10)
    with pytest.raises(VapError, match="a decompression bomb"):
        prepare.run(layouts.settings("isic2019", on_error="skip"), "own")
    assert not list(Path("work").rglob("*.bin"))


def test_a_member_larger_than_any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    archived(ZIP)
    sizes = sorted(len(d) for p, d in layouts.isic2019_files().items() if p.endswith(".jpg"))
    monkeypatch.setattr(archives, "MAX_BYTES", sizes[-1] - 1)
    with pytest.raises(VapError, match=f"expected at most {sizes[-1] - 1}"):
        prepare.run(layouts.settings("isic2019"), "own")


def test_an_encrypted_zip() -> None:
    archive = archived(ZIP)
    data = bytearray(archive.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:  # the flag of every entry in the central directory
        data[at + 8] |= 1
        at = data.find(b"PK\x01\x02", at + 4)
    archive.write_bytes(data)
    with pytest.raises(VapError, match=r"an encrypted archive; .*unpack it with its password"):
        prepare.run(layouts.settings("isic2019"), "own")


def test_a_link_loop_of_folders_is_walked_once() -> None:
    lay_out(ROOT, files_of("chestxray14"))
    (ROOT / "images_001/again").symlink_to(ROOT.resolve())
    assert len(rows_of("chestxray14")) == 84


def test_junk_beside_the_images_is_ignored() -> None:
    lay_out(ROOT, files_of("isic2018"))
    for junk in ("._ISIC_0000001.jpg", ".DS_Store", "ATTRIBUTION.txt", "notes.txt"):
        (IMAGE.parent / junk).write_bytes(b"junk")
    assert len(rows_of("isic2018")) == 21
