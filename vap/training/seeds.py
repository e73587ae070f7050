"""Random numbers of a training step, as a function of seed and step."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

# streams of a step beside that of its batch, which has no number; none is 0, which is the same as no number
GENERATOR, DISCRIMINATOR, REAL = 1, 2, 3  # what an adversarial step draws
DROPOUT = 4  # what a network leaves out

SAMPLES = 2**32 - 1  # in the place of a step: the noise that samples begin with


def step_seed(seed: int, step: int, *stream: int) -> int:
    """A number of 63 bits for one training step, and for each of its `stream`s another."""
    state = np.random.SeedSequence([seed, step, *stream]).generate_state(2, np.uint64)
    return int(state[0]) & (2**63 - 1)


def step_generator(seed: int, step: int, *stream: int) -> torch.Generator:
    """The random source of one training step, the same in every process."""
    return torch.Generator().manual_seed(step_seed(seed, step, *stream))


def shuffled(start: int, length: int, n: int, *key: int) -> npt.NDArray[np.int64]:
    """Places start … start + length - 1 of an endless sequence: a permutation of 0 … n - 1 after another.

    Args:
        key: seed and stream; each has a sequence of its own.
    """
    places = range(start, start + length)
    return np.asarray([_permutation(n, *key, place // n)[place % n] for place in places], np.int64)


@lru_cache(maxsize=4)
def _permutation(n: int, *key: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(key).permutation(n)
