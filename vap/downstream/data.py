"""What a classifier is trained on: real images (vap.datasets.share), synthetic ones, their batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets.images import Pixels, decode, fit
from vap.training.seeds import shuffled

HOLD = 2**30  # bytes of decoded images that a pool keeps; the others are decoded each time

STREAM = 31  # of random numbers: which images make a batch

Rows = Sequence[int]


# ── which images ────────────────────────────────────────────────────────────────────────────────────


def synthetic_rows(
    samples: ArrowFile, n: int | None, balance: Literal["as_sampled", "balanced"], classes: Sequence[str]
) -> list[int]:
    """Rows of the synthetic images that are used: always the first ones, so a larger n adds to a smaller.

    Args:
        n: how many; null for as many as there are.
        balance: the classes as they were sampled, or as many images of each (n / classes, rounded down).

    Raises:
        VapError: there are not enough.
    """
    labels = samples.column("label")
    if balance == "as_sampled":
        need, there = n or len(labels), len(labels)
        rows = list(range(need))
    else:
        counts = Counter(labels)
        there = min(counts[label] for label in classes)
        need = there if n is None else n // len(classes)
        taken: Counter[str] = Counter()
        rows = []
        for row, label in enumerate(labels):
            if taken[label] < need:
                taken[label] += 1
                rows.append(row)
    if need > there or not rows:
        unit = "images" if balance == "as_sampled" else "images of the rarest class"
        fix = "lower downstream.synthetic, or raise sample.n and sample again"
        raise VapError(samples.path, f"{there} {unit}", f"{max(need, 1)} or more", fix)
    return rows


# ── their pixels ────────────────────────────────────────────────────────────────────────────────────


class ImagePool:
    """Images of Arrow artefacts as one numbered sequence, decoded when they are asked for.

    The first `hold` bytes of what is decoded are kept, so memory does not grow with the data.

    Attributes:
        labels: class number of each image, int64.

    Raises:
        VapError: an image is of a class that the dataset does not have.
    """

    def __init__(
        self,
        parts: Sequence[tuple[ArrowFile, Rows]],
        classes: Sequence[str],
        image_size: int,
        hold: int = HOLD,
    ) -> None:
        self._places = [(file, row) for file, rows in parts for row in rows]
        self._size = image_size
        self._room = hold // (3 * image_size**2)  # images
        self._held: dict[int, Pixels] = {}
        numbers: Mapping[str, int] = {label: k for k, label in enumerate(classes)}
        labels: list[int] = []
        for file, rows in parts:
            column = file.column("label")
            for row in rows:
                if column[row] not in numbers:
                    expected, fix = f"one of {', '.join(classes)}", "sample or prepare again"
                    raise VapError(file.path, f"class {column[row]!r} in row {row}", expected, fix)
                labels.append(numbers[column[row]])
        self.labels = np.asarray(labels, np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, image_size, image_size), 0..255, and classes int64 (B,).

        Raises:
            VapError: an image cannot be decoded.
        """
        images = torch.from_numpy(np.stack([self._pixels(int(i)) for i in numbers]))
        return images.permute(0, 3, 1, 2), torch.from_numpy(self.labels[np.asarray(numbers)])

    def _pixels(self, number: int) -> Pixels:
        """uint8 [image_size, image_size, 3]"""
        if number in self._held:
            return self._held[number]
        file, row = self._places[number]
        try:
            image = fit(decode(file.value("image", row)), self._size, "squash")
        except Exception as error:  # a broken PNG fails in as many ways as there are chunks
            fix = "run the stage that makes it again"
            raise VapError(file.path, f"no image in row {row} ({error})", "a PNG", fix) from None
        if len(self._held) < self._room:
            self._held[number] = image
        return image


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────


def batch_numbers(
    step: int, batch_size: int, n_real: int, n_synthetic: int, real_share: float | None, seed: int
) -> npt.NDArray[np.int64]:
    """Numbers of a step's images: 0 to n_real - 1 are real, those after it synthetic.

    A function of the step alone: image i of an endless sequence of permutations of the whole.

    Args:
        real_share: of every batch, rounded, at least one image of each kind; null draws real and
            synthetic images from one pool, all alike.
    """
    real_stream, synthetic_stream = (seed, STREAM, 0), (seed, STREAM, 1)
    if real_share is None or not n_synthetic:
        return shuffled(step * batch_size, batch_size, n_real + n_synthetic, *real_stream)
    real = min(max(round(real_share * batch_size), 1), batch_size - 1)
    synthetic = batch_size - real
    return np.concatenate(
        [
            shuffled(step * real, real, n_real, *real_stream),
            n_real + shuffled(step * synthetic, synthetic, n_synthetic, *synthetic_stream),
        ]
    )
