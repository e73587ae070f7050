"""Names, suffixes and links as people have them, in every reader of a dataset."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import yaml
from layouts import Files, lay_out, picture
from typer.testing import CliRunner

from vap.cli import app
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets import images, prepare
from vap.datasets.base import Source, open_source

ROOT = Path("data/raw/own")
DICOM = b"\0" * 128 + b"DICM" + b"\0" * 200


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def source(adapter: str, options: Mapping[str, Any], root: Path = ROOT, **changes: Any) -> Source:
    params = layouts.settings(adapter, options, **changes)
    return open_source(params.dataset["own"], root, params.prepare, params.seed)


def folder_files(classes: str = "ab") -> Files:
    files = {f"{c}/{i}.jpg": picture(i + 10 * ord(c)) for c in classes for i in range(4)}
    rows = [f"{path},{path[0]}{i // 2}" for i, path in enumerate(files)]
    return files | {"groups.csv": "\n".join(["path,group", *rows]).encode()}


def part_files(part: str) -> Files:
    files: Files = getattr(layouts, f"{part}_files")()
    if part == "private":
        rows = [f"{path},{path.split('/')[1]}" for path in files]
        files["groups.csv"] = "\n".join(["path,group", *rows]).encode()
    if part == "polypsset":
        rows = [f"{i},s{i % 5}" for i in range(20)]
        files["sequences.csv"] = "\n".join(["frame,sequence", *rows]).encode()
    return layouts.within(part, files)


# reader: adapter, files, what of their names is written with an accent instead, options
COLON = {
    **dict.fromkeys(("adénomatous", "adénoma", "adenomatous", "adenoma"), "a"),
    **dict.fromkeys(("low-grade adénoma", "low-grade adenoma"), "a"),
    **dict.fromkeys(("hyperplastic", "hyperplasic", "hyperplastic polyp"), "h"),
    "serrated": "s",
    "negative": "n",
}
READERS: dict[str, tuple[str, Callable[[], Files], Mapping[str, str], Mapping[str, Any]]] = {
    "folder": ("folder", folder_files, {"a/": "ä/"}, {}),
    "isic2018": ("isic2018", layouts.isic2018_files, {"ISIC_": "Ísic_"}, {}),
    "isic2019": ("isic2019", layouts.isic2019_files, {"ISIC_0": "Ísic_0"}, {}),
    "chestxray14": ("chestxray14", layouts.chest_files, {"_000.png": "_é.png"}, {}),
    "polypsset": (
        "colonoscopy",
        lambda: part_files("polypsset"),
        {
            "2019/Image/1": "2019/Image/é",
            "2019/Annotation/1": "2019/Annotation/é",
            "\n1": "\né",
            "ade": "adé",
        },
        {"parts": ["polypsset"], "classes": COLON},
    ),
    "sun": (
        "colonoscopy",
        lambda: part_files("sun"),
        {"adenoma": "adénoma", "/a": "/á"},
        {"parts": ["sun"], "classes": COLON},
    ),
    "mesejo": (
        "colonoscopy",
        lambda: part_files("mesejo"),
        {"/WL/": "/Wéiß/"},
        {"parts": ["mesejo"], "classes": COLON},
    ),
    "private": (
        "colonoscopy",
        lambda: part_files("private"),
        {"adenoma": "adénoma", "video": "vidéo"},
        {"parts": ["private"], "classes": COLON},
    ),
}


@pytest.mark.parametrize("tables", ["NFC", "NFD"])
@pytest.mark.parametrize("names", ["NFC", "NFD"])
@pytest.mark.parametrize("reader", READERS)
def test_names_of_files_and_in_tables_may_have_either_form(reader: str, names: Any, tables: Any) -> None:
    adapter, files, accents, options = READERS[reader]

    def accented(text: str, form: Any) -> str:
        for plain, accent in accents.items():
            text = text.replace(plain, accent)
        return unicodedata.normalize(form, text)

    def in_forms(names: Any, tables: Any) -> Files:
        return {
            accented(path, names): accented(data.decode(), tables).encode()
            if path.endswith((".csv", ".txt", ".xml"))
            else data
            for path, data in files().items()
        }

    right = source(adapter, options, lay_out(Path("right"), in_forms("NFC", "NFC")))
    found = source(adapter, options, lay_out(ROOT, in_forms(names, tables)))
    assert [(i.id, i.label, i.split, i.group) for i in found.items] == [
        (i.id, i.label, i.split, i.group) for i in right.items
    ]
    assert found.classes == right.classes
    assert any(not i.id.isascii() or not i.group.isascii() or not i.label.isascii() for i in found.items) or (
        reader == "sun"
    )
    assert all(unicodedata.is_normalized("NFC", i.id + i.label + i.group) for i in found.items)
    assert all(found.load(item).pixels.shape == (18, 24, 3) for item in found.items[:3])


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_names_in_an_archive_may_have_either_form(suffix: str) -> None:
    files = {
        unicodedata.normalize("NFD" if path.endswith(".jpg") else "NFC", path.replace("ISIC_0", "Ísic_0")): (
            data if path.endswith(".jpg") else data.decode().replace("ISIC_0", "Ísic_0").encode()
        )
        for path, data in layouts.isic2019_files().items()
    }
    found = source("isic2019", {}, lay_out(ROOT, files, {f"ISIC_2019_Training_Input{suffix}": "ISIC_2019_T"}))
    assert len(found.items) == 120


def test_a_name_in_both_forms_is_two_files_of_one_id() -> None:
    lay_out(ROOT, folder_files())
    for form in ("NFC", "NFD"):
        (ROOT / "a" / unicodedata.normalize(form, "ä.jpg")).write_bytes(picture(1))
    (ROOT / "groups.csv").unlink()
    with pytest.raises(VapError, match="the id 'a__ä' twice"):
        source("folder", {})


# ── links to nothing ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("reader", READERS)
def test_links_to_nothing_beside_the_images_stop_no_reader(
    reader: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, files, _, options = READERS[reader]
    lay_out(ROOT, files())
    right = source(adapter, options).items
    home = next(iter(sorted(ROOT.rglob("*.[jp][pn]g")))).parent
    for place in (ROOT, home):
        (place / ".#lock").symlink_to("me@host.1234")  # as Emacs leaves it
        (place / "later").symlink_to("/nowhere/at/all")
        (place / "notes.md").symlink_to("gone.md")
    assert source(adapter, options).items == right
    assert "passed over, as links to nothing: " in capsys.readouterr().err


@pytest.mark.parametrize("reader", READERS)
def test_an_image_that_is_a_link_to_nothing_is_told_or_left_out(reader: str) -> None:
    adapter, files, _, options = READERS[reader]
    lay_out(ROOT, files())
    items = [item for item in source(adapter, options).items if item.split == "train"]
    labels = [item.label for item in items]
    item = next(item for item in items if labels.count(item.label) > 1)
    assert isinstance(item.source, Path)
    item.source.unlink()
    item.source.symlink_to("/nowhere/x.jpg")
    params = layouts.settings(adapter, options)
    with pytest.raises(images.UnreadableImage, match="found a broken link"):
        prepare.run(params, "own")
    prepare.run(layouts.settings(adapter, options, on_error="skip"), "own")
    file = ArrowFile(Path("data/prepared/own.arrow"), "prepared")
    assert item.id not in file.column("id")
    assert len(file) > 6


@pytest.mark.parametrize(
    ("reader", "table"),
    [
        ("folder", "groups.csv"),
        ("isic2018", "ISIC2018_Task3_Training_LesionGroupings.csv"),
        ("isic2019", "ISIC_2019_Training_Metadata.csv"),
        ("chestxray14", "Data_Entry_2017_v2020.csv"),
        ("chestxray14", "test_list.txt"),
        ("polypsset", "polypsset/sequences.csv"),
        ("sun", "sun/pathology.csv"),
        ("private", "private/groups.csv"),
    ],
)
def test_a_table_that_is_a_link_to_nothing_is_not_taken_for_none(reader: str, table: str) -> None:
    adapter, files, _, options = READERS[reader]
    lay_out(ROOT, files())
    (ROOT / table).unlink()
    (ROOT / table).symlink_to("gone")
    with pytest.raises(VapError, match=f"{Path(table).name}: found a broken link"):
        source(adapter, options)


def test_an_archive_that_is_a_link_to_nothing() -> None:
    lay_out(ROOT, layouts.isic2019_files())
    (ROOT / "more.zip").symlink_to("gone.zip")
    with pytest.raises(VapError, match=r"more\.zip: found a broken link; expected an archive"):
        source("isic2019", {})


@pytest.mark.parametrize(
    ("reader", "home"),
    [("isic2018", "ISIC2018_Task3_Test_Input"), ("isic2019", "ISIC_2019_Training_Input")],
)
def test_a_folder_of_images_that_is_a_link_to_nothing(
    reader: str, home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, files, _, options = READERS[reader]
    lay_out(ROOT, files())
    (ROOT / home).rename("elsewhere")
    (ROOT / home).symlink_to("/nowhere")
    with pytest.raises(VapError, match=f"{home}: found no images"):
        source(adapter, options)
    assert f"passed over, as links to nothing: 1, the first {home}" in capsys.readouterr().err


# ── suffixes and content ────────────────────────────────────────────────────────────────────────────


def test_content_decides_where_the_suffix_says_nothing_or_something_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {f"{c}/{i}.jpg": picture(i + 10 * ord(c)) for c in "ab" for i in range(3)}
    kinds = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
    files |= {f"a/wrong{i}.jpg": picture(i, kind) for i, kind in enumerate(kinds)}
    files |= {f"a/none{i}": picture(i, kind) for i, kind in enumerate(kinds)}
    files |= {f"b/1.2.840.{i}": picture(i) for i in range(2)}
    files |= {"b/x.img": picture(7, "PNG"), "b/y.img": picture(8, "PNG"), "b/z.bak": picture(9)}
    files |= {"b/BMP-notes": b"BM of January", "b/text": b"II. Methods", "b/short": b"\xff", "b/empty": b""}
    lay_out(ROOT, files)
    found = source("folder", {})
    names = {item.id for item in found.items}
    assert names >= {"a__wrong0", "a__none5", "b__1.2.840.0", "b__1.2.840.1"}
    assert len(names) == 6 + 6 + 6 + 2
    assert all(found.load(item).pixels.shape == (18, 24, 3) for item in found.items)
    assert (
        "passed over, as no images by their suffix: 4 no suffix, "
        "2 .img (PNG by content: rename to read them), 1 .bak (JPEG by content: rename to read them)"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("adapter", ["folder", "colonoscopy"])
def test_dicom_is_told_with_what_to_do(adapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{c}/{i}.jpg": picture(i + 10 * ord(c)) for c in "ab" for i in range(4)}
    files |= {f"a/IM{i:06d}": DICOM for i in range(3)} | {"b/x.dcm": DICOM, "b/cut.dcm": DICOM[:100]}
    part = "" if adapter == "folder" else "private/"
    lay_out(ROOT, {f"{part}{path}": data for path, data in files.items()})
    options = {} if adapter == "folder" else {"parts": ["private"], "classes": {"a": "a", "b": "b"}}
    assert len(source(adapter, options).items) == 8
    told = capsys.readouterr().err
    assert "passed over, as DICOM by content: 4, the first a/IM000000; convert it" in told
    assert "passed over, as no images by their suffix: 1 .dcm" in told


def test_dicom_named_as_an_image_is_told_too() -> None:
    lay_out(ROOT, {f"{c}/{i}.png": DICOM for c in "ab" for i in range(4)})
    with pytest.raises(VapError, match=r"\d\.png: found no image that Pillow can read, DICOM by its content"):
        prepare.run(layouts.settings("folder"), "own")


def test_images_of_another_suffix_than_the_challenges_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    files = layouts.isic2018_files()
    files |= {
        f"ISIC2018_Task3_Training_Input/ISIC_{i:07d}_superpixels.png": picture(i, "PNG") for i in range(3)
    }
    lay_out(ROOT, files)
    assert len(source("isic2018", {}).items) == 21
    assert "passed over, since the challenge's images are .jpg: 3 .png" in capsys.readouterr().err


def test_many_suffixes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{c}/{i}.jpg": picture(i + 10 * ord(c)) for c in "ab" for i in range(3)}
    lay_out(ROOT, files | {f"a/x.s{i:03d}": b"" for i in range(100)} | {"a/y.s050": b""})
    source("folder", {})
    told = capsys.readouterr().err
    assert "suffix: 2 .s050, 1 .s000," in told
    assert "1 .s010, 88 of 88 other suffixes\n" in told


# ── names that steer ────────────────────────────────────────────────────────────────────────────────


def test_no_name_steers_the_terminal_of_prepare() -> None:
    nasty = "mole\x1b[31m\x07\u202e[bold]"
    files = {f"{nasty}/deep{i % 2}/{i}.jpg": picture(i) for i in range(4)}
    files |= {f"b/{i}.jpg": picture(9 + i) for i in range(4)}
    files |= {f"b/x.\x1b[2J{i}": b"junk" for i in range(2)} | {f"b/\x1b]0;i\x07{i}": DICOM for i in range(2)}
    lay_out(ROOT, files)
    (ROOT / "b/\x1bgone").symlink_to("nowhere")
    settings = layouts.settings("folder", max_test=1, on_error="skip")
    Path("params.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    (ROOT / nasty / "deep0/0.jpg").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["prepare", "own"])
    assert result.exit_code == 0, result.output
    assert "all folders in it are the one class" in result.stderr
    assert "unreadable images left out" in result.stderr
    assert "DICOM by content: 2" in result.stderr
    assert "links to nothing: 1" in result.stderr
    assert not {"\x1b", "\x07", "\u202e"} & set(result.stderr)
    assert "mole\ufffd[31m" in result.stderr


def test_the_pixels_do_not_depend_on_the_suffix() -> None:
    (Path("x.jpg")).write_bytes(picture(3, "PNG"))
    (Path("x")).write_bytes(picture(3, "PNG"))
    assert np.array_equal(images.read(Path("x.jpg"))[0], images.read(Path("x"))[0])
