"""ISIC 2018 task 3, in the official layout and the official split.

    ISIC2018_Task3_{Training,Validation,Test}_Input/ISIC_*.jpg
    ISIC2018_Task3_{Training,Validation,Test}_GroundTruth/<the same name>.csv   one-hot
    ISIC2018_Task3_Training_LesionGroupings.csv                                 image to lesion

Each may stay in its zip archive. Source: https://challenge.isic-archive.com/data/#2018 (CC BY-NC 4.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vap.common.errors import VapError, tell
from vap.datasets import isic
from vap.datasets.archives import Source, Tree, file_of
from vap.datasets.base import FileSource, Item, LeftOut, Split, checked, require_folder
from vap.datasets.official import OfficialFile
from vap.datasets.tables import plain_id, read_table

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
OFFICIAL: dict[Split, str] = {"train": "Training", "val": "Validation", "test": "Test"}
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
SITE = "https://challenge.isic-archive.com/data/#2018"
ARCHIVES = "ISIC2018_Task3_{Training,Test}_{Input,GroundTruth}.zip"

COUNTS: dict[str, dict[str, int]] = {  # images; those of the validation set are 193 in all
    "train": dict(zip(CLASSES, (1113, 6705, 514, 327, 1099, 115, 142), strict=True)),
    "test": dict(zip(CLASSES, (171, 909, 93, 43, 217, 44, 35), strict=True)),
}
FILES = [
    *(
        OfficialFile(
            f"ISIC2018_Task3_{part}_{kind}",
            f"{part.lower()} {what}",
            SITE,
            isic.LICENCE,
            needed=part != "Validation",
        )
        for part in OFFICIAL.values()
        for kind, what in (("Input", "images"), ("GroundTruth", "labels"))
    ),
    OfficialFile(GROUPINGS, "lesion of each training image", SITE, isic.LICENCE),
]


class Isic2018Source(FileSource):
    """ISIC 2018 task 3; the validation set is left out where its images are not there.

    Raises:
        VapError: a folder, table, image or label is absent, wrong or double.
    """

    def __init__(self, root: Path, skip: bool = False) -> None:
        require_folder(root, f"fetch {ARCHIVES} and {GROUPINGS} from {SITE} and put them there")
        self.left_out = LeftOut(skip)
        tree = Tree(root, self.left_out.member)
        tree.tell_passed()
        files = {split: isic.image_files(tree, _folder(split), self.left_out) for split in OFFICIAL}
        _require_images(root, files)
        groups = tree.table(GROUPINGS)
        lesions = _lesions(groups, self.left_out)
        self.classes = list(CLASSES)
        self.inputs = {"groups": file_of(groups)}
        items: list[Item] = []
        for split, found in files.items():
            if found:
                table = tree.table(f"ISIC2018_Task3_{OFFICIAL[split]}_GroundTruth.csv")
                items += _items(split, table, found, lesions, self.left_out)
                self.inputs[f"{split} labels"] = file_of(table)
        self.items = checked(root, items, self.classes)


def _folder(split: Split) -> str:
    return f"ISIC2018_Task3_{OFFICIAL[split]}_Input"


def _require_images(root: Path, files: Mapping[Split, Mapping[str, Source]]) -> None:
    """Only the validation set may be absent."""
    for split, found in files.items():
        folder = _folder(split)
        if found:
            continue
        if split == "val":
            tell(f"{root}: no {folder}: the validation set is left out")
            continue
        fix = f"fetch {folder}.zip from {SITE} and put it in {root}"
        expected = f"the {OFFICIAL[split].lower()} images"
        raise VapError(root / folder, "no images, nor an archive of them", expected, fix)


def _lesions(path: Source, left_out: LeftOut) -> dict[str, str]:
    """Training image to lesion."""
    fix = f"fetch it from {SITE}"
    lesions: dict[str, str] = {}
    for where, row in read_table(path, ["image", "lesion_id"], fix):
        try:
            image, lesion = plain_id(where, row["image"]), row["lesion_id"] or row["image"]
            if lesions.setdefault(image, lesion) != lesion:
                found = f"a second lesion of {image}"
                raise VapError(where, found, "one lesion for every image", "remove one row")
        except VapError as error:
            left_out.add("rows of lesions", error)
    return lesions


def _items(
    split: Split,
    table: Source,
    files: Mapping[str, Source],
    lesions: Mapping[str, str],
    left_out: LeftOut,
) -> list[Item]:
    folder = _folder(split)
    fix = f"fetch {folder.replace('Input', 'GroundTruth')}.zip from {SITE}"
    items: list[Item] = []
    absent: list[tuple[str, str]] = []
    total = 0
    for where, image, label in isic.labels(table, CLASSES, fix, left_out):
        total += 1
        group = lesions.get(image) if split == "train" else image
        if group is None:
            error = VapError(GROUPINGS, f"no row of {image}", "its lesion", f"fetch it from {SITE}")
            left_out.add("images without a lesion", error)
        elif image in files:
            items.append(Item(image, label, split, group, files[image]))
        else:
            absent.append((where, f"{folder}/{image}.jpg"))
    isic.tell_absent(absent, total, f"fetch {folder}.zip from {SITE} again", left_out)
    if extra := len(files) - len(items):
        tell(f"{folder}: {extra} images without a row are left out")
    return items
