"""NIH ChestX-ray14: the single-label images (paper §3), in the official layout and split.

    images_001.tar.gz ... images_012.tar.gz      or folders with the PNGs, at any depth
    Data_Entry_2017_v2020.csv                    (or Data_Entry_2017.csv) labels and patients
    train_val_list.txt, test_list.txt            the official split, by patient

Source: https://nihcc.app.box.com/v/ChestXray-NIHCC (free to use, with citation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vap.common.errors import VapError, tell
from vap.datasets import isic
from vap.datasets.archives import Source, Tree, file_of
from vap.datasets.base import FileSource, Item, LeftOut, Split, checked, require_folder
from vap.datasets.official import OfficialFile
from vap.datasets.split import split
from vap.datasets.tables import plain_id, read_list, read_table
from vap.params import ChestXray14Params

CLASSES = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
]
NO_FINDING = "No Finding"
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
SITE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
LICENCE = "free, with citation"

# single-label images, of Data_Entry_2017_v2020.csv and the official lists
COUNTS = {
    "train": dict(
        zip(
            CLASSES,
            (3414, 777, 2788, 7327, 1696, 2248, 234, 1241, 829, 397, 587, 551, 817, 65),
            strict=True,
        )
    )
    | {NO_FINDING: 50500},
    "test": dict(
        zip(
            CLASSES,
            (801, 316, 1167, 2220, 443, 457, 88, 953, 481, 231, 305, 176, 309, 45),
            strict=True,
        )
    )
    | {NO_FINDING: 9861},
}


def files(settings: ChestXray14Params) -> list[OfficialFile]:
    """What the settings need; the images may lie in folders of any name."""
    v2020, official = settings.table == "v2020", settings.split == "official"
    return [
        OfficialFile("Data_Entry_2017_v2020.csv", "labels, as corrected in 2020", SITE, LICENCE, v2020),
        OfficialFile("Data_Entry_2017.csv", "labels of 2017", SITE, LICENCE, not v2020),
        OfficialFile("train_val_list.txt", "the official training images", SITE, LICENCE, official),
        OfficialFile("test_list.txt", "the official test images", SITE, LICENCE, official),
        *(OfficialFile(f"images_{n:03d}", "images", SITE, LICENCE, needed=False) for n in range(1, 13)),
    ]


class ChestXray14Source(FileSource):
    """The images of one finding; with include_no_finding those of none too.

    Raises:
        VapError: a table, list, image or label is absent, wrong or double, or a patient on both sides.
    """

    def __init__(
        self, root: Path, settings: ChestXray14Params, test_fraction: float, seed: int, skip: bool = False
    ) -> None:
        require_folder(root, f"fetch images_001 ... images_012.tar.gz, the table and lists from {SITE}")
        self.left_out = LeftOut(skip)
        table = _table(root, settings.table)
        rows = _rows(table, settings.include_no_finding, self.left_out)
        self.classes = [*CLASSES, *([NO_FINDING] if settings.include_no_finding else [])]
        self.inputs = {"labels": file_of(table)}
        side: dict[str, str] = {}
        if settings.split == "official":
            for name, file in LISTS.items():
                self.inputs[f"{name} list"] = root / file
                for image, where in read_list(root / file, f"fetch it from {SITE}").items():
                    if side.setdefault(image, name) != name:
                        fix = "fetch both lists again"
                        raise VapError(where, f"{image} in both lists", "each image in one", fix)
            rows = _listed(table, rows, side, self.left_out)
        # only these are unpacked of the archives
        tree = Tree(root, self.left_out.member, frozenset(rows))
        tree.tell_passed()
        items = _items(root, rows, _files(tree, self.left_out), self.left_out)
        checked(root, items, self.classes)
        if settings.split == "official":
            sides: tuple[Split, Split] = ("train", "test")
            items = [replace(i, split=sides[side[f"{i.id}.png"] == "test"]) for i in items]
            _require_apart(root, items)
        else:
            items = split(items, test_fraction, seed)
        self.items = checked(root, items, self.classes)


Row = tuple[str, str, str]  # file:line, label, patient


def _table(root: Path, version: str) -> Path:
    path = root / ("Data_Entry_2017_v2020.csv" if version == "v2020" else "Data_Entry_2017.csv")
    if not (path.is_file() or path.is_symlink()) and (other := sorted(root.glob("Data_Entry*.csv"))):
        fix = f"fetch it from {SITE}, or set dataset.NAME.table to the version that is there"
        raise VapError(path, f"no such file, but {other[0].name}", "the table of labels", fix)
    return path


def _rows(table: Path, include_no_finding: bool, left_out: LeftOut) -> dict[str, Row]:
    """Image to its row, of the images with a single label."""
    known = {*CLASSES, NO_FINDING}
    rows: dict[str, Row] = {}
    several = seen = 0
    images: set[str] = set()
    columns = ["Image Index", "Finding Labels", "Patient ID"]
    for where, row in read_table(table, columns, f"fetch it from {SITE}"):
        seen += 1
        try:
            image = plain_id(where, row["Image Index"])
            if image in images:
                raise VapError(where, f"a second row of {image}", "one row an image", "remove one row")
            images.add(image)
            labels = set(row["Finding Labels"].split("|"))
            if not labels <= known:
                found = f"the label {min(labels - known)!r} of {image}"
                raise VapError(where, found, f"labels among {', '.join(CLASSES)}", "correct the row")
            if NO_FINDING in labels and len(labels) > 1:
                found = f"{NO_FINDING} beside a finding of {image}"
                raise VapError(where, found, "one or the other", "correct the row")
            if not row["Patient ID"]:
                raise VapError(where, f"no patient of {image}", "its number", "complete the row")
        except VapError as error:
            left_out.add("rows without a label or patient that can be used", error)
            continue
        several += len(labels) > 1
        label = labels.pop()
        if not labels and (include_no_finding or label != NO_FINDING):
            rows[image] = (where, label, row["Patient ID"])
    tell(
        f"{table}: {len(rows)} of {seen} images have a single label; {several} have several and are left out"
    )
    return rows


def _listed(
    table: Path, rows: Mapping[str, Row], side: Mapping[str, str], left_out: LeftOut
) -> dict[str, Row]:
    """The rows of the official lists' images."""
    unlisted = [image for image in rows if image not in side]
    if len(unlisted) == len(rows):
        found = f"none of its {len(rows)} images in {' or '.join(LISTS.values())}"
        raise VapError(table, found, "the official lists of these images", f"fetch them from {SITE}")
    if unlisted:
        found = f"{unlisted[0]} in neither list (nor {len(unlisted) - 1} more)"
        fix = f"fetch the lists from {SITE} again, or set dataset.NAME.split: patient"
        error = VapError(rows[unlisted[0]][0], found, "every image in one list", fix)
        left_out.add("images in neither list", error, len(unlisted))
    return {image: row for image, row in rows.items() if image in side}


def _files(tree: Tree, left_out: LeftOut) -> dict[str, Source]:
    """File name to file."""
    files: dict[str, Source] = {}
    for path, file in tree.images().items():
        name = PurePosixPath(path).name
        if name in files:
            error = VapError(file, f"a second file of that name ({files[name]})", "one", "remove one")
            left_out.add("second files of an id", error)
            continue
        files[name] = file
    return files


def _items(root: Path, rows: Mapping[str, Row], files: Mapping[str, Source], left_out: LeftOut) -> list[Item]:
    """All as "train", which is provisional."""
    items: list[Item] = []
    absent: list[tuple[str, str]] = []
    for image, (where, label, patient) in rows.items():
        if image in files:
            name = image.removesuffix(".png")
            items.append(Item(name, label, "train", f"patient-{patient}", files[image]))
        else:
            absent.append((where, image))
    isic.tell_absent(absent, len(rows), f"fetch its archive from {SITE} into {root}", left_out)
    return items


def _require_apart(root: Path, items: list[Item]) -> None:
    """Raise VapError unless every patient is on one side."""
    sides: dict[str, str] = {}
    for item in items:
        if sides.setdefault(item.group, item.split) != item.split:
            found = f"{item.group} in both lists ({item.id})"
            raise VapError(root, found, "each patient in one list", "fetch the official lists again")
