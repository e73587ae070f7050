"""Reused memory: never while anybody holds a part of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vap.prompts.buffers import Buffers


def test_a_dropped_batch_gives_its_memory_to_the_next() -> None:
    buffers = Buffers()
    place = buffers.empty(10, 4).data_ptr()
    assert buffers.empty(10, 4).data_ptr() == place
    assert buffers.empty(7, 4).data_ptr() == place  # a smaller one fits too
    assert buffers.empty(7, 4).shape == (7, 4)


@pytest.mark.parametrize(
    "keep",
    [
        lambda x: x,
        lambda x: x[3:4],
        lambda x: x.T,
        lambda x: x.view(20, 2).unbind()[5],
        lambda x: x.numpy(),
        lambda x: torch.nn.functional.linear(x, torch.ones(1, 4, requires_grad=True)).grad_fn,
    ],
)
def test_memory_that_is_still_looked_at_is_not_given_away(keep: Callable[[Tensor], object]) -> None:
    buffers = Buffers()
    batch = buffers.empty(10, 4).fill_(1)
    place, kept = batch.data_ptr(), keep(batch)
    del batch
    assert buffers.empty(10, 4).data_ptr() != place
    del kept
    assert place in {buffers.empty(10, 4).data_ptr() for _ in range(2)}


def test_more_batches_than_buffers() -> None:
    buffers = Buffers(most=2)
    held = [buffers.empty(3, 2).fill_(i) for i in range(5)]
    assert [int(batch.sum()) for batch in held] == [0, 6, 12, 18, 24]
