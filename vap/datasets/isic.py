"""What the ISIC challenges share: one-hot tables, and images named by their id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

from vap.common.errors import VapError, tell
from vap.datasets.archives import Source, Tree
from vap.datasets.base import LeftOut
from vap.datasets.tables import plain_id, read_table

SUFFIXES = (".jpg", ".jpeg")
LICENCE = "CC BY-NC 4.0"
DOWNSAMPLED = "_downsampled"  # of ids of images that the challenge made smaller
HAM10000 = range(24306, 34321)  # the numbers of ISIC 2018's training images, all of them in ISIC 2019


def in_isic2018(image: str) -> bool:
    """Whether the image is one of the 10,015 training images of ISIC 2018 task 3."""
    number = image.removeprefix("ISIC_").removesuffix(DOWNSAMPLED)
    return number.isdecimal() and len(number) < 10 and int(number) in HAM10000


def image_files(tree: Tree, folder: str, left_out: LeftOut) -> dict[str, Source]:
    """Image id to file, of the images in `folder`; empty where there is none."""
    files: dict[str, Source] = {}
    others: Counter[str] = Counter()
    for path, file in tree.images(folder).items():
        image = PurePosixPath(path).stem
        if file.suffix.lower() not in SUFFIXES:
            others[file.suffix.lower()] += 1
            continue
        if image in files:
            found = f"{files[image].name} and {file.name}"
            error = VapError(f"{tree.root}/{folder}", found, "one file for every id", "remove one of them")
            left_out.add("second files of an id", error)
            continue
        files[image] = file
    if others:
        kinds = ", ".join(f"{n} {suffix or 'no suffix'}" for suffix, n in others.most_common())
        tell(f"{tree.root}/{folder}: passed over, since the challenge's images are .jpg: {kinds}")
    return files


def labels(
    table: Source, classes: Sequence[str], fix: str, left_out: LeftOut
) -> Iterator[tuple[str, str, str]]:
    """(file:line, image id, label) of a one-hot table's rows."""
    seen: set[str] = set()
    for where, row in read_table(table, ["image", *classes], fix):
        try:
            image = plain_id(where, row["image"])
            if image in seen:
                raise VapError(where, f"a second row of {image}", "one row an image", "remove one row")
            seen.add(image)
            label = _label(where, image, row, classes)
        except VapError as error:
            left_out.add("rows without one image and one label", error)
            continue
        yield where, image, label


def _label(where: str, image: str, row: Mapping[str, str], classes: Sequence[str]) -> str:
    """The one class whose column is 1."""
    found: list[str] = []
    for name in classes:
        try:
            value = float(row[name])
        except ValueError:
            value = -1.0
        if value not in (0.0, 1.0):
            raise VapError(where, f"{name} = {row[name]!r} of {image}", "0 or 1", "correct the row")
        if value:
            found.append(name)
    if len(found) != 1:
        what = f"{' and '.join(found) or 'no label'} of {image}"
        raise VapError(where, what, "exactly one label", "correct the row")
    return found[0]


def tell_absent(absent: Sequence[tuple[str, str]], total: int, fix: str, left_out: LeftOut) -> None:
    """Tell of the rows whose image is not there, as (file:line, file)."""
    if absent:
        where, file = absent[0]
        found = f"no image {file}"
        if len(absent) > 1:
            found += f" (nor {len(absent) - 1} more of {total})"
        error = VapError(where, found, "an image for every row", fix)
        left_out.add("rows without an image", error, len(absent))
