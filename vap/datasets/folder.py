"""A user's own dataset: one folder a class, any image files in it.

CLASS/**/*.png|jpg|tif|bmp|gif|webp|…     split by seed, or
{train,test[,val]}/CLASS/**/*...          the split is given; also Training, Testing, valid, …
groups.csv (path,group)                   optional: lesion, patient or video
"""

from __future__ import annotations

import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vap.common.errors import VapError
from vap.datasets.base import SPLITS, FileSource, Item, LeftOut, Split, checked, require_folder
from vap.datasets.images import SUFFIXES, is_left_behind
from vap.datasets.split import split
from vap.datasets.tables import read_table

ALIASES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
LEFT = "left behind"  # a reason to pass a file over; the others are suffixes
LAYOUT = "CLASS/*.png (or .jpg, .tif, .bmp ...), or {train,test}/CLASS/*.png"


class FolderSource(FileSource):
    """The images of `root`; the classes are the folders' names, sorted.

    An id is the path in `root` without its suffix, "/" written "__". What desktops and file servers leave
    behind is passed over, and so are files that are no images by their suffix; both are counted and told.
    Links are followed. `groups.csv` names every image's group by its path in `root`; without it each image
    is a group of its own. Where `root` holds nothing but one folder of split folders, that one is taken.
    Names are compared and kept in Unicode's composed form (NFC), whatever form the disk has.

    Args:
        test_fraction: set aside where the split is not given.
        seed: of that split.

    Raises:
        VapError: no folder or image, an id twice, a class without training images, a groups.csv
            that does not fit, or a group on two sides of a given split.
    """

    def __init__(self, root: Path, test_fraction: float, seed: int) -> None:
        require_folder(root, f"put the images there as {LAYOUT}")
        passed: Counter[str] = Counter()
        given = _given_split(root)
        if not given and len(only := _folders(root)) == 1 and (given := _given_split(only[0])):
            print(
                f"{root}: the dataset is taken from {only[0].name}/, the only folder there", file=sys.stderr
            )
        homes = given or {"train": root}  # "train" is provisional where none is given
        classes: set[str] = set()
        items: list[Item] = []
        loose = 0
        for name, home in homes.items():
            loose += sum(_is_image(entry) for entry in home.iterdir())
            for folder in _folders(home):
                label = composed(folder.name)
                if label.lower() in ALIASES:
                    found = "a class of this name, which is a split's"
                    raise VapError(folder, found, "classes, or only splits", f"lay it out as {LAYOUT}")
                classes.add(label)
                nested = not any(_is_image(entry) for entry in folder.iterdir())
                files = list(_images(folder, passed))
                if nested and len({file.relative_to(folder).parts[0] for file in files}) > 1:
                    print(f"{folder}: all folders in it are the one class {label!r}", file=sys.stderr)
                for file in files:
                    path = file.relative_to(root).with_suffix("")
                    identity = composed("__".join(path.parts))
                    items.append(Item(identity, label, name, identity, file))
        _tell(root, homes, passed)
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


def composed(name: str) -> str:
    """A name in Unicode's composed form: macOS writes "ä" as two characters, tables as one."""
    return unicodedata.normalize("NFC", name)


def _given_split(root: Path) -> dict[Split, Path]:
    """Split to folder, where the top folders are splits, in any of their usual names."""
    folders = _folders(root)
    splits: dict[Split, Path] = {}
    for folder in folders:
        if (name := ALIASES.get(folder.name.lower())) is not None:
            if name in splits:
                found = f"{splits[name].name}/ and {folder.name}/"
                raise VapError(root, found, f"one folder for the split {name}", "join or rename them")
            splits[name] = folder
    odd = [folder.name for folder in folders if folder not in splits.values()]
    if not splits or (odd and not {"train", "test"} <= splits.keys()):
        return {}
    if odd:
        found = f"{odd[0]}/ beside {splits['train'].name}/ and {splits['test'].name}/"
        raise VapError(root, found, "only splits, or only classes", f"lay it out as {LAYOUT}")
    for needed in ("train", "test"):
        if needed not in splits:
            found = f"{' and '.join(f'{folder.name}/' for folder in folders)} without {needed}/"
            raise VapError(root, found, "train/ and test/", f"lay it out as {LAYOUT}")
    return {name: splits[name] for name in SPLITS if name in splits}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_left_behind(entry.name))


def _is_image(path: Path) -> bool:
    """By its name; a broken link counts, to be told when it is read."""
    return not is_left_behind(path.name) and path.suffix.lower() in SUFFIXES and not path.is_dir()


def _images(folder: Path, passed: Counter[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All image files below `folder`, sorted; a link to a folder above it is not followed.

    Args:
        passed: counts the other files, by reason.
    """
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if is_left_behind(entry.name):
            passed[LEFT] += 1
        elif _is_image(entry):
            yield entry
        elif entry.is_dir():
            yield from _images(entry, passed, (*above, real))
        else:
            passed[entry.suffix.lower() or "no suffix"] += 1


def _tell(root: Path, homes: dict[Split, Path], passed: Counter[str]) -> None:
    """What was passed over, by reason; also of the folders above the classes."""
    for entry in {entry for home in (root, *homes.values()) for entry in home.iterdir()}:
        if is_left_behind(entry.name):
            passed[LEFT] += 1
        elif not entry.is_dir() and not _is_image(entry) and entry.name != "groups.csv":
            passed[entry.suffix.lower() or "no suffix"] += 1
    left = passed.pop(LEFT, 0)
    if passed:
        counts = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
        kinds = ", ".join(f"{n} {suffix}" for suffix, n in counts)
        print(f"{root}: passed over, as no images by their suffix: {kinds}", file=sys.stderr)
    if left:
        print(f"{root}: passed over, as left by a desktop or file server: {left}", file=sys.stderr)


def _grouped(items: list[Item], root: Path, table: Path) -> list[Item]:
    """The items with the groups that `table` names."""
    files = [(item.source, item) for item in items if isinstance(item.source, Path)]
    paths = {composed(file.relative_to(root).as_posix()): item for file, item in files}
    groups: dict[str, str] = {}
    for where, row in read_table(table, ["path", "group"], "write it, or remove it"):
        path = composed(str(PurePosixPath(row["path"])))
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
