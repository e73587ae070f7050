"""ISIC 2019, in the official layout, split 8:2 by seed (paper §3).

    ISIC_2019_Training_Input/ISIC_*.jpg       or its zip archive; some ids end in _downsampled
    ISIC_2019_Training_GroundTruth.csv        one-hot
    ISIC_2019_Training_Metadata.csv           image to lesion; 2,084 images have none

Several images show one lesion, so that a split by image, the paper's, leaks; by lesion is the default.
Source: https://challenge.isic-archive.com/data/#2019 (CC BY-NC 4.0).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vap.common.errors import VapError, tell
from vap.datasets import isic
from vap.datasets.archives import Source, Tree, file_of
from vap.datasets.base import FileSource, Item, LeftOut, checked, require_folder
from vap.datasets.official import OfficialFile
from vap.datasets.split import split
from vap.datasets.tables import plain_id, read_table
from vap.params import Isic2019Params

CLASSES = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
FOLDER = "ISIC_2019_Training_Input"
TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
SITE = "https://challenge.isic-archive.com/data/#2019"

COUNTS = {"train+test": dict(zip(CLASSES, (4522, 12875, 3323, 867, 2624, 239, 253, 628), strict=True))}
FILES = [
    OfficialFile(FOLDER, "images", SITE, isic.LICENCE),
    OfficialFile(TRUTH, "labels", SITE, isic.LICENCE),
    OfficialFile(METADATA, "lesion of each image", SITE, isic.LICENCE),
]


class Isic2019Source(FileSource):
    """ISIC 2019; says how many lesions a split by image divides, and how many images ISIC 2018 has too.

    Raises:
        VapError: a folder, table, image or label is absent, wrong or double.
    """

    def __init__(
        self, root: Path, settings: Isic2019Params, test_fraction: float, seed: int, skip: bool = False
    ) -> None:
        require_folder(root, f"fetch {FOLDER}.zip, {TRUTH} and {METADATA} from {SITE} and put them there")
        self.left_out = LeftOut(skip)
        tree = Tree(root, self.left_out.member)
        tree.tell_passed()
        files = isic.image_files(tree, FOLDER, self.left_out)
        if not files:
            fix = f"fetch {FOLDER}.zip from {SITE} and put it in {root}"
            raise VapError(root / FOLDER, "no images, nor an archive of them", "the images", fix)
        truth, metadata = tree.table(TRUTH), tree.table(METADATA)
        self.classes = list(CLASSES)
        self.inputs = {"labels": file_of(truth), "groups": file_of(metadata)}
        items = _items(truth, files, _lesions(metadata, self.left_out), self.left_out)
        items = _without_isic2018(root, items, settings.exclude_isic2018)
        checked(root, items, self.classes)
        by_image = split([replace(item, group=item.id) for item in items], test_fraction, seed)
        divided, several = divided_lesions(items, by_image)
        what = "divides" if settings.split == "image" else "would divide"
        tell(f"{root}: a split by image {what} {divided} of the {several} lesions with several images")
        done = by_image if settings.split == "image" else split(items, test_fraction, seed)
        self.items = checked(root, done, self.classes)


def divided_lesions(items: Sequence[Item], by_image: Sequence[Item]) -> tuple[int, int]:
    """(lesions that have images on both sides of `by_image`, lesions with several images)."""
    side = {item.id: item.split for item in by_image}
    lesions: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        lesions[item.group].append(side[item.id])
    return sum(len(set(s)) > 1 for s in lesions.values()), sum(len(s) > 1 for s in lesions.values())


def _without_isic2018(root: Path, items: list[Item], exclude: bool) -> list[Item]:
    others = [item for item in items if not isic.in_isic2018(item.id)]
    common = len(items) - len(others)
    end = "left out" if exclude else "kept (dataset.NAME.exclude_isic2018)"
    tell(f"{root}: {common} of {len(items)} images are training images of ISIC 2018: {end}")
    return others if exclude else items


def _lesions(path: Source, left_out: LeftOut) -> dict[str, str]:
    """Image to lesion; an image whose lesion is not known is one of its own."""
    lesions: dict[str, str] = {}
    for where, row in read_table(path, ["image", "lesion_id"], f"fetch it from {SITE}"):
        try:
            image = plain_id(where, row["image"])
            if image in lesions:
                raise VapError(where, f"a second row of {image}", "one row an image", "remove one row")
            lesions[image] = row["lesion_id"] or image
        except VapError as error:
            left_out.add("rows of lesions", error)
    return lesions


def _items(
    truth: Source, files: Mapping[str, Source], lesions: Mapping[str, str], left_out: LeftOut
) -> list[Item]:
    """All as "train", which is provisional."""
    items: list[Item] = []
    absent: list[tuple[str, str]] = []
    total = 0
    for where, image, label in isic.labels(truth, CLASSES, f"fetch it from {SITE}", left_out):
        total += 1
        file = files.get(image) or files.get(image.removesuffix(isic.DOWNSAMPLED))
        if image not in lesions:
            error = VapError(METADATA, f"no row of {image}", "a row for every image", f"fetch it from {SITE}")
            left_out.add("images without metadata", error)
        elif file is None:
            absent.append((where, f"{FOLDER}/{image}.jpg"))
        else:
            items.append(Item(image, label, "train", lesions[image], file))
    isic.tell_absent(absent, total, f"fetch {FOLDER}.zip from {SITE} again", left_out)
    return items
