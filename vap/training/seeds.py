"""Random numbers of a training step, as a function of seed and step."""

from __future__ import annotations

import numpy as np
import torch


def step_seed(seed: int, step: int, *stream: int) -> int:
    """A number of 63 bits for one training step, and for each of its `stream`s another."""
    state = np.random.SeedSequence([seed, step, *stream]).generate_state(2, np.uint64)
    return int(state[0]) & (2**63 - 1)


def step_generator(seed: int, step: int, *stream: int) -> torch.Generator:
    """The random source of one training step, the same in every process."""
    return torch.Generator().manual_seed(step_seed(seed, step, *stream))
