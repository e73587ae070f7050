"""The Class-Specific Prompt Bank (CSPB, paper §2.3): descriptions per class, drawn at random."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.prompts.buffers import Buffers
from vap.prompts.states import TORCH, Dtype, unpack

NULL_ROW = 0  # of the null prompt, the encoder's states of the empty text


@dataclass(frozen=True)
class Chunk:
    """The token states of one record batch, in place in the memory-mapped file."""

    states: Tensor  # (tokens of all its rows, width), in the bank's dtype
    scales: Tensor  # (tokens of all its rows,) for int8, else (0,)


class TokenSource(Protocol):
    """Numbered descriptions with their token states: a bank, or a user's own sentences."""

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `PromptBank.collate`."""


class PromptBank:
    """A prompt bank in Arrow; token states stay in the file until they are asked for.

    Args:
        path: a `bank` artefact.

    Attributes:
        width: of a token state.
        max_tokens: the most tokens of a description.
        dtype: of the stored states: fp16, bf16 or int8.
        lengths: (rows,) tokens of each description.
        row_of: image id to the row of its description; NULL_ROW for an image that has none.
    """

    def __init__(self, path: Path) -> None:
        self.file = ArrowFile(path, "bank")
        self.width: int = self.file.metadata["width"]
        self.max_tokens: int = self.file.metadata["max_tokens"]
        self.dtype: Dtype = self.file.metadata["dtype"]
        self.row_of: dict[str, int] = {}
        members: dict[tuple[str, str], list[int]] = {}
        for row, entry in enumerate(self.file.rows(["ids", "labels", "splits"])):
            for image, label, split in zip(entry["ids"], entry["labels"], entry["splits"], strict=True):
                self.row_of[image] = row
                if row != NULL_ROW:
                    members.setdefault((label, split), []).append(row)
        self._members: Mapping[tuple[str, str], npt.NDArray[np.int64]] = {
            key: np.asarray(rows) for key, rows in members.items()
        }
        self._buffers = Buffers()
        self._map(path)

    def _map(self, path: Path) -> None:
        """Find every row's tokens in the file: their chunk, their place in it, and their byte in the file."""
        dtype = TORCH[self.dtype]
        self._token_bytes = dtype.itemsize * self.width
        self._handle = path.open("rb")  # for the kernel's read-ahead
        source = pa.memory_map(str(path))
        start_of_file = source.read_buffer(1).address
        reader = pa.ipc.open_file(source)
        self._chunks: list[Chunk] = []
        starts, chunks, lengths, places = [], [], [], []
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        for number, batch in enumerate(self._batches):
            _, offsets, data = batch.column("tokens").buffers()
            bounds = np.frombuffer(offsets, np.int64)[: len(batch) + 1] // self._token_bytes
            size = int(bounds[-1])
            with warnings.catch_warnings():  # that the file is read-only: nothing writes to these
                warnings.simplefilter("ignore", UserWarning)
                stored = torch.from_numpy(np.frombuffer(data, np.uint8, size * self._token_bytes))
                scales = torch.zeros(0)
                if self.dtype == "int8":
                    values = batch.column("scales").flatten()
                    scales = torch.from_numpy(np.frombuffer(values.buffers()[1], np.float32, size))
            self._chunks.append(Chunk(stored.view(dtype).view(size, self.width), scales))
            starts.append(bounds[:-1])
            lengths.append(np.diff(bounds))
            chunks.append(np.full(len(batch), number))
            places.append(data.address - start_of_file + bounds[:-1] * self._token_bytes)
        self.lengths: npt.NDArray[np.int64] = np.concatenate(lengths)
        self._starts, self._chunk_of = np.concatenate(starts), np.concatenate(chunks)
        self._places = np.concatenate(places)
        self._asked = np.zeros(len(self), bool)  # rows that were read ahead
        self._large = path.stat().st_size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2

    def __len__(self) -> int:
        return len(self.file)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the encode stage wrote about the bank: encoder, revision, dtype, error, classes …"""
        return self.file.metadata

    def text(self, row: int) -> str:
        """The description in `row`."""
        return str(self.file.value("text", row))

    def has(self, label: str, split: str = "train") -> bool:
        """Whether class `label` has a description in `split`."""
        return (label, split) in self._members

    def pooled(self) -> npt.NDArray[np.float32]:
        """(rows, pooled_width) pooled vectors of all descriptions."""
        columns = [batch.column("pooled").flatten().to_numpy() for batch in self._batches]
        return np.concatenate(columns).reshape(len(self), -1).astype(np.float32)

    def rows(self, label: str, split: str = "train") -> npt.NDArray[np.int64]:
        """Rows of class `label`, one entry an image, so that frequent descriptions stay frequent.

        Raises:
            VapError: the class has no description in `split`.
        """
        if not self.has(label, split):
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

    def tokens(self, row: int) -> npt.NDArray[Any]:
        """(n_tokens, width) states of a description: of fp16 a read-only view of the file, else float32."""
        chunk, start, n = self._chunks[self._chunk_of[row]], int(self._starts[row]), int(self.lengths[row])
        if self.dtype == "fp16":
            view: npt.NDArray[Any] = chunk.states[start : start + n].numpy()
            view.flags.writeable = False
            return view
        states: npt.NDArray[Any] = unpack(
            chunk.states[start : start + n], chunk.scales[start : start + n]
        ).numpy()
        return states

    @property
    def native(self) -> torch.dtype:
        """The dtype of the states as they are stored; float32 for int8, which has to be computed."""
        return torch.float32 if self.dtype == "int8" else TORCH[self.dtype]

    def collate(self, rows: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """States of several descriptions, padded to the longest of them.

        Args:
            dtype: of the context; `native` copies half the bytes, and the network widens where it computes.

        Returns:
            context (B, S, width), zero where padded; mask (B, S) bool, True where a token is real.
        """
        chosen = np.asarray(rows, np.int64)
        lengths = self.lengths[chosen]
        self._read_ahead(chosen)
        B, longest = len(chosen), int(lengths.max())
        context = self._buffers.empty(B * longest, self.width, dtype)
        # one call each for all rows: in a loop, Python would take as long as the copies
        sizes = np.stack([lengths, longest - lengths], 1).ravel()
        parts = torch.split(context, sizes.tolist())  # of each row: its tokens, its padding
        spans = list(
            zip(
                self._chunk_of[chosen].tolist(),
                self._starts[chosen].tolist(),
                (self._starts[chosen] + lengths).tolist(),
                strict=True,
            )
        )
        torch._foreach_copy_(parts[::2], [self._chunks[c].states[start:stop] for c, start, stop in spans])
        if self.dtype == "int8":
            scales = [self._chunks[c].scales[start:stop, None] for c, start, stop in spans]
            torch._foreach_mul_(parts[::2], scales)
        torch._foreach_zero_(parts[1::2])
        mask = torch.arange(longest)[None] < torch.from_numpy(lengths)[:, None]
        return context.view(B, longest, self.width), mask

    def _read_ahead(self, rows: npt.NDArray[np.int64]) -> None:
        """Ask the kernel for all rows at once, so that a disk does not answer page fault after page fault.

        In a bank that fits into memory, each row once.
        """
        if not hasattr(os, "posix_fadvise"):
            return
        if not self._large:
            rows, all_rows = rows[~self._asked[rows]], rows
            self._asked[all_rows] = True
        handle = self._handle.fileno()
        sizes = self.lengths[rows] * self._token_bytes
        for place, size in zip(self._places[rows].tolist(), sizes.tolist(), strict=True):
            os.posix_fadvise(handle, place, size, os.POSIX_FADV_WILLNEED)
