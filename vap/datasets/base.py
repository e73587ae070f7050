"""What every dataset adapter gives: a checked, ordered list of images, and one image at a time."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vap.datasets import images
from vap.datasets.images import Pixels
from vap.errors import VapError
from vap.params import PrepareParams

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
        source: the image file; None for a phantom.
    """

    id: str
    label: str
    split: Split
    group: str
    source: Path | None


@dataclass(frozen=True)
class RawImage:
    """One image as it was found.

    Attributes:
        pixels: uint8 [H, W, 3], RGB, 0 to 255.
        sha256: of the raw file's bytes; of the pixels, for a phantom.
        attributes: a phantom's known attributes; None for a real image.
    """

    pixels: Pixels
    sha256: str
    attributes: dict[str, str] | None = None


class Source(Protocol):
    """A dataset in its raw folder.

    Attributes:
        classes: class names in canonical order.
        items: train, then val, then test, each by id.
        modality: what the dataset itself declares, if it does.
        inputs: name to file, for the files that decide ids, labels, splits or groups.
    """

    classes: list[str]
    items: list[Item]
    modality: str | None
    inputs: dict[str, Path]

    def load(self, item: Item) -> RawImage:
        """Read or draw one image.

        Raises:
            UnreadableImage: the file is no whole image.
        """
        ...


def open_source(adapter: str, root: Path, prepare: PrepareParams, seed: int) -> Source:
    """List the dataset in `root`, without reading an image.

    Args:
        adapter: isic2018 | folder | phantom.
        root: data/raw/NAME.
        seed: of the split, where the dataset gives none, and of a phantom's draw.

    Raises:
        VapError: the folder or one of its files is absent, unreadable or does not fit its layout.
    """
    from vap.datasets import folder, isic2018

    try:
        if adapter == "phantom":
            return PhantomSource(root, prepare.image_size, seed)
        if adapter == "isic2018":
            return isic2018.Isic2018Source(root)
        if adapter == "folder":
            return folder.FolderSource(root, prepare.test_fraction, seed)
    except OSError as error:
        found = error.strerror or str(error)
        where = error.filename or root
        raise VapError(where, found, "a readable file or folder", "check its permissions") from None
    raise VapError("adapter", repr(adapter), "isic2018, folder or phantom", "choose one of these")


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
        items = [Item(s.id, s.label, split_name(s.split), s.group, None) for s in samples]
        self.items = checked(root, items, self.classes)

    def load(self, item: Item) -> RawImage:
        """Draw one image: uint8 [size, size, 3]."""
        from vap.datasets import phantom

        sample = self._samples[item.id]
        pixels = phantom.render(self.modality or "", sample, self._size)
        return RawImage(pixels, hashlib.sha256(pixels.tobytes()).hexdigest(), sample.attributes)


# ── shared by the adapters ──────────────────────────────────────────────────────────────────────


def load_file(item: Item) -> RawImage:
    """Read the image file of `item`.

    Raises:
        UnreadableImage: the file is no whole image.
    """
    assert item.source is not None
    pixels, sha256 = images.read(item.source)
    return RawImage(pixels, sha256)


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


def plain_id(where: str, name: str) -> str:
    """`name`, if it can only name a file of its own folder.

    Raises:
        VapError: it is empty, hidden, or a path.
    """
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
        expected = "a plain image name: no path, not empty, not hidden"
        raise VapError(where, f"the image id {name!r}", expected, "correct the row")
    return name


def read_table(path: Path, columns: Sequence[str], fix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, as ("file:line", column to stripped value).

    A byte-order mark, CRLF and blank lines are accepted.

    Args:
        columns: that the file must have; it may have others.
        fix: what to do where the file is absent.

    Raises:
        VapError: the file is absent, not UTF-8, lacks a column or a value, or has no row.
    """
    if not path.is_file():
        raise VapError(path, "no such file", f"a CSV file with {','.join(columns)}", fix)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"the byte 0x{data[error.start]:02x}, which is not UTF-8 (Latin-1?)"
        raise VapError(f"{path}:{line}", found, "UTF-8 text", "save the file as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in columns:
            if header.count(name) != 1:
                found = f"{header.count(name) or 'no'} column {name!r} in {','.join(header)[:120]!r}"
                expected = f"the columns {','.join(columns)}"
                raise VapError(path, found, expected, "correct the header, or fetch the file again")
        places = {name: header.index(name) for name in columns}
        empty = True
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            empty = False
            where = f"{path}:{reader.line_num}"
            if len(values) < len(header):
                found, expected = f"{len(values)} values", f"{len(header)} values"
                raise VapError(where, found, expected, "complete the row")
            yield where, {name: values[i].strip() for name, i in places.items()}
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise VapError(where, f"no CSV ({error})", "a CSV row", "correct the row") from None
    if empty:
        raise VapError(path, "no row below the header", "a row for every image", fix)
