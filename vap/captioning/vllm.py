"""`vllm serve` as a process of the caption stage: started, watched, started again where it dies."""

from __future__ import annotations

import asyncio
import collections
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from vap.captioning.replies import KEY_VARIABLE
from vap.common.errors import VapError, tell
from vap.params import VllmParams

HOST = "127.0.0.1"
RESTARTS = 3  # in one run of the stage
LAST_LINES = 15  # of the log that are shown when the server died
PLAIN: Any = {"trust_env": False, "verify": False}  # loopback: no proxy, no certificates to load
POLL = 0.25  # seconds between looks at /health
PATIENCE = 20.0  # seconds for the guard to end the server


class Vllm:
    """A vLLM server on loopback; use it as a context manager. It ends with the block, and with this process.

    Args:
        settings: caption.vllm of params.yaml.
        model: the name under which the model is served (caption.model), and what is loaded where
            settings.model is None.
        log: the file for the server's output; appended to.

    Raises:
        VapError: the command is not there, or the server does not answer in time.
    """

    def __init__(self, settings: VllmParams, model: str, log: Path) -> None:
        self.settings, self.model, self.log = settings, model, log
        self.restarts = 0
        self._begin = 0.0  # monotonic, of the last start
        self._process: subprocess.Popen[bytes] | None = None
        self._mending = asyncio.Lock()
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://{HOST}:{self.port}/v1"

    def command(self) -> list[str]:
        """The command line of the server.

        Raises:
            VapError: there is no such program.
        """
        s = self.settings
        program = shutil.which(s.command)
        if program is None:
            where = f"params.yaml: caption.vllm.command: {s.command}"
            fix = "install vLLM in an environment of its own and name its vllm"
            raise VapError(where, "no such program", "the vllm executable", fix)
        options = {
            "--served-model-name": self.model,
            "--host": HOST,
            "--port": self.port,
            "--dtype": s.dtype,
            "--tensor-parallel-size": s.tensor_parallel_size,
            "--data-parallel-size": s.data_parallel_size,
            "--max-model-len": s.max_model_len,
            "--revision": s.revision,
        }
        given = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
        return [program, "serve", s.model or self.model, *given, *s.args]

    def __enter__(self) -> Self:
        try:
            self._launch()
            while not self._ready():
                time.sleep(POLL)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _launch(self) -> None:
        command = self.command()
        inherited = {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}
        self._begin = time.monotonic()
        tell(f"vllm: starting {self.settings.model or self.model} (log: {self.log})")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vap.captioning.guard", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, **self.settings.env},
                start_new_session=True,  # Ctrl-C is for this process; the server ends with it
            )

    def _ready(self) -> bool:
        """Whether the server answers now.

        Raises:
            VapError: it has died, or took too long.
        """
        assert self._process is not None
        try:
            ready = httpx.get(f"http://{HOST}:{self.port}/health", **PLAIN).status_code == 200
        except httpx.TransportError:
            ready = False
        passed = time.monotonic() - self._begin
        if ready:
            tell(f"vllm: ready after {passed:.0f} s")
        elif self._process.poll() is not None:
            raise self._died(f"exit status {self._process.returncode} before it answered")
        elif passed > self.settings.start_timeout:
            raise self._died(f"no answer from /health in {self.settings.start_timeout:g} s")
        return ready

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    async def recover(self) -> bool:
        """Start the server again if it has died; True where it had.

        Raises:
            VapError: it has died too often, or does not start again.
        """
        before = self.restarts
        async with self._mending:
            if self.restarts > before:
                return True  # another request has seen to it
            if self._process is None or self._process.poll() is None:
                return False
            if self.restarts >= RESTARTS:
                raise self._died(f"its death after {RESTARTS} restarts")
            self._show(f"died (exit status {self._process.returncode}); starting it again. Its last lines:")
            self._stop()
            self._launch()
            while not self._ready():
                await asyncio.sleep(POLL)
            self.restarts += 1
            return True

    def _show(self, what: str) -> list[str]:
        """Print the log's last lines; they are returned too."""
        with self.log.open(encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip() for line in collections.deque(file, LAST_LINES)]
        tell("\n".join([f"vllm: {what}", *(f"  {line}" for line in lines)]))
        return lines

    def _died(self, found: str) -> VapError:
        lines = self._show(f"{found}; the last lines of {self.log}:")
        why = next((line for line in reversed(lines) if "Error" in line), "")
        return VapError(
            f"vllm serve {self.settings.model or self.model}",
            f"{found}{f': {why[-200:]}' if why else ''}",
            "a server on loopback",
            f"see {self.log} and caption.vllm of params.yaml",
        )
