"""One process that has imported the heavy libraries, for the jobs of one run of Snakemake on this machine.

torch, diffusers and timm take 3 to 10 s to import, and a table takes a hundred jobs. The warm process imports
them once; each `vap` command that finds it (variable VAP_WARM: its socket) sends its arguments, folder,
environment and open files, and a fork of it does the work. It never imports a module of this project, so
that a job always runs the code on disk. Where it is not there, does not answer or was started under other
settings, the command does its work itself: the results are the same bytes.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "VAP_WARM"
LIBRARIES = (
    "dvc.cli",
    "dvc.commands.repro",
    "torch",
    "numpy",
    "PIL.Image",
    "pyarrow.compute",
    "pydantic",
    "rich.progress",
    "typer",
    "yaml",
    "safetensors.torch",
    "scipy.ndimage",
    "scipy.special",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.autoencoders.autoencoder_tiny",
    "diffusers.models.unets.unet_2d",
    "diffusers.models.unets.unet_2d_condition",
    "accelerate",
    "torchvision",
    "timm",
    "transformers.models.auto.modeling_auto",
    "skimage.metrics",
)
# What a library reads when it is imported: where these differ, a job does not start from the warm process.
READ_AT_IMPORT = ("ARROW_", "CUDA_", "HF_", "KMP_", "LD_", "MKL_", "OMP_", "OPENBLAS_", "PYTHON", "TORCH_")
# How Snakemake tells the libraries of a job its `threads`, of which no rule here has more than one.
THREADS = ("GOTO", "MKL", "NUMEXPR", "OMP", "OPENBLAS")
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
LENGTH = struct.Struct("!I")


# ── the command's side ────────────────────────────────────────────────────────────────────────────


def hand_over(arguments: list[str]) -> int | None:
    """Have the warm process run `vap` with these arguments, in this folder, with these open files.

    Signals go to the fork that does the work; if this process is killed, so is the fork.

    Returns:
        Its exit status (128 + the signal's number where one ended it), or None: do the work here.
    """
    place = os.environ.get(VARIABLE)
    if not place:
        return None
    request = {
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "prefix": sys.prefix,
    }
    body = json.dumps(request).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(place)
            socket.send_fds(line, [LENGTH.pack(len(body))], [0, 1, 2])
            line.sendall(body)
            if line.recv(1) != b"y":
                return None
        except OSError:
            return None

        def forward(number: int, _frame: object) -> None:
            with suppress(OSError):
                line.sendall(bytes([number]))

        before = {number: signal.signal(number, forward) for number in FORWARDED}
        try:
            answer = _receive(line, LENGTH.size)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    if answer is None:
        print("error: the warm process of this run ended; run again", file=sys.stderr)
        return 1
    status: int = LENGTH.unpack(answer)[0]
    return status


def _receive(line: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes, or None where the other side ends first."""
    found = b""
    while len(found) < size:
        try:
            part = line.recv(size - len(found))
        except ConnectionError:
            return None
        if not part:
            return None
        found += part
    return found


# ── the run's side ────────────────────────────────────────────────────────────────────────────────


def worth_it(device: str) -> bool:
    """Whether a run on this machine gains: on a CPU alone, since what has touched a GPU must not fork."""
    return sys.platform == "linux" and (
        device == "cpu" or (device == "auto" and not any(Path("/dev").glob("nvidia[0-9]*")))
    )


def start() -> subprocess.Popen[bytes] | None:
    """Start the warm process, name its socket in this process's environment, and return at once.

    It serves when its imports are done, 10 to 20 s later, and ends with this process, after the jobs that it
    still runs. Returns None where there is one already.
    """
    if VARIABLE in os.environ:
        return None
    folder = tempfile.mkdtemp(prefix="vap-warm-")
    os.environ[VARIABLE] = str(Path(folder) / "socket")
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "vap.workflow.warm", folder],
        env={**os.environ, **{f"{library}_NUM_THREADS": "1" for library in THREADS}},
        stdin=subprocess.PIPE,  # never written to: it ends when this process does
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C goes to the commands, and they send it on
    )


# ── the warm process ──────────────────────────────────────────────────────────────────────────────


class WarmProcess:
    """Forks a process for each request, sends signals on and exit statuses back.

    Args:
        folder: of the socket; removed at the end.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[int, socket.socket] = {}  # process id -> the command that waits for it
        self.open = True
        self.wake, self.woken = socket.socketpair()
        for end in (self.wake, self.woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake.fileno(), warn_on_full_buffer=False)
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.door.bind(str(folder / "socket"))
        self.door.listen(64)
        self.events = selectors.DefaultSelector()
        self.events.register(self.door, selectors.EVENT_READ, self._accept)
        self.events.register(self.woken, selectors.EVENT_READ, self._reap)
        self.events.register(0, selectors.EVENT_READ, self._owner_ended)

    def serve(self) -> list[str] | None:
        """Until the owner has ended and all jobs are done.

        Returns:
            In a fork, the arguments of the command that it is to run; None in the warm process itself.
        """
        while self.open or self.jobs:
            for key, _ in self.events.select():
                arguments: list[str] | None = key.data(key.fileobj)
                if arguments is not None:
                    return arguments
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def _accept(self, door: socket.socket) -> list[str] | None:
        line, _ = door.accept()
        line.settimeout(10.0)
        files: list[int] = []
        try:
            head, files, _, _ = socket.recv_fds(line, LENGTH.size, 3)
            body = _receive(line, LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else None
            request = None if body is None else json.loads(body)
            if request is None or len(files) != 3 or not _alike(request):
                line.close()
                return None
            line.sendall(b"y")
            line.settimeout(None)
            child = os.fork()
            if child == 0:
                line.close()
                self._become(request, files)
                arguments: list[str] = request["arguments"]
                return arguments
        except (OSError, ValueError):
            line.close()
            return None
        finally:
            for file in files:
                os.close(file)
        self.jobs[child] = line
        self.events.register(line, selectors.EVENT_READ, self._hear)
        return None

    def _become(self, request: dict[str, Any], files: list[int]) -> None:
        """In the fork: the command's open files, folder and environment in place of the warm process's."""
        signal.set_wakeup_fd(-1)
        for forwarded in (*FORWARDED, signal.SIGCHLD):
            signal.signal(forwarded, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.events.close()
        for end in (self.door, self.wake, self.woken, *self.jobs.values()):
            end.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])

    def _hear(self, line: socket.socket) -> None:
        """A signal for a job; or its command is gone, and the job with it."""
        job = next(process for process, other in self.jobs.items() if other is line)
        try:
            numbers = line.recv(16)
        except ConnectionError:
            numbers = b""
        for number in numbers or bytes([signal.SIGKILL]):
            with suppress(ProcessLookupError):
                os.kill(job, number)
        if not numbers:
            self.events.unregister(line)

    def _reap(self, woken: socket.socket) -> None:
        with suppress(BlockingIOError):
            while woken.recv(4096):
                pass
        while self.jobs:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            line = self.jobs.pop(process)
            with suppress(KeyError):
                self.events.unregister(line)
            code = os.waitstatus_to_exitcode(status)
            with suppress(OSError):
                line.sendall(LENGTH.pack(code if code >= 0 else 128 - code))
            line.close()

    def _owner_ended(self, _stdin: int) -> None:
        self.events.unregister(0)
        self.events.unregister(self.door)
        self.door.close()
        self.open = False


def _alike(request: dict[str, Any]) -> bool:
    """Whether what the libraries read at import is the same there as here."""
    mine, other = (
        {name: value for name, value in variables.items() if name.startswith(READ_AT_IMPORT)}
        for variables in (os.environ, request["environment"])
    )
    return mine == other and bool(request["prefix"] == sys.prefix)


def _end(command: Callable[[], None]) -> NoReturn:
    """Run a command and exit as Python does, but without taking a thousand imported modules apart: 1 s."""
    status = 0
    try:
        command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def main() -> None:
    """Import, then serve; in a fork, be `vap`."""
    folder = Path(sys.argv[1])
    owner = os.getppid()
    for ignored in FORWARDED:
        signal.signal(ignored, signal.SIG_IGN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in LIBRARIES:
            with suppress(ImportError):  # the job that needs it says so
                importlib.import_module(library)
            if os.getppid() != owner:  # a run that was short
                shutil.rmtree(folder, ignore_errors=True)
                return
    gc.collect()
    gc.freeze()  # what is there is no garbage: forks share its memory
    arguments = WarmProcess(folder).serve()
    if arguments is None:
        _end(lambda: None)
    sys.argv = ["vap", *arguments]
    _end(importlib.import_module("vap.cli").main_here)  # by name: the command line stands above this room


if __name__ == "__main__":
    main()
