"""The Class-Specific Prompt Bank (CSPB, paper §2.3): descriptions per class, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vap.artifacts import ArrowFile
from vap.errors import VapError

NULL_ROW = 0  # of the null prompt, the encoder's states of the empty text


class PromptBank:
    """A prompt bank in Arrow; token states stay in the file until they are asked for.

    Args:
        path: a `bank` artefact.

    Attributes:
        width: of a token state.
        max_tokens: the most tokens of a description.
        row_of: image id to the row of its description.
    """

    def __init__(self, path: Path) -> None:
        self.file = ArrowFile(path, "bank")
        self.width: int = self.file.metadata["width"]
        self.max_tokens: int = self.file.metadata["max_tokens"]
        self.row_of: dict[str, int] = {}
        members: dict[tuple[str, str], list[int]] = {}
        for row, entry in enumerate(self.file.rows(["ids", "labels", "splits"])):
            for image, label, split in zip(entry["ids"], entry["labels"], entry["splits"], strict=True):
                self.row_of[image] = row
                members.setdefault((label, split), []).append(row)
        self._members: Mapping[tuple[str, str], npt.NDArray[np.int64]] = {
            key: np.asarray(rows) for key, rows in members.items()
        }

    def __len__(self) -> int:
        return len(self.file)

    def text(self, row: int) -> str:
        """The description in `row`."""
        return str(self.file.value("text", row))

    def rows(self, label: str, split: str = "train") -> npt.NDArray[np.int64]:
        """Rows of class `label`, one entry an image, so that frequent descriptions stay frequent.

        Raises:
            VapError: the class has no description in `split`.
        """
        if (label, split) not in self._members:
            raise VapError(
                self.file.path,
                f"no description of class {label!r} in split {split}",
                "at least one",
                "caption and encode images of that class",
            )
        return self._members[label, split]

    def draw(self, label: str, rng: np.random.Generator, split: str = "train") -> int:
        """The row of a description of class `label`, each image's equally likely; constant time."""
        rows = self.rows(label, split)
        return int(rows[rng.integers(len(rows))])

    def tokens(self, row: int) -> npt.NDArray[np.float16]:
        """(n_tokens, width) states of a description, a view of the file."""
        return self.file.array("tokens", row).reshape(-1, self.width)

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States of several descriptions, padded to the longest of them.

        Returns:
            context (B, S, width) float32, zero where padded; mask (B, S) bool, True where a token is real.
        """
        states = [self.tokens(row) for row in rows]
        longest = max(len(s) for s in states)
        context = np.zeros((len(states), longest, self.width), np.float32)
        mask = np.zeros((len(states), longest), bool)
        for i, s in enumerate(states):
            context[i, : len(s)] = s
            mask[i, : len(s)] = True
        return torch.from_numpy(context), torch.from_numpy(mask)
