"""The real images of a ratio: what a classifier sees, and a generator that sees no more than it does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError


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
    rows = real_rows(prepared, "train")
    names, labels = prepared.column("id"), prepared.column("label")
    return [rows[i] for i in _drawn([names[r] for r in rows], [labels[r] for r in rows], percent, seed)]


def _drawn(names: Sequence[str], labels: Sequence[str], percent: int, seed: int) -> list[int]:
    """The places of the images that are drawn, in order."""
    by_class: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        by_class.setdefault(label, []).append(place)
    chosen: list[int] = []
    for places in by_class.values():
        drawn = sorted(places, key=lambda place: (_place(seed, names[place]), names[place]))
        chosen += drawn[: max(1, (len(places) * percent + 50) // 100)]
    return sorted(chosen)


def _place(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"downstream:{seed}:{name}".encode(errors="surrogateescape")).digest()


def share_of(file: ArrowFile, percent: int | None, seed: int) -> dict[str, str] | None:
    """Id to class of the images of a ratio, by id; None, for all images, of None.

    Args:
        file: any artefact that knows the training images: "prepared", "latents" or "bank".
    """
    if percent is None:
        return None
    if file.kind == "bank":
        rows = file.rows(["ids", "labels", "splits"])
        told = [image for row in rows for image in zip(row["ids"], row["labels"], row["splits"], strict=True)]
    else:
        told = list(zip(*map(file.column, ("id", "label", "split")), strict=True))
    images = sorted((name, label) for name, label, split in told if split == "train")
    chosen = _drawn([name for name, _ in images], [label for _, label in images], percent, seed)
    return dict(images[place] for place in chosen)
