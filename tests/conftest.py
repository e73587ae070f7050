"""One CPU thread a process, set before any library reads it: tests share their machine. Shared fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")


@pytest.fixture
def torch_settings() -> Iterator[None]:
    """What a stage sets in torch for its whole process is put back after the test."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """accelerate holds one precision a process: it forgets it before and after the test."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
