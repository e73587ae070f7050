"""Batches made ahead in a thread, so that a GPU never waits for them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

AHEAD = 2  # batches
POLL = 0.1  # seconds


def prefetched(make: Callable[[int], T], start: int, stop: int, ahead: int = AHEAD) -> Iterator[T]:
    """make(start) … make(stop - 1) in order; an error of `make` comes where its batch would have come.

    Args:
        make: called in one other thread, one call at a time.
        ahead: batches that wait at most.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    over = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=POLL)
                break

    def work() -> None:
        for step in range(start, stop):
            if over.is_set():
                break
            try:
                put((make(step), None))
            except BaseException as error:
                put((None, error))
                break

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch  # type: ignore[misc]
    finally:
        over.set()
        thread.join()
