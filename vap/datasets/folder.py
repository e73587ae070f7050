"""A user's own dataset: one folder a class, any image files in it.

CLASS/**/*.png|jpg|tif|bmp|gif|webp|…     split by seed, or
{train,test[,val]}/CLASS/**/*...          the split is given; also Training, Testing, valid, …
groups.csv (path,group)                   optional: lesion, patient or video
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vap.common.errors import VapError, tell
from vap.common.markup import composed
from vap.datasets.base import SPLITS, FileSource, Item, LeftOut, Split, checked, require_folder
from vap.datasets.kinds import LEFT, Passed, is_left_behind, stem_of
from vap.datasets.split import split
from vap.datasets.tables import read_table

ALIASES: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
}
LAYOUT = "CLASS/*.png (or .jpg, .tif, .bmp ...), or {train,test}/CLASS/*.png"


class FolderSource(FileSource):
    """The images of `root`; the classes are the folders' names, sorted.

    An id is the path in `root` without an image's suffix, "/" written "__". What desktops and file servers
    leave behind is passed over, and so are files that are no images (vap.datasets.kinds.why_not); all are
    counted and told.
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
        passed = Passed(root)
        given = _given_split(root)
        if not given and len(only := _folders(root)) == 1 and (given := _given_split(only[0])):
            tell(f"{root}: the dataset is taken from {only[0].name}/, the only folder there")
        homes = given or {"train": root}  # "train" is provisional where none is given
        classes: set[str] = set()
        items: list[Item] = []
        for name, home in homes.items():
            for folder in _folders(home):
                label = composed(folder.name)
                if label.lower() in ALIASES:
                    found = "a class of this name, which is a split's"
                    raise VapError(folder, found, "classes, or only splits", f"lay it out as {LAYOUT}")
                classes.add(label)
                files = list(_images(folder, passed))
                nested = all(file.parent != folder for file in files)
                if nested and len({file.relative_to(folder).parts[0] for file in files}) > 1:
                    tell(f"{folder}: all folders in it are the one class {label!r}")
                for file in files:
                    identity = composed(stem_of("__".join(file.relative_to(root).parts)))
                    items.append(Item(identity, label, name, identity, file))
        loose = _loose((root, *homes.values()), passed)
        passed.tell()
        if not items:
            found = f"{loose} images outside a class's folder" if loose else "no image"
            raise VapError(root, found, LAYOUT, "put the images in a folder for each class")
        if loose:
            tell(f"{root}: {loose} images outside a class's folder are ignored")
        self.classes = sorted(classes)
        self.left_out = LeftOut(skip=False)
        self.inputs: dict[str, Path] = {}
        table = root / "groups.csv"
        if table.exists() or table.is_symlink():  # a broken link is told
            self.inputs["groups"] = table
            items = _grouped(items, root, table)
        checked(root, items, self.classes)
        if given:
            _require_apart(items, table)
        else:
            items = split(items, test_fraction, seed)
        self.items = checked(root, items, self.classes)


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


def _images(folder: Path, passed: Passed, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All image files below `folder`, sorted; a link to a folder above it is not followed.

    Args:
        passed: counts the others.
    """
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if is_left_behind(entry.name):
            passed.add(LEFT, entry)
        elif entry.is_dir():
            yield from _images(entry, passed, (*above, real))
        elif passed.takes(entry):
            yield entry


def _loose(homes: Iterable[Path], passed: Passed) -> int:
    """How many images lie in the folders above the classes; `passed` counts what else lies there."""
    loose = 0
    for entry in {entry for home in homes for entry in home.iterdir()}:
        if is_left_behind(entry.name):
            passed.add(LEFT, entry)
        elif not entry.is_dir() and entry.name != "groups.csv":
            loose += passed.takes(entry)
    return loose


def _grouped(items: list[Item], root: Path, table: Path) -> list[Item]:
    """The items with the groups that `table` names."""
    files = [(item.source, item) for item in items if isinstance(item.source, Path)]
    paths = {composed(file.relative_to(root).as_posix()): item for file, item in files}
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
