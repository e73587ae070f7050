"""Training batches of images, for the methods without an autoencoder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets.images import decode
from vap.training.data import HOLD_ROWS, TrainingData

KEEP_BYTES = 256e6  # of small images that are kept once they were decoded


class ImageData(TrainingData):
    """Training images in -1..1, read from the memory-mapped artefact.

    Args:
        prepared: a `prepared` artefact; its training rows are used.
        size: side that the images are reduced to, antialiased; at most their own.
        place: the key that sets `size`, for errors.
        flip: each image is mirrored (left and right) in half of the steps that see it, by chance.
        only: ids of the training images to keep; None keeps all.

    Raises:
        VapError: the images are smaller than `size`.
    """

    def __init__(
        self,
        prepared: Path,
        size: int,
        place: str,
        *,
        flip: bool = False,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(ArrowFile(prepared, "prepared"), None, only)
        self.inputs = {"prepared": prepared}
        self.image_size: int = decode(self.file.value("image", int(self.rows[0]))).shape[0]
        if size > self.image_size:
            fix = "lower it, or prepare larger images"
            raise VapError(place, str(size), f"at most {self.image_size}, the side of {prepared}", fix)
        self.shape, self.flip = (3, size, size), flip
        self.held: Tensor | None = None  # (rows, 3, size, size) uint8 on a device
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}  # decoded and reduced, the first that fit

    def hold(self, device: torch.device) -> None:
        """Keep all training images on `device`, so that no step copies them."""
        self.held = torch.empty((len(self.rows), *self.shape), dtype=torch.uint8, device=device)
        for start in range(0, len(self.rows), HOLD_ROWS):  # never all of them in the host's memory
            rows = range(start, min(start + HOLD_ROWS, len(self.rows)))
            self.held[rows.start : rows.stop] = torch.from_numpy(np.stack([self._image(row) for row in rows]))

    def held_bytes(self) -> int:
        return len(self.rows) * int(np.prod(self.shape))

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        """uint8 [3, size, size] of a training example."""
        if (found := self._kept.get(row)) is not None:
            return found
        image, size = decode(self.file.value("image", int(self.rows[row]))), self.shape[1]
        if size < self.image_size:
            image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
        found = np.ascontiguousarray(image.transpose(2, 0, 1))
        if (len(self._kept) + 1) * found.nbytes <= KEEP_BYTES:
            self._kept[row] = found
        return found

    def examples(
        self, rows: npt.NDArray[np.int64], generator: torch.Generator, part: slice
    ) -> tuple[Tensor, npt.NDArray[np.int64]]:
        mirrored = torch.rand(len(rows), generator=generator)[part] < 0.5 if self.flip else None
        rows = rows[part]
        if self.held is None:
            images = torch.from_numpy(np.stack([self._image(int(row)) for row in rows]))
        else:
            images = self.held[torch.from_numpy(rows).to(self.held.device, non_blocking=True)]
        if mirrored is not None:
            where = mirrored.to(images.device, non_blocking=True)[:, None, None, None]
            images = torch.where(where, images.flip(3), images)
        return images.float() / 127.5 - 1, rows
