"""Work on a list of items in several threads, in order, a little ahead of where it is asked for.

Threads, not processes: Pillow decodes, resizes and encodes without the interpreter's lock, so that they
keep the processors busy, have nothing to copy, and none outlives a run that is killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Ahead(Generic[Item, Result]):
    """`work` of every item; memory holds two spans of results at most.

    Args:
        workers: threads; by default as many as processors.
    """

    def __init__(
        self, items: Sequence[Item], work: Callable[[Item], Result], workers: int | None = None
    ) -> None:
        self._items, self._work = items, work
        self._pool = ThreadPoolExecutor(workers or processors(), "ahead")
        self._results: dict[int, Future[Result]] = {}

    def __enter__(self) -> Ahead[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, span: range) -> list[Result]:
        """The results of `span`, in order; as many items that follow it are begun.

        Raises:
            the first error, in order, of `work`.
        """
        for i in range(span.start, min(span.stop + len(span), len(self._items))):
            if i not in self._results:
                self._results[i] = self._pool.submit(self._work, self._items[i])
        return [self._results.pop(i).result() for i in span]
