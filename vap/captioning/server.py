"""The servers that the caption stage asks: those that params.yaml names, or one that it starts itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vap.captioning.client import Recover
from vap.captioning.vllm import Vllm
from vap.common.errors import VapError
from vap.params import CaptionParams


@dataclass(frozen=True)
class Served:
    """Where to ask.

    Attributes:
        urls: base URLs.
        recover: makes a server of ours that has died live again.
    """

    urls: list[str]
    recover: Recover | None = None


@contextlib.contextmanager
def serving(settings: CaptionParams, log: Path) -> Iterator[Served]:
    """The servers of caption.server; one of our own lives as long as the block.

    Args:
        log: the file for the output of a vLLM server.

    Raises:
        VapError: a server does not start.
    """
    if settings.server == "measured":
        with measured_describer() as url:
            yield Served([url])
    elif settings.server == "vllm":
        with Vllm(settings.vllm, settings.model, log) as vllm:
            yield Served([vllm.url], vllm.recover)
    else:
        yield Served([settings.server] if isinstance(settings.server, str) else settings.server)


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
