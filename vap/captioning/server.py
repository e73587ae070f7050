"""The servers that the caption stage starts itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

from vap.errors import VapError


@contextlib.contextmanager
def measured_describer() -> Iterator[str]:
    """The built-in describer as a process of its own on loopback; yields its base URL.

    It ends with the block, and also when this process is killed, because its standard input closes then.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "vap.captioning.describer_server", "--port", "0", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "http://" not in line:
            raise VapError(
                "the measured describer",
                f"no server (exit status {process.wait()})",
                "a server on loopback",
                "run `python -m vap.captioning.describer_server` to see why",
            )
        yield line.split()[-1]
    finally:
        process.stdin.close()
        process.terminate()
        process.wait()
        process.stdout.close()
