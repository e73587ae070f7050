"""The answers of an unfinished caption stage: appended as they come, read back one at a time.

A line is JSON: {"row": 3, "step": 1, "text": "…", "finish_reason": "stop"}, without `row` for an answer that
all images share, or {"row": 3, "error": "…"} for an image that failed. Only the lines' places are in memory.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from vap.captioning.replies import Answer

ERROR = 3  # column of the index; the steps 1 to 3 are columns 0 to 2


class Journal:
    """The journal of one run over `rows` images; use it as a context manager.

    What a power failure spoilt is cut off: everything from the first line that is no whole entry.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self._file = path.open("a+b", buffering=0)
        self._at = np.full((rows, 4), -1, np.int64)  # where the line stands, or -1
        self.shared: Answer | None = None  # step 2, for all images
        self.failed = 0  # images
        self._end = 0
        with path.open("rb") as lines:
            for line in lines:
                if not self._enter(line):
                    break
                self._end += len(line)
        os.truncate(path, self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _enter(self, line: bytes) -> bool:
        """Note the line that begins at the end; False where it is no whole entry."""
        try:
            entry: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            if "forget" in entry:
                self._at[:, ERROR] = -1
                self.failed = 0
            elif "row" not in entry:
                self.shared = Answer(entry["text"], entry["finish_reason"])
            else:  # an answer clears an error: the image was asked again after it had failed
                row, column = entry["row"], ERROR if "error" in entry else entry["step"] - 1
                self.failed += int(column == ERROR) - int(self._at[row, ERROR] >= 0)
                self._at[row, ERROR] = -1
                self._at[row, column] = self._end
        except (ValueError, LookupError, TypeError):
            return False
        return True

    def _append(self, entry: dict[str, Any]) -> None:
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
        rest = memoryview(line)
        while rest:  # a disk that fills up takes a part
            rest = rest[os.write(self._file.fileno(), rest) :]
        self._enter(line)
        self._end += len(line)

    def _read(self, row: int, column: int) -> Any:
        place = int(self._at[row, column])
        if place < 0:
            return None
        data = b""
        while b"\n" not in data:
            data += os.pread(self._file.fileno(), max(4096, len(data)), place + len(data))
        return json.loads(data[: data.index(b"\n")])

    # ── what is known ───────────────────────────────────────────────────────────────────────────

    def answer(self, row: int, step: int) -> Answer | None:
        """An image's answer to a question, or None."""
        entry = self._read(row, step - 1)
        return Answer(entry["text"], entry["finish_reason"]) if entry else None

    def error(self, row: int) -> str | None:
        """Why an image failed, or None."""
        entry = self._read(row, ERROR)
        return str(entry["error"]) if entry else None

    def open_rows(self, last_step: int) -> list[int]:
        """The images that neither have the answer to `last_step` nor failed, in order."""
        known = (self._at[:, last_step - 1] >= 0) | (self._at[:, ERROR] >= 0)
        return [int(row) for row in np.flatnonzero(~known)]

    # ── what comes ──────────────────────────────────────────────────────────────────────────────

    def add(self, row: int | None, step: int, answer: Answer) -> None:
        """Keep an answer; `row` is None for one that all images share."""
        place = {} if row is None else {"row": row}
        self._append({**place, "step": step, "text": answer.text, "finish_reason": answer.finish_reason})

    def fail(self, row: int, reason: str) -> None:
        """Keep that an image failed."""
        self._append({"row": row, "error": reason})

    def forget_failures(self) -> None:
        """Let the failed images be asked again."""
        self._append({"forget": "failures"})
