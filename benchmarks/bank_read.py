"""Random batches of 64 descriptions, padded, with their mask, in the dtype that training reads: the
prompt bank against .npy files of 256 x 768 float32, one a description (20,000, where the disk has room for
their 15.7 GB).

The page cache decides. The row is training on a machine whose memory holds the bank (2.5 GB in fp16, the
default) and not the files: the cache is emptied of the files, and the bank was read once. The details have
the other cases, and the other dtypes: `from_disk`, with the cache emptied of both, and `cached`, with both in
it. Cached rates are of CPU time: nothing is waited for, and what else the machine does disturbs less.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.bank_size import CAPTIONS, PADDED, WIDTH, write_bank
from benchmarks.common import Result, sized

BATCH, BATCHES, ROUNDS = 64, sized(40, 2), sized(5, 1)
SPARE = 8e9  # bytes of disk to leave alone


def write_files(folder: Path) -> int:
    """As many of the .npy files as the disk has room for, at most 20,000."""
    room = shutil.disk_usage(folder).free - SPARE
    n = min(CAPTIONS, int(room // (PADDED * WIDTH * 4 + 4096)))
    states = np.random.default_rng(0).standard_normal((PADDED, WIDTH), np.float32)
    for i in range(n):
        states[0, 0] = i
        np.save(folder / f"{i}.npy", states)
    return n


def forget(paths: list[Path]) -> None:
    """Empty the page cache of these files."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(read: Callable[[list[int]], object], batches: list[list[int]], clock: Callable[[], float]) -> float:
    """Descriptions a second of `clock`."""
    start = clock()
    for batch in batches:
        read(batch)
    return len(batches) * BATCH / (clock() - start)


def run() -> Result:
    from vap.prompts.bank import PromptBank

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = write_files(folder)
        rng = np.random.default_rng(1)
        batches = [rng.integers(1, n, BATCH).tolist() for _ in range(BATCHES)]
        files = [folder / f"{i}.npy" for batch in batches for i in batch]

        def reference(rows: list[int]) -> Tensor:
            return torch.from_numpy(np.stack([np.load(folder / f"{i}.npy") for i in rows]))

        sources: dict[str, Callable[[list[int]], object]] = {".npy": reference}
        paths = {".npy": files}
        for dtype in ("fp16", "bf16", "int8"):
            path = write_bank(folder / f"{dtype}.arrow", dtype)
            bank = PromptBank(path)
            sources[dtype], paths[dtype] = partial(bank.collate, dtype=bank.native), [path]
        from_disk, cached = {}, dict.fromkeys(sources, 0.0)
        for source, read in sources.items():
            forget(paths[source])
            from_disk[source] = rate(read, batches, time.perf_counter)
        steady = {source: rate(read, batches, time.perf_counter) for source, read in sources.items()}
        for _ in range(ROUNDS):  # in turn, so that what else the machine does is shared
            for source, read in sources.items():
                cached[source] = max(cached[source], rate(read, batches, time.process_time))
    details: dict[str, float] = {"files": n}
    for source in sources:
        details[f"{source}_from_disk"], details[f"{source}_cached"] = from_disk[source], cached[source]
        if source != ".npy":
            details[f"{source}_ratio"] = steady[source] / from_disk[".npy"]
            details[f"{source}_ratio_from_disk"] = from_disk[source] / from_disk[".npy"]
            details[f"{source}_ratio_cached"] = cached[source] / cached[".npy"]
    return Result(steady["fp16"], from_disk[".npy"], "captions/s", details)
