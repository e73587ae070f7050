"""Images of an artefact as a torch Dataset, as torchvision's ImageFolder is one."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError


class Samples(Dataset[tuple[Any, int]]):
    """Samples, or prepared images: item i is (image, number of its class).

    Args:
        path: results/samples/DATASET/METHOD-seen.arrow, or data/prepared/DATASET.arrow.
        transform: of the image, which is Pillow's, RGB; None leaves it so.
        split: of prepared images, train, val or test; None for all, and for samples.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        targets: number of each image's class.
        texts: description of each image; None where there is none.

    Raises:
        VapError: the file is absent, damaged or of another kind, or has no image of that split.
    """

    def __init__(
        self, path: str | Path, transform: Callable[[Any], Any] | None = None, split: str | None = None
    ) -> None:
        file = Path(path)
        try:
            self.file = ArrowFile(file, "samples")
        except VapError as error:
            if "prepared" not in error.found:
                raise
            self.file = ArrowFile(file, "prepared")
        rows = list(range(len(self.file)))
        if split is not None:
            if self.file.kind == "samples":
                raise VapError("split", repr(split), "none: samples have no split", "leave it out")
            rows = self.file.rows_of(split).tolist()
        if not rows:
            raise VapError(
                file, f"no image of split {split}" if split else "no image", "some", "name another"
            )
        self.transform = transform
        self.classes: list[str] = self.file.metadata["classes"]
        labels = self.file.column("label")
        texts = self.file.column("text") if self.file.kind == "samples" else [None] * len(self.file)
        self.rows = rows
        self.targets = [self.classes.index(labels[row]) for row in rows]
        self.texts: list[str | None] = [texts[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def png(self, index: int) -> bytes:
        """The image as it is stored."""
        return bytes(self.file.value("image", self.rows[index]))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        image = Image.open(io.BytesIO(self.png(index))).convert("RGB")
        return (image if self.transform is None else self.transform(image)), self.targets[index]
