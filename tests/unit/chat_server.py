"""A small OpenAI-compatible server on loopback that follows a script, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROP = "drop"  # close the connection without an answer
TEAR = "tear"  # close it in the middle of an answer
Reply = (
    Any  # DROP, TEAR, (status, body), (status, body, headers), or a function of the request to one of these
)


def answer(text: str | None, reason: str | None = "stop", **usage: int) -> tuple[int, dict[str, Any]]:
    message = {"role": "assistant", "content": text}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}


class ChatServer:
    """Replies in the script's order, then with its last reply for ever.

    Attributes:
        requests, headers: of each chat request, as they came.
        models, health: the replies of GET /v1/models and /health.
    """

    def __init__(self, script: list[Reply], port: int = 0) -> None:
        self.script, self.requests, self.headers = script, [], []
        self.models: Reply = (404, b"")
        self.health: Reply = (200, b"")
        self.guard = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.guard:
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    number = min(len(outer.requests), len(outer.script)) - 1
                reply = outer.script[number]
                self.reply(reply(body) if callable(reply) else reply)

            def do_GET(self) -> None:
                self.reply({"/v1/models": outer.models, "/health": outer.health}[self.path])

            def reply(self, reply: Reply) -> None:
                if reply == DROP:
                    self.close_connection = True
                    return
                torn = reply == TEAR
                status, content, *more = answer("half of it") if torn else reply
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (more[0] if more else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if torn else data)
                self.close_connection |= torn

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def forget(self) -> None:
        """Count from nothing, once what a stopped client had in flight has arrived."""
        seen = -1
        while seen != len(self.requests):
            seen = len(self.requests)
            time.sleep(0.2)
        self.requests.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def chat_server(*script: Reply | Callable[[dict[str, Any]], Reply], port: int = 0) -> Iterator[ChatServer]:
    server = ChatServer(list(script), port)
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        yield server
    finally:
        server.close()
