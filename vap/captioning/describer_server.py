"""An OpenAI-compatible HTTP server on loopback that answers with the measured describer.

with DescriberServer() as server:
    httpx.post(f"{server.url}/chat/completions", json=...)

python -m vap.captioning.describer_server --port 8101
"""

import argparse
import json
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from vap.captioning.describer_chat import MAX_MODEL_LEN, MODEL_ID, ChatError, bad_request, complete
from vap.common.errors import VapError

MAX_BODY = 64 * 1024 * 1024
_STARTED = int(time.time())

MODELS = {
    "object": "list",
    "data": [
        {
            "id": MODEL_ID,
            "object": "model",
            "created": _STARTED,
            "owned_by": "vap",
            "root": MODEL_ID,
            "parent": None,
            "max_model_len": MAX_MODEL_LEN,
            "permission": [],
        }
    ],
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, _Handler)
        self.open: set[socket.socket] = set()
        self.guard = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""

    def hang_up(self) -> None:
        """End the connections that clients keep alive."""
        with self.guard:
            for connection in self.open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 120
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.guard:
            self.server.open.add(self.connection)

    def finish(self) -> None:
        with self.server.guard:
            self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the client logs its own requests."""

    def _send(self, status: int, body: object = None) -> None:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        if data:
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self._send(200)
        elif path == "/v1/models":
            self._send(200, MODELS)
        elif path == "/v1/chat/completions":
            self._send(405, {"detail": "Method Not Allowed"})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY:
            self.close_connection = True
            self._send(413 if length.isdigit() else 411, {"detail": "Content-Length"})
            return
        raw = self.rfile.read(int(length))
        path = self.path.partition("?")[0]
        if path in ("/health", "/v1/models"):
            self._send(405, {"detail": "Method Not Allowed"})
        elif path != "/v1/chat/completions":
            self._send(404, {"detail": "Not Found"})
        else:
            self._send(*_answer(raw))


def _answer(raw: bytes) -> tuple[int, dict[str, Any]]:
    """(status, body) for the body of a chat completion request."""
    try:
        try:
            request = json.loads(raw)
        except ValueError as error:
            raise bad_request(f"JSON decode error: {error}") from error
        return 200, complete(request)
    except ChatError as error:
        return error.status, error.body
    except Exception as error:  # a server answers, whatever happens
        return 500, ChatError(500, str(error), "InternalServerError").body


class DescriberServer:
    """The server as a context manager; it serves from a daemon thread, on 127.0.0.1 only.

    Args:
        port: TCP port; 0 takes a free one.

    Raises:
        VapError: the port is taken or not allowed.
    """

    def __init__(self, port: int = 0) -> None:
        try:
            self._server = _Server(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            expected = "a free port on 127.0.0.1"
            raise VapError(f"port {port}", str(error), expected, "choose another, or 0") from error
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.hang_up()
            self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _stop_with_stdin(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main(argv: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m vap.captioning.describer_server")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0: a free one")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end when the process that started it ends"
    )
    options = parser.parse_args(argv)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = DescriberServer(options.port)
    except VapError as error:
        raise SystemExit(str(error)) from None
    if options.until_stdin_closes:
        threading.Thread(target=_stop_with_stdin, args=(stop,), daemon=True).start()
    with server:
        print(f"measured describer at {server.url}", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
