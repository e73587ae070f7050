"""Runs a command that must not outlive the process that started this one.

python -m vap.captioning.guard COMMAND …

The command gets a process group of its own. When this process's standard input closes, which the end of
the parent does however it ends, the group is asked to stop and, ten seconds later, killed. Should this
process itself be killed, Linux stops the command. Exit status: the command's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE = 10.0  # seconds between asking and killing
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """In the child, before it becomes the command: SIGTERM when the parent dies (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Whether the group still had a process to get the signal."""
    try:
        os.killpg(process.pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and _signal_group(process, 0):
        process.poll()
        time.sleep(0.05)
    _signal_group(process, signal.SIGKILL)


def main(command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the parent decides: its end closes our standard input
    null = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=null, process_group=0, preexec_fn=_die_with_parent)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        _stop(process)

    threading.Thread(target=watch, daemon=True).start()
    status = process.wait()
    _stop(process)  # what the command left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
