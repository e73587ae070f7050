"""Every adapter on its official layout in miniature: labels, splits, groups, loose and archived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from layouts import SHARED, Files, lay_out

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets import chestxray14, isic2018, isic2019, prepare
from vap.datasets.base import Source, open_source


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


ROOT = Path("data/raw/own")


def source(adapter: str, options: Mapping[str, Any] | None = None, **changes: Any) -> Source:
    params = layouts.settings(adapter, options or {}, **changes)
    return open_source(params.dataset["own"], ROOT, params.prepare, params.seed)


def counts(of: Source, split: str) -> dict[str, int]:
    return dict(Counter(item.label for item in of.items if item.split == split))


COLON: dict[str, Any] = {
    "parts": ["polypsset", "sun", "mesejo", "private"],
    "classes": {
        "adenomatous": "adenoma",
        "adenoma": "adenoma",
        "low-grade adenoma": "adenoma",
        "hyperplastic": "hyperplastic",
        "hyperplasic": "hyperplastic",
        "hyperplastic polyp": "hyperplastic",
        "serrated": "serrated",
        "negative": None,
    },
}


def colon_files() -> Files:
    return (
        layouts.within("polypsset", layouts.polypsset_files())
        | layouts.within("sun", layouts.sun_files())
        | layouts.within("mesejo", layouts.mesejo_files())
        | layouts.within("private", layouts.private_files())
    )


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────

CASES: dict[str, tuple[str, Callable[[], Files], dict[str, Any]]] = {
    "isic2018": ("isic2018", lambda: layouts.isic2018_files(val=7), {}),
    "isic2019": ("isic2019", layouts.isic2019_files, {}),
    "chest official": ("chestxray14", layouts.chest_files, {}),
    "chest by patient": (
        "chestxray14",
        layouts.chest_files,
        {"split": "patient", "include_no_finding": True},
    ),
    "colonoscopy": ("colonoscopy", colon_files, COLON),
    "sun": (
        "colonoscopy",
        lambda: layouts.within("sun", layouts.sun_files()),
        COLON | {"parts": ["sun"]},
    ),
    "mesejo": (
        "colonoscopy",
        lambda: layouts.within("mesejo", layouts.mesejo_files()),
        COLON | {"parts": ["mesejo"]},
    ),
    "private": (
        "colonoscopy",
        lambda: layouts.within("private", layouts.private_files()),
        COLON | {"parts": ["private"]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_lesion_patient_or_video_is_on_one_side(case: str) -> None:
    adapter, files, options = CASES[case]
    lay_out(ROOT, files())
    found = source(adapter, options)
    sides: dict[str, set[str]] = {}
    sizes = Counter(item.group for item in found.items)
    for item in found.items:
        sides.setdefault(item.group, set()).add(item.split)
    assert all(len(side) == 1 for side in sides.values())
    assert max(sizes.values()) > 1, "no group of several images: the test could not fail"
    assert {"train", "test"} <= {item.split for item in found.items}
    assert [i.id for i in found.items] == [i.id for i in source(adapter, options).items]
    assert all(found.load(item).pixels.shape == (18, 24, 3) for item in found.items)


# ── archives ────────────────────────────────────────────────────────────────────────────────────────


def same_images(
    adapter: str, options: Mapping[str, Any], pack: Callable[[Path], object], files: Files
) -> None:
    """The prepared rows are those of the loose files, whatever holds them."""
    params = layouts.settings(adapter, options)
    rows = []
    for folder in ("loose", "packed"):
        ROOT.parent.mkdir(parents=True, exist_ok=True)
        if folder == "loose":
            lay_out(ROOT, files)
        else:
            ROOT.rename("elsewhere")
            pack(ROOT)
        rows.append(list(ArrowFile(prepare.run(params, "own"), "prepared").rows()))
    assert rows[0] == rows[1]
    assert len(rows[0]) > 10
    assert not list(Path("work").rglob("*.bin"))


def test_isic2018_in_its_archives() -> None:
    files = layouts.isic2018_files()
    same_images("isic2018", {}, lambda root: lay_out(root, files, layouts.ISIC2018_ZIPS), files)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz"])
def test_isic2019_in_its_archive(suffix: str) -> None:
    files = layouts.isic2019_files()
    name = f"ISIC_2019_Training_Input.{suffix}"
    pack = {name: "ISIC_2019_Training_Input/"}
    same_images("isic2019", {}, lambda root: lay_out(root, files, pack), files)


def test_chest_in_its_archives() -> None:
    files = layouts.chest_files()
    same_images("chestxray14", {}, lambda root: layouts.chest_archived(root, files), files)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_polypsset_in_its_archive(suffix: str) -> None:
    files = layouts.within("polypsset", layouts.polypsset_files())

    def pack(root: Path) -> None:
        layouts.pack(root / f"polypsset/PolypsSet.{suffix}", layouts.polypsset_files())

    same_images("colonoscopy", {}, pack, files)


def test_an_unpacked_tar_is_not_unpacked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.chest_archived(ROOT, layouts.chest_files())
    first = source("chestxray14")
    monkeypatch.setattr("vap.datasets.archives.tarfile.open", None)
    again = source("chestxray14")
    assert [i.id for i in again.items] == [i.id for i in first.items]
    item = again.items[3]
    assert np.array_equal(again.load(item).pixels, first.load(item).pixels)
    # only single-label images are unpacked: 84 of 168
    assert sum(p.stat().st_size for p in Path("work").rglob("*.bin")) < 0.7 * sum(
        len(d) for p, d in layouts.chest_files().items() if p.startswith("images_")
    )


# ── isic2019 ────────────────────────────────────────────────────────────────────────────────────────


def test_isic2019_by_lesion_and_by_image(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(ROOT, layouts.isic2019_files())
    by_lesion = source("isic2019")
    told = capsys.readouterr().err
    assert "40 of 120 images are training images of ISIC 2018: kept" in told
    assert "a split by image would divide" in told
    assert by_lesion.classes == isic2019.CLASSES
    assert sum(counts(by_lesion, "test").values()) == 24
    alone = [i for i in by_lesion.items if i.group == i.id]
    assert len(alone) == 6  # the two lesions without an id
    by_image = source("isic2019", {"split": "image"})
    divided = int(capsys.readouterr().err.split("split by image divides ")[1].split()[0])
    lesion = {item.id: item.group for item in by_lesion.items}
    sides: dict[str, set[str]] = {}
    for item in by_image.items:
        sides.setdefault(lesion[item.id], set()).add(item.split)
    assert divided == sum(len(side) > 1 for side in sides.values()) > 0
    excluding = source("isic2019", {"exclude_isic2018": True})
    assert len(excluding.items) == 80
    assert not any("ISIC_00243" in item.id for item in excluding.items)


def test_isic2019_downsampled_names_without_their_ending() -> None:
    files = layouts.isic2019_files()
    name = "ISIC_2019_Training_Input/ISIC_0060000"
    files[f"{name}.jpg"] = files.pop(f"{name}_downsampled.jpg")
    lay_out(ROOT, files)
    assert "ISIC_0060000_downsampled" in {item.id for item in source("isic2019").items}


# ── chest ───────────────────────────────────────────────────────────────────────────────────────────


def test_chest_single_labels_and_official_lists() -> None:
    lay_out(ROOT, layouts.chest_files())
    found = source("chestxray14")
    assert counts(found, "train") == dict.fromkeys(chestxray14.CLASSES, 4)
    assert counts(found, "test") == dict.fromkeys(chestxray14.CLASSES, 2)
    assert found.classes == chestxray14.CLASSES
    assert {i.group for i in found.items if i.split == "test"} == {f"patient-{p}" for p in range(29, 43)}
    assert set(found.inputs) == {"labels", "train list", "test list"}
    more = source("chestxray14", {"include_no_finding": True})
    assert counts(more, "train")["No Finding"] == 28
    assert more.classes[-1] == "No Finding"


def test_chest_table_of_2017() -> None:
    files = layouts.chest_files()
    files["Data_Entry_2017.csv"] = files.pop("Data_Entry_2017_v2020.csv")
    lay_out(ROOT, files)
    assert len(source("chestxray14", {"table": "2017"}).items) == 84
    with pytest.raises(VapError, match=r"found no such file, but Data_Entry_2017\.csv"):
        source("chestxray14")


# ── colonoscopy ─────────────────────────────────────────────────────────────────────────────────────


def test_polypsset_flat_training_frames_stay_in_training() -> None:
    lay_out(ROOT, layouts.within("polypsset", layouts.polypsset_files()))
    found = source("colonoscopy")
    flat = [item for item in found.items if "train2019" in item.id]
    assert len(flat) == 20
    assert {item.split for item in flat} == {"train"}
    assert sum(item.split == "test" for item in found.items) == pytest.approx(0.2 * 56, abs=3)
    assert not any(item.id.endswith("__0") and "train2019" not in item.id for item in found.items)
    rows = "\n".join(["frame,sequence", *(f"{i}.jpg,s{i // 4}" for i in range(20))])
    (ROOT / "polypsset/sequences.csv").write_text(rows)
    known = source("colonoscopy")
    assert "polypsset sequences" in known.inputs
    assert len({item.group for item in known.items}) == 12 + 5


def test_mesejo_is_left_out_beside_polypsset(capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(ROOT, colon_files())
    both = source("colonoscopy", COLON)
    assert not any(item.id.startswith("mesejo") for item in both.items)
    assert "48 frames of Mesejo's videos are left out" in capsys.readouterr().err
    assert both.classes == ["adenoma", "hyperplastic"]
    alone = source("colonoscopy", COLON | {"parts": ["mesejo", "sun"]})
    assert sum(item.id.startswith("mesejo") for item in alone.items) == 48
    assert alone.classes == ["adenoma", "hyperplastic", "serrated"]
    lesions = {i.group for i in alone.items if "adenoma_01" in i.id}
    assert lesions == {"mesejo-adenoma_01"}  # white light and narrow band together


def test_a_class_that_is_not_mapped_is_told() -> None:
    lay_out(ROOT, colon_files())
    classes = {name: label for name, label in COLON["classes"].items() if name != "serrated"}
    with pytest.raises(VapError, match=r"dataset\.own\.classes: found no 'serrated', of mesejo"):
        source("colonoscopy", {"parts": ["mesejo"], "classes": classes})


def test_private_groups_by_table() -> None:
    files = layouts.private_files()
    rows = "\n".join(["path,group", *(f"{path},patient {path[-5]}" for path in files)])
    lay_out(ROOT / "private", files | {"groups.csv": rows.encode()})
    found = source("colonoscopy", COLON | {"parts": ["private"]})
    assert {item.group for item in found.items} == {f"private-patient {i}" for i in range(3)}


# ── real data ───────────────────────────────────────────────────────────────────────────────────────


def shared(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} at {SHARED} (VAP_TEST_DATA names another folder)")
    return SHARED / name


def test_the_isic2019_labels_with_the_images_of_isic2018() -> None:
    tables, images = shared("isic2019"), shared("isic2018")
    ROOT.mkdir(parents=True)
    for name in (isic2019.TRUTH, isic2019.METADATA):
        (ROOT / name).symlink_to(tables / name)
    (ROOT / isic2019.FOLDER).symlink_to(images / "ISIC2018_Task3_Training_Input")
    found = source("isic2019", on_error="skip")
    labels = Counter(item.label for item in found.items)
    assert labels.total() == 10_015
    official = isic2018.COUNTS["train"]
    assert {c: labels[c] for c in ("MEL", "NV", "BCC", "BKL", "DF", "VASC")} == {
        c: official[c] for c in ("MEL", "NV", "BCC", "BKL", "DF", "VASC")
    }
    assert (labels["AK"], labels["SCC"]) == (130, 197)
    assert len({item.group for item in found.items}) == 7_470
    assert found.left_out.notes[0].startswith("left out 15316 rows without an image")


def test_the_chest_images_with_the_official_table() -> None:
    root = shared("chestxray14")
    ROOT.mkdir(parents=True)
    (ROOT / "Data_Entry_2017_v2020.csv").symlink_to(root / "Data_Entry_2017_v2020.csv")
    (ROOT / "images_64").symlink_to(root / "images_64")
    options = {"split": "patient", "include_no_finding": True}
    found = source("chestxray14", options, on_error="skip")
    train = {item.group for item in found.items if item.split == "train"}
    test = {item.group for item in found.items if item.split == "test"}
    listed = (root / "Data_Entry_images_64.csv").read_text().splitlines()[1:]
    assert len(listed) == 1_000
    assert len(found.items) == sum("|" not in row for row in listed) == 787
    assert not train & test
    assert len(train | test) > 200
    assert all(found.load(item).pixels.shape == (64, 64, 3) for item in found.items[::20])


def test_the_single_label_counts_of_the_official_table() -> None:
    table = shared("chestxray14") / "Data_Entry_2017_v2020.csv"
    rows = chestxray14._rows(table, True, source_left_out())
    found = Counter(label for _, label, _ in rows.values())
    train, test = chestxray14.COUNTS["train"], chestxray14.COUNTS["test"]
    assert dict(found) == {label: train[label] + test[label] for label in train}
    assert sum(train.values()) - train["No Finding"] == 22_971
    assert sum(test.values()) - test["No Finding"] == 7_992


def source_left_out() -> Any:
    from vap.datasets.base import LeftOut

    return LeftOut(skip=False)


# ── options ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        ("isic2019", {"split": "patient"}, "dataset.own.split: found 'patient'"),
        ("isic2019", {"table": "2017"}, "dataset.own.table: found an option of adapter chestxray14"),
        ("chestxray14", {"include_no_finding": 1}, "dataset.own.include_no_finding: found 1"),
        ("colonoscopy", {"parts": []}, "dataset.own.parts: found []"),
        (
            "colonoscopy",
            {"adapter": "kvasir"},
            "dataset.own.adapter: found 'kvasir'; expected one of 'phantom'",
        ),
        (
            "folder",
            {"split": "lesion"},
            "dataset.own.split: found an option of adapter isic2019 and chestxray14",
        ),
    ],
)
def test_a_wrong_option_is_one_line_with_its_key(adapter: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(VapError) as caught:
        layouts.settings(adapter, options)
    assert message in str(caught.value)
