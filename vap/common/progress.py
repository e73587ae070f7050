"""Progress with a unit, a rate and an ETA: one line rewritten on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from vap.common.errors import plain

LOG_INTERVAL = 10.0  # seconds between lines that go to a file


def duration(seconds: float) -> str:
    """h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


class Progress:
    """Counts `total` units of work on standard error.

    Args:
        label: what is done, e.g. "train phantom-isic2018 vap".
        total: units in all.
        unit: e.g. "img", "step", "caption".
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = plain(label), total, unit
        self.done = self.skipped = 0
        self.start = time.monotonic()
        self._printed = self.start
        self._tty = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._print("", end=True)

    def skip(self, n: int) -> None:
        """Count units that an earlier, interrupted run did."""
        if not self.skipped:
            print(f"{self.label}: resumed", file=sys.stderr)
        self.skipped += n
        self.done += n

    def advance(self, n: int = 1, info: str = "") -> None:
        """Count `n` more units done; `info` is shown behind the rate."""
        self.done += n
        if time.monotonic() - self._printed >= (0.2 if self._tty else LOG_INTERVAL):
            self._print(info)

    def _print(self, info: str, end: bool = False) -> None:
        now = time.monotonic()
        rate = (self.done - self.skipped) / max(now - self.start, 1e-9)
        left = duration((self.total - self.done) / rate) if rate > 0 and not end else ""
        time_part = f"in {duration(now - self.start)}" if end else f"ETA {left or '?'}"
        line = f"{self.label}: {self.done}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {time_part}"
        line += f", {plain(info)}" if info else ""
        if self._tty:
            print(f"\r\033[K{line}", end="\n" if end else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
        self._printed = now
