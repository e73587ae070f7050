"""A job ends with the run that started it, and a killed run's lock holds nobody up.

A process that is killed with SIGKILL cannot end its children. So each job looks once a second whether its
owner is there: the nearest process above it that is no shell, that is Snakemake, DVC or `vap stage`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import IO

import psutil

from vap.common.errors import tell

VARIABLE = "VAP_OWNER"  # PID:START of the owner, for a job whose work the warm process does
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
LOOK = 1.0  # seconds
GRACE = 60.0  # seconds that a job has to save its state
ALIVE = Path(".snakemake/alive")
LOCKS = Path(".snakemake/locks")
_held: list[IO[str]] = []


def find() -> None:
    """Put this process's owner in its environment."""
    os.environ.pop(VARIABLE, None)
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            if process.name() not in SHELLS and process.pid > 1:
                os.environ[VARIABLE] = f"{process.pid}:{process.create_time()}"
                return


def end_with_it() -> None:
    """From now on, end this process and those below it when its owner ends: SIGTERM, after GRACE SIGKILL."""
    number, _, start = os.environ.pop(VARIABLE, "").partition(":")
    if number:
        threading.Thread(target=_watch, args=(int(number), float(start)), daemon=True).start()


def _watch(number: int, start: float) -> None:
    while _is_there(number, start):
        time.sleep(LOOK)
    with contextlib.suppress(OSError):
        tell(f"The run that started this (process {number}) has ended: ending too.")
    own = psutil.Process()
    below = own.children(recursive=True)
    for process in below or [own]:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    time.sleep(GRACE)
    for process in [*own.children(recursive=True), own]:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _is_there(number: int, start: float) -> bool:
    try:
        process = psutil.Process(number)
        return bool(abs(process.create_time() - start) < 1 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def take_over() -> None:
    """In Snakemake's main process: remove the locks that a killed run of Snakemake has left.

    Each main process holds a shared lock of the operating system on ALIVE as long as it lives; who gets it
    alone is the only one.
    """
    with contextlib.suppress(OSError):  # a file system without locks: Snakemake's own word counts
        ALIVE.parent.mkdir(exist_ok=True)
        file = ALIVE.open("a")
        _held.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another run is going on: Snakemake says whether they are in each other's way
        else:
            if LOCKS.is_dir() and any(LOCKS.iterdir()):
                tell("The last run of Snakemake was killed; its lock is taken over.")
                shutil.rmtree(LOCKS)
        fcntl.flock(file, fcntl.LOCK_SH)
