"""A user's own dataset: one folder a class, any image files in it.

CLASS/**/*.png|jpg|jpeg|tif|tiff|bmp|webp|pgm|ppm      split by seed, or
{train,test[,val]}/CLASS/**/*...                       the split is given
groups.csv (path,group)                                optional: lesion, patient or video
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vap.datasets.base import (
    SPLITS,
    FileSource,
    Item,
    LeftOut,
    Split,
    checked,
    require_folder,
)
from vap.datasets.images import SUFFIXES
from vap.datasets.split import split
from vap.datasets.tables import read_table
from vap.errors import VapError

LAYOUT = "CLASS/*.png (or .jpg, .tif, .bmp ...), or {train,test}/CLASS/*.png"


class FolderSource(FileSource):
    """The images of `root`; the classes are the folders' names, sorted.

    An id is the path in `root` without its suffix, "/" written "__". Hidden files and files that
    are no images by their suffix are ignored; links are followed. `groups.csv` names every image's
    group by its path in `root`; without it each image is a group of its own.

    Args:
        test_fraction: set aside where the split is not given.
        seed: of that split.

    Raises:
        VapError: no folder or image, an id twice, a class without training images, a groups.csv
            that does not fit, or a group on two sides of a given split.
    """

    def __init__(self, root: Path, test_fraction: float, seed: int) -> None:
        require_folder(root, f"put the images there as {LAYOUT}")
        given = _given_split(root)
        homes = given or {"train": root}  # "train" is provisional where none is given
        classes: set[str] = set()
        items: list[Item] = []
        loose = 0
        for name, home in homes.items():
            loose += sum(_is_image(entry) for entry in home.iterdir())
            for folder in _folders(home):
                classes.add(folder.name)
                for file in _images(folder):
                    path = file.relative_to(root).with_suffix("")
                    identity = "__".join(path.parts)
                    items.append(Item(identity, folder.name, name, identity, file))
        if not items:
            found = f"{loose} images outside a class's folder" if loose else "no image"
            raise VapError(root, found, LAYOUT, "put the images in a folder for each class")
        if loose:
            print(f"{root}: {loose} images outside a class's folder are ignored", file=sys.stderr)
        self.classes = sorted(classes)
        self.left_out = LeftOut(skip=False)
        self.inputs: dict[str, Path] = {}
        table = root / "groups.csv"
        if table.exists():
            self.inputs["groups"] = table
            items = _grouped(items, root, table)
        checked(root, items, self.classes)
        if given:
            _require_apart(items, table)
        else:
            items = split(items, test_fraction, seed)
        self.items = checked(root, items, self.classes)


def _given_split(root: Path) -> dict[Split, Path]:
    """Split to folder, where the top folders are splits."""
    names = {folder.name for folder in _folders(root)}
    if not names or not ({"train", "test"} <= names or names <= set(SPLITS)):
        return {}
    if odd := sorted(names - set(SPLITS)):
        found = f"{odd[0]}/ beside train/ and test/"
        raise VapError(root, found, "only splits, or only classes", f"lay it out as {LAYOUT}")
    for name in ("train", "test"):
        if name not in names:
            found = f"{' and '.join(f'{n}/' for n in sorted(names))} without {name}/"
            raise VapError(root, found, "train/ and test/", f"lay it out as {LAYOUT}")
    return {name: root / name for name in SPLITS if name in names}


def _folders(folder: Path) -> list[Path]:
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return sorted(entry for entry in entries if entry.is_dir())


def _is_image(path: Path) -> bool:
    """By its name; a broken link counts, to be told when it is read."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in SUFFIXES and not path.is_dir()


def _images(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All image files below `folder`, sorted; a link to a folder above it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if _is_image(entry):
            yield entry
        elif entry.is_dir() and not entry.name.startswith("."):
            yield from _images(entry, (*above, real))


def _grouped(items: list[Item], root: Path, table: Path) -> list[Item]:
    """The items with the groups that `table` names."""
    paths = {i.source.relative_to(root).as_posix(): i for i in items if isinstance(i.source, Path)}
    groups: dict[str, str] = {}
    for where, row in read_table(table, ["path", "group"], "write it, or remove it"):
        path = str(PurePosixPath(row["path"]))
        if path not in paths:
            escapes = path.startswith("/") or ".." in PurePosixPath(path).parts
            found = f"the path {path!r}, " + ("which leaves the dataset" if escapes else "no image")
            expected = f"the path of an image, relative to {root}"
            raise VapError(where, found, expected, "correct or remove the row")
        if not row["group"]:
            raise VapError(where, "no group", "the lesion, patient or video", "complete the row")
        if groups.setdefault(path, row["group"]) != row["group"]:
            raise VapError(where, f"a second group of {path!r}", "one row an image", "remove one")
    if missing := [path for path in paths if path not in groups]:
        found = f"no row of {missing[0]!r}"
        if len(missing) > 1:
            found += f" (nor {len(missing) - 1} more)"
        raise VapError(table, found, "the group of every image", "complete it, or remove it")
    return [replace(item, group=groups[path]) for path, item in paths.items()]


def _require_apart(items: list[Item], table: Path) -> None:
    sides: dict[str, Item] = {}
    for item in items:
        other = sides.setdefault(item.group, item)
        if other.split != item.split:
            found = f"the group {item.group!r} in {other.split}/ and in {item.split}/"
            fix = "move its images to one side, or correct the groups"
            raise VapError(table, found, "every group on one side of the split", fix)
