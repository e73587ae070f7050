"""Random numbers of a training step, as a function of seed and step."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random source of one training step, the same in every process."""
    state = np.random.SeedSequence([seed, step]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) & (2**63 - 1))
