"""ISIC 2018 task 3, in the official layout and the official split.

    ISIC2018_Task3_{Training,Validation,Test}_Input/ISIC_*.jpg
    ISIC2018_Task3_{Training,Validation,Test}_GroundTruth/<the same name>.csv   one-hot
    ISIC2018_Task3_Training_LesionGroupings.csv                                 image to lesion

Source: https://challenge.isic-archive.com/data/#2018 (CC BY-NC 4.0).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from vap.datasets.base import (
    Item,
    RawImage,
    Split,
    checked,
    load_file,
    plain_id,
    read_table,
    require_folder,
)
from vap.errors import VapError

CLASSES = ["MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
OFFICIAL: dict[Split, str] = {"train": "Training", "val": "Validation", "test": "Test"}
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings.csv"
SITE = "https://challenge.isic-archive.com/data/#2018"
ARCHIVES = "ISIC2018_Task3_{Training,Test}_{Input,GroundTruth}.zip"
SUFFIXES = (".jpg", ".jpeg")


class Isic2018Source:
    """ISIC 2018 task 3; the validation set is left out where its images are not there.

    Raises:
        VapError: a folder, table, image or label is absent, wrong or double.
    """

    modality: str | None = None

    def __init__(self, root: Path) -> None:
        require_folder(root, f"fetch {ARCHIVES} and {GROUPINGS} from {SITE} and unpack them there")
        splits = [split for split in OFFICIAL if _has_images(root, split)]
        lesions = _lesions(root / GROUPINGS)
        items = [item for split in splits for item in _items(split, root, lesions)]
        self.classes = list(CLASSES)
        self.inputs = {"groups": root / GROUPINGS} | {f"{s} labels": _table(root, s) for s in splits}
        self.items = checked(root, items, self.classes)

    def load(self, item: Item) -> RawImage:
        """Read one image at its full size (officially 450 x 600).

        Raises:
            UnreadableImage: the file is no whole image.
        """
        return load_file(item)


def _folder(root: Path, split: Split) -> Path:
    return root / f"ISIC2018_Task3_{OFFICIAL[split]}_Input"


def _table(root: Path, split: Split) -> Path:
    name = f"ISIC2018_Task3_{OFFICIAL[split]}_GroundTruth"
    return root / name / f"{name}.csv"


def _has_images(root: Path, split: Split) -> bool:
    """Whether the split's images are there; only the validation set may be absent."""
    folder = _folder(root, split)
    if folder.is_dir():
        return True
    if split != "val":
        fix = f"fetch {folder.name}.zip from {SITE} and unpack it in {root}"
        raise VapError(folder, "no folder", f"the {OFFICIAL[split].lower()} images", fix)
    print(f"{root}: no {folder.name}: the validation set is left out", file=sys.stderr)
    return False


def _lesions(path: Path) -> dict[str, str]:
    """Training image to lesion."""
    fix = f"fetch it from {SITE}"
    lesions: dict[str, str] = {}
    for where, row in read_table(path, ["image", "lesion_id"], fix):
        image, lesion = plain_id(where, row["image"]), row["lesion_id"] or row["image"]
        if lesions.setdefault(image, lesion) != lesion:
            found = f"a second lesion of {image}"
            raise VapError(where, found, "one lesion for every image", "remove one row")
    return lesions


def _images(folder: Path) -> dict[str, Path]:
    """Image id to file."""
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            if file.stem in files:
                found = f"{files[file.stem].name} and {file.name}"
                raise VapError(folder, found, "one file for every id", "remove one of them")
            files[file.stem] = file
    return files


def _items(split: Split, root: Path, lesions: Mapping[str, str]) -> list[Item]:
    folder, table = _folder(root, split), _table(root, split)
    files = _images(folder)
    fix = f"fetch {table.stem}.zip from {SITE} and unpack it in {root}"
    items: list[Item] = []
    absent: list[tuple[str, str]] = []
    seen: set[str] = set()
    for where, row in read_table(table, ["image", *CLASSES], fix):
        image = plain_id(where, row["image"])
        if image in seen:
            raise VapError(where, f"a second row of {image}", "one row an image", "remove one row")
        seen.add(image)
        label = _label(where, image, row)
        group = lesions.get(image) if split == "train" else image
        if group is None:
            fix = f"fetch it from {SITE}"
            raise VapError(root / GROUPINGS, f"no row of {image}", "its lesion", fix)
        if image in files:
            items.append(Item(image, label, split, group, files[image]))
        else:
            absent.append((where, image))
    if absent:
        where, image = absent[0]
        found = f"no image {folder.name}/{image}.jpg"
        if len(absent) > 1:
            found += f" (nor {len(absent) - 1} more of {len(seen)})"
        fix = f"fetch {folder.name}.zip from {SITE} and unpack it again"
        raise VapError(where, found, "an image for every row", fix)
    if extra := len(files) - len(items):
        print(f"{folder}: {extra} images without a row are left out", file=sys.stderr)
    return items


def _label(where: str, image: str, row: Mapping[str, str]) -> str:
    """The one class whose column is 1."""
    labels: list[str] = []
    for name in CLASSES:
        try:
            value = float(row[name])
        except ValueError:
            value = -1.0
        if value not in (0.0, 1.0):
            raise VapError(where, f"{name} = {row[name]!r} of {image}", "0 or 1", "correct the row")
        if value:
            labels.append(name)
    if len(labels) != 1:
        found = f"{' and '.join(labels) or 'no label'} of {image}"
        raise VapError(where, found, "exactly one label", "correct the row")
    return labels[0]
