"""Several processes of one command on one machine: `compute.processes` of params.yaml.

Each process finds its place in the variables that torch.distributed and accelerate read (RANK, WORLD_SIZE,
…), so `accelerate launch -m vap train …` works as well, on many machines too.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vap.common.errors import Stopped, VapError

POLL = 0.1  # seconds
GRACE = 5.0  # seconds that the others have to end by themselves when one has failed


def launched_together(processes: int, command: list[str]) -> bool:
    """Run `command` in several processes and wait for all; False where this process is to do the work itself.

    Args:
        processes: how many; 1 starts none.
        command: arguments of `vap`, e.g. ["train", "isic2018", "vap"].

    Raises:
        VapError: a process failed; the line is the process's own.
        Stopped: they were told to stop.
    """
    if processes == 1 or "RANK" in os.environ:
        return False
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(processes)]
        running: list[subprocess.Popen[bytes]] = []
        old = signal.getsignal(signal.SIGTERM)
        told: list[int] = []

        def forward(number: int, _frame: object) -> None:
            told.append(number)
            for process in running:
                process.send_signal(number)

        signal.signal(signal.SIGTERM, forward)
        try:
            for rank in range(processes):
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
                place |= {"LOCAL_WORLD_SIZE": processes}
                environment = {name: str(value) for name, value in place.items()}
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "vap", *command],
                        env={**os.environ, **environment, "MASTER_ADDR": "127.0.0.1"},
                        stderr=None if rank == 0 else logs[rank].open("wb"),  # one voice is enough
                    )
                )
            patience, first = GRACE, None
            while any(process.poll() is None for process in running) and patience > 0:
                first = next((r for r, p in enumerate(running) if p.poll()), None) if first is None else first
                if first is not None:
                    patience -= POLL  # it failed: the others would wait for it for ever
                time.sleep(POLL)
        finally:
            for process in running:
                if process.poll() is None and not told:
                    process.terminate()
            for process in running:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            signal.signal(signal.SIGTERM, old)
        if told:
            raise Stopped(f"vap {' '.join(command)}: stopped; the next run goes on from the last checkpoint")
        codes = [process.returncode for process in running]
        if any(codes):
            failed = first if first is not None else next(r for r, code in enumerate(codes) if code)
            if failed == 0 and codes[0] > 0:
                sys.exit(codes[0])  # it has said why
            said = logs[failed].read_text(errors="replace").split("\n") if failed else []
            raise VapError(
                f"process {failed} of {processes}",
                f"exit status {codes[failed]}: {next((x for x in reversed(said) if x), 'no word')}",
                "exit status 0",
                "mend that, then run again: it goes on from the last checkpoint",
            )
    return True
