"""Batches: what the training loop asks of one, and the batch of a diffusion method with its condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Movable(ABC):
    """A batch whose tensors can be moved."""

    @abstractmethod
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same, with `change` of every tensor."""

    def to(self, device: torch.device) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass
class Condition(Movable):
    """What a batch is conditioned on. Row i is unconditional where label[i] is the null class."""

    label: Tensor  # (B,) int64; num_classes is the null class
    context: Tensor | None = (
        None  # (B, S, context_dim), of any float dtype; of the null prompt where unconditional
    )
    mask: Tensor | None = None  # (B, S) bool, True where a token is real; real ones come first
    lengths: tuple[int, ...] | None = None
    """Real tokens of each row, known to the host: lets a network compute without padding."""
    room: int | None = None  # as many of them as the rows of such a batch may have together

    def map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        """`change` of every tensor, which leaves the rows what they are."""
        context = None if self.context is None else change(self.context)
        mask = None if self.mask is None else change(self.mask)
        return Condition(change(self.label), context, mask, self.lengths, self.room)

    def part(self, rows: slice) -> Condition:
        """Some of its rows."""
        some = self.map(lambda tensor: tensor[rows])
        some.lengths = None if self.lengths is None else self.lengths[rows]
        some.room = None
        return some

    def padded(self, tokens: int) -> Condition:
        """The same with its context padded to `tokens`; at least as many as it has."""
        if self.context is None or self.mask is None:
            return self
        more = tokens - self.context.shape[1]
        context, mask = F.pad(self.context, (0, 0, 0, more)), F.pad(self.mask, (0, more))
        return Condition(self.label, context, mask, self.lengths, self.room)

    def joined(self, other: Condition) -> Condition:
        """The rows of both, this one's first."""
        if self.context is None or other.context is None:
            return Condition(torch.cat([self.label, other.label]))
        S = max(self.context.shape[1], other.context.shape[1])
        a, b = self.padded(S), other.padded(S)
        lengths = None if a.lengths is None or b.lengths is None else a.lengths + b.lengths
        label, context, mask = (torch.cat(pair) for pair in zip(a.tensors(), b.tensors(), strict=True))
        return Condition(label, context, mask, lengths)

    def tensors(self) -> list[Tensor]:
        """Those that it has."""
        return [tensor for tensor in (self.label, self.context, self.mask) if tensor is not None]


def described(label: Tensor, context: Tensor, mask: Tensor) -> Condition:
    """A condition of class and description, with `mask` on the host; shapes as `Condition`'s."""
    return Condition(label, context, mask, tuple(mask.sum(1).tolist()))


@dataclass
class Batch(Movable):
    """A training batch: clean latents or images, their condition, and the draws of this step."""

    x0: Tensor  # (B, C, H, W)
    condition: Condition
    t: Tensor  # (B,) int64 in 1..T
    noise: Tensor  # like x0
    other_label: Tensor | None = None  # (B,) int64, drawn from the training split's class frequencies

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """`change` of every tensor."""
        other = None if self.other_label is None else change(self.other_label)
        return Batch(change(self.x0), self.condition.map(change), change(self.t), change(self.noise), other)

    def pieces(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of at most `size` images."""
        for start in range(0, len(self.x0), size):
            part = slice(start, start + size)
            piece = self.map(lambda tensor, part=part: tensor[part])  # type: ignore[misc]
            piece.condition = self.condition.part(part)
            yield piece
