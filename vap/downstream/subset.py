"""The real images of a ratio: what a classifier sees, and a generator that sees no more than it does."""

from __future__ import annotations

import hashlib

from vap.artifacts import ArrowFile
from vap.errors import VapError
from vap.stages.common import prepared_path


def real_rows(prepared: ArrowFile, split: str) -> list[int]:
    """Rows of one split, in the file's order.

    Raises:
        VapError: there is none.
    """
    rows = [row for row, found in enumerate(prepared.column("split")) if found == split]
    if not rows:
        raise VapError(prepared.path, f"no image of split {split}", "some", "prepare again with such a split")
    return rows


def subset_rows(prepared: ArrowFile, percent: int, seed: int) -> list[int]:
    """`percent` of the training images of each class, rounded (halves up), at least one; in the file's order.

    Images are drawn, not lesions, patients or videos: the paper states ratios of images. An image's place
    in the draw depends only on the seed and its id, so the subset of a smaller ratio is contained in that
    of a larger one, and no subset depends on what else a classifier sees.

    Args:
        percent: 1 to 100.
    """
    names, labels = prepared.column("id"), prepared.column("label")
    by_class: dict[str, list[int]] = {}
    for row in real_rows(prepared, "train"):
        by_class.setdefault(labels[row], []).append(row)
    chosen: list[int] = []
    for rows in by_class.values():
        drawn = sorted(rows, key=lambda row: (_place(seed, names[row]), names[row]))
        chosen += drawn[: max(1, (len(rows) * percent + 50) // 100)]
    return sorted(chosen)


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"downstream:{seed}:{name}".encode(errors="surrogateescape")).digest()


def share_of(dataset: str, percent: int | None, seed: int) -> dict[str, str] | None:
    """Id to class of the images of a ratio, in the prepared file's order; None, for all images, of None.

    Raises:
        VapError: the dataset is not prepared.
    """
    if percent is None:
        return None
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    names, labels = prepared.column("id"), prepared.column("label")
    return {names[row]: labels[row] for row in subset_rows(prepared, percent, seed)}
