"""What the benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Two measurements of the same work.

    Attributes:
        ours, reference: in `unit`.
        unit: a rate ("img/s": higher is better) or a time ("s": lower is better).
    """

    ours: float
    reference: float
    unit: str

    @property
    def ratio(self) -> float:
        """Above 1 where ours is better."""
        if self.unit == "s":
            return self.reference / self.ours
        return self.ours / self.reference


def best_time(work: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
