"""Ragged batches without padding: the real tokens of all images in one row, for variable-length attention.

Descriptions differ in length, so a padded batch holds tokens that nobody reads, and a mask shuts flash
attention out. A packed batch is one row of T tokens, image after image, and attention is told where each
image begins. T is rounded up, so that few shapes occur and a compiled network serves all batches; the tokens
that fill the row up are read by no image.
Shape letters: B images, L tokens of a padded image, T tokens of the row, S context tokens, N patches, F runs
of filling tokens, H heads, d size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 64  # tokens that a row is rounded up to a multiple of
FILLED = 8  # at most one in so many tokens of a row is a filling one, but 2 SMALLEST always may be


def _most_filling(row: int) -> int:
    return max(row // FILLED, 2 * SMALLEST)


def runs_of_filling(row: int, longest: int) -> int:
    """How many sequences take the filling tokens of a row, none of them longer than `longest`."""
    return -(-_most_filling(row) // longest)


def row_length(total: int, images: int, shortest: int, room: int | None = None) -> int:
    """The length T of the row for `total` real tokens; each run of filling tokens gets one at least.

    Args:
        images: B.
        shortest: at most the tokens of any image.
        room: as many as a batch of this kind is expected to need; batches for which it is right, neither too
            small nor far too large, share one length, and so one compiled network.
    """
    spare = images // 4 + 2 * SMALLEST // shortest + 2  # at least runs_of_filling(T, …)
    total += spare
    if room is not None:
        room += spare
        row = -(-room // SMALLEST) * SMALLEST
        if 0 <= row - total <= _most_filling(row):
            return row
    step = max(SMALLEST, 1 << max(total.bit_length() - 5, 0))  # 3 to 6 % of it
    return -(-total // step) * step


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch (B, L, …) lie in a row (T, …).

    Attributes:
        rows: (T,) int64, which of the B·L padded tokens is which of the row; 0 for filling tokens.
        offsets: (B + 1 + F,) int32, where each image begins, where the last one ends, and where each run of
            filling tokens ends. No sequence is empty.
        patches: (B·N,) int64, places of the patches in the row.
        weight: (T,) float32, 1 / (B · tokens of the image); 0 for filling tokens.
        longest: at least the tokens of any image and of any run of filling tokens.
        images: B.
    """

    rows: Tensor
    offsets: Tensor
    patches: Tensor
    weight: Tensor
    longest: int
    images: int

    @property
    def fillings(self) -> int:
        """F, the runs of filling tokens."""
        return len(self.offsets) - 1 - self.images

    def pack(self, x: Tensor) -> Tensor:
        """(B, L, D) to (T, D)."""
        return x.flatten(0, 1).index_select(0, self.rows)

    def real(self, x: Tensor) -> Tensor:
        """`x` (T, D) with zeros, and no gradient, in the place of filling tokens."""
        return torch.where(self.weight[:, None] > 0, x, 0.0)

    def last(self, x: Tensor) -> Tensor:
        """(T, D) to the patches alone, (B·N, D)."""
        return x.index_select(0, self.patches)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over images of each image's mean over its tokens, for values (T, D)."""
        return (values.mean(-1) * self.weight).sum()


def packing(mask: Tensor, before: int, patches: int, row: int) -> Packing:
    """The packing of images with `before` fixed tokens, their own context tokens and N patches, in turn.

    Everything is computed on the mask's device, without a wait for it.

    Args:
        mask: (B, S) True where a context token is real; real ones come first.
        before: tokens in front of the context.
        patches: N.
        row: T, `row_length` of the number of real tokens.
    """
    B, S = mask.shape
    device = mask.device
    texts = mask.sum(1)  # (B,)
    lengths = texts + (before + patches)
    ends = lengths.cumsum(0)
    starts = ends - lengths
    place = torch.arange(row, device=device)
    image = torch.searchsorted(ends, place, right=True)  # (T,) in 0..B, B where it is filled up
    real = image < B
    image = image.clamp(max=B - 1)
    within = place - starts[image]
    padding = torch.where(within < before + texts[image], 0, S - texts[image])  # that is left out before it
    longest = before + S + patches
    rows = torch.where(real, image * longest + within + padding, 0)
    runs = torch.arange(1, runs_of_filling(row, longest) + 1, device=device)
    fill = torch.minimum(ends[-1] + longest * runs, row - runs.flip(0) + 1)  # no run is empty
    offsets = torch.cat([ends.new_zeros(1), ends, fill]).to(torch.int32)
    own = (starts + before + texts)[:, None] + torch.arange(patches, device=device)  # (B, N)
    weight = torch.where(real, 1.0 / (lengths[image] * B), 0.0)
    return Packing(rows, offsets, own.flatten(), weight, longest, B)


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor, longest_q: int, longest_k: int
) -> Tensor:
    """Attention within each of several sequences that lie in one row.

    On a GPU in bf16 or fp16 by PyTorch's variable-length flash attention. Elsewhere sequence by sequence,
    which is slow and there for comparison.

    Args:
        q: (Tq, H, d); k, v: (Tk, H, d).
        q_offsets, k_offsets: (n + 1,) int32, where each sequence begins, and where the last one ends.
        longest_q, longest_k: at least the tokens of the longest sequence.

    Returns:
        (Tq, H, d).
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, q_offsets, k_offsets, longest_q, longest_k)  # type: ignore[return-value]
    parts = []
    for (q0, q1), (k0, k1) in zip(pairwise(q_offsets.tolist()), pairwise(k_offsets.tolist()), strict=True):
        one, keys, values = (part.transpose(0, 1) for part in (q[q0:q1], k[k0:k1], v[k0:k1]))  # (H, …, d)
        parts.append(F.scaled_dot_product_attention(one, keys, values).transpose(0, 1))
    return torch.cat(parts)
