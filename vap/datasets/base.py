"""What every dataset adapter gives: a checked, ordered list of images, and one image at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from vap.common.errors import VapError
from vap.datasets import archives, images
from vap.datasets.images import Pixels
from vap.params import DatasetParams, PrepareParams

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One image of a dataset, not yet read.

    Attributes:
        id: unique in the dataset, and safe as a file name.
        label: class.
        split: train, val or test.
        group: lesion, patient or video; never on two sides of a split.
        source: the image file, on disk or in an archive; None for a phantom.
    """

    id: str
    label: str
    split: Split
    group: str
    source: archives.Source | None


@dataclass(frozen=True)
class RawImage:
    """One image as it was found.

    Attributes:
        image: mode RGB.
        sha256: of the raw file's bytes; of the pixels, for a phantom.
        attributes: a phantom's known attributes; None for a real image.
        odd: what the file has that is hardly meant (modes.as_rgb).
    """

    image: Image.Image
    sha256: str
    attributes: dict[str, str] | None = None
    odd: tuple[str, ...] = ()

    @property
    def pixels(self) -> Pixels:
        """uint8 [H, W, 3], RGB, 0 to 255."""
        return np.asarray(self.image)


class Source(Protocol):
    """A dataset in its raw folder.

    Attributes:
        classes: class names in canonical order.
        items: train, then val, then test, each by id.
        modality: what the dataset itself declares, if it does.
        inputs: name to file, for the files that decide ids, labels, splits or groups.
        left_out: what the listing left out.
    """

    classes: list[str]
    items: list[Item]
    modality: str | None
    inputs: dict[str, Path]
    left_out: LeftOut

    def load(self, item: Item, at_least: int = 0) -> RawImage:
        """Read or draw one image, at full size or at least `at_least` pixels a side (images.open_rgb).

        Raises:
            UnreadableImage: the file is no whole image.
        """
        ...


class FileSource:
    """What the datasets of image files share; __init__ sets the attributes of Source."""

    modality: str | None = None

    def load(self, item: Item, at_least: int = 0) -> RawImage:
        """Read one image.

        Raises:
            UnreadableImage: the file is no whole image.
        """
        return load_file(item, at_least)


def open_source(settings: DatasetParams, root: Path, prepare: PrepareParams, seed: int) -> Source:
    """List the dataset in `root`, without reading an image.

    Args:
        settings: the dataset's section of params.yaml: its adapter and that one's options.
        root: data/raw/NAME.
        seed: of the split, where the dataset gives none, and of a phantom's draw.

    Raises:
        VapError: the folder or one of its files is absent, unreadable or does not fit its layout.
    """
    from vap.datasets import chestxray14, colonoscopy, folder, isic2018, isic2019

    skip, fraction = prepare.on_error == "skip", prepare.test_fraction
    try:
        if settings.adapter == "phantom":
            return PhantomSource(root, prepare.image_size, seed)
        if settings.adapter == "isic2018":
            return isic2018.Isic2018Source(root, skip)
        if settings.adapter == "isic2019":
            return isic2019.Isic2019Source(root, settings, fraction, seed, skip)
        if settings.adapter == "chestxray14":
            return chestxray14.ChestXray14Source(root, settings, fraction, seed, skip)
        if settings.adapter == "colonoscopy":
            return colonoscopy.ColonoscopySource(root, settings, fraction, seed, skip)
        return folder.FolderSource(root, fraction, seed)
    except OSError as error:
        found = error.strerror or str(error)
        where = error.filename or root
        raise VapError(where, found, "a readable file or folder", "check its permissions") from None


class PhantomSource:
    """A phantom dataset (see vap.datasets.phantom), drawn at `size` pixels a side."""

    def __init__(self, root: Path, size: int, seed: int) -> None:
        from vap.datasets import phantom

        path = root / "phantom.yaml"
        require_folder(root, "write its phantom.yaml, as in data/raw/phantom-isic2018")
        spec = phantom.load_spec(path)
        samples = phantom.list_samples(spec, seed)
        self._samples = {sample.id: sample for sample in samples}
        self._size = size
        self.classes = list(spec.classes)
        self.modality: str | None = spec.modality
        self.inputs = {"spec": path}
        self.left_out = LeftOut(skip=False)
        items = [Item(s.id, s.label, split_name(s.split), s.group, None) for s in samples]
        self.items = checked(root, items, self.classes)

    def load(self, item: Item, at_least: int = 0) -> RawImage:
        """Draw one image, `size` pixels a side."""
        from vap.datasets import phantom

        sample = self._samples[item.id]
        pixels = phantom.render(self.modality or "", sample, self._size)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        return RawImage(Image.fromarray(pixels), digest, sample.attributes)


# ── shared by the adapters ──────────────────────────────────────────────────────────────────────────


class LeftOut:
    """What a listing cannot use: raised, or left out and noted under prepare.on_error: skip."""

    def __init__(self, skip: bool) -> None:
        self._skip = skip
        self._kinds: dict[str, VapError] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, error: VapError, count: int = 1) -> None:
        """`error`, of one or several images of one `kind`, e.g. "rows without an image".

        Raises:
            VapError: `error`, unless such are to be skipped.
        """
        if not self._skip:
            raise error
        self._kinds.setdefault(kind, error)
        self._counts[kind] += count

    def member(self, error: VapError) -> None:
        """An archive's member that cannot be used."""
        self.add("files in archives", error)

    @property
    def notes(self) -> list[str]:
        """A line a kind."""
        return [
            f"left out {self._counts[kind]} {kind}; the first: {error.where}: {error.found}"
            for kind, error in self._kinds.items()
        ]


def load_file(item: Item, at_least: int = 0) -> RawImage:
    """Read the image file of `item`.

    Raises:
        UnreadableImage: the file is no whole image.
    """
    assert item.source is not None
    image, digest, odd = images.open_rgb(item.source, at_least)
    return RawImage(image, digest, odd=odd)


def split_name(name: str) -> Split:
    """`name` as one of SPLITS."""
    return SPLITS[SPLITS.index(name)]  # type: ignore[arg-type]


def require_folder(root: Path, fix: str) -> None:
    """Raise VapError with `fix` unless the folder `root` is there."""
    if not root.is_dir():
        found = "a file" if root.exists() else "a broken link" if root.is_symlink() else "no folder"
        raise VapError(root, found, "the dataset's folder", fix)


def checked(root: Path, items: Sequence[Item], classes: Sequence[str]) -> list[Item]:
    """The items in the order of every artefact: train, val, test, each by id.

    Raises:
        VapError: there is none, an id occurs twice or is no text, or a class has no training image.
    """
    if not items:
        raise VapError(root, "no image", "images of every class", "put the dataset there")
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            files = " and ".join(str(i.source) for i in (seen[item.id], item) if i.source)
            found = f"the id {item.id!r} twice" + (f" ({files})" if files else "")
            raise VapError(root, found, "a different id for every image", "rename or remove one")
        seen[item.id] = item
        try:
            f"{item.id}{item.label}".encode()
        except UnicodeEncodeError:
            found = f"the name {str(item.source)!a}, which is not UTF-8"
            raise VapError(root, found, "UTF-8 file names", "rename the file") from None
    require_training(root, {(item.split, item.label) for item in items}, classes)
    return sorted(items, key=lambda item: (SPLITS.index(item.split), item.id))


def require_training(where: Path, found: Iterable[tuple[str, str]], classes: Sequence[str]) -> None:
    """Raise VapError unless every class is among the (split, label) pairs with split "train"."""
    trained = {label for split, label in found if split == "train"}
    if missing := [label for label in classes if label not in trained]:
        raise VapError(
            where,
            f"no training image of class {', '.join(map(repr, missing))}",
            "at least one training image of every class",
            "add images of the class, or remove it",
        )
