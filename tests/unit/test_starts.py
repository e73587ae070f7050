"""What a final convolution of U-ViT does to a short training: the published start, the identity, a shift."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import starts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, fresh_accelerate: None) -> Iterator[None]:
    sizes = {"WIDTH": 64, "DEPTH": 2, "BATCH": 16, "STEPS": 120, "LOGGED": [120]}
    for name, value in sizes.items():
        monkeypatch.setattr(starts, name, value)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(start: str, change: Callable[[Any], None] = starts.keep) -> dict[str, Any]:
    found = starts.trained(
        "uvit", {"final_init": start, "linear_init": "published"}, change, 0, starts.SmoothFields()
    )
    return {**found, "loss": found["loss"][120]}


def test_the_published_start_holds_the_loss_up_and_drifts_towards_a_shift() -> None:
    published, identity = run("published"), run("identity")
    assert published["loss"] > 1.5 * identity["loss"]
    assert published["off_centre_tap"] > 0.3
    assert identity["off_centre_tap"] < 0.15
    assert identity["uneven_error"] < 1.15


def test_a_convolution_that_shifts_leaves_noise_and_the_log_shows_it() -> None:
    """One column of each patch of 2 then belongs to a neighbour's token, which knows little of it."""
    found = run("identity", starts.shifted)
    assert found["uneven_error"] > 1.3
    left, right = (torch.tensor(found["columns"])[side::2].mean() for side in (0, 1))
    assert max(left, right) > 2 * min(left, right)
