"""What a server's reply to a chat request means: an answer, a trouble to try again, or the end.

| reply | meaning |
|---|---|
| 200 with text | an answer, also where max_tokens cut it (finish_reason length) |
| 200 without text | tried again a little, then this image failed |
| 200, finish_reason content_filter; 400, 413, 422, 451 | this image failed |
| 200, finish_reason abort, error or none: the server was stopping | tried again |
| 500, no answer in time, a connection that drops | tried again; then this image failed, if the server lives |
| 408, 409, 425, 429, 502, 503, 504, no connection | tried again; then the server is gone: the end |
| 200 that is no chat completion, 401, 403, 404, any other | the end, at once |
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from vap.errors import VapError

KEY_VARIABLE = "VAP_CAPTION_API_KEY"
REFUSES_REQUEST = frozenset({400, 413, 422, 451})
SERVER_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
STOPPING = frozenset({"", "abort", "error"})  # finish_reason of an answer that a stopping server cut
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask to be left alone


@dataclass(frozen=True)
class Reply:
    """A whole HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str  # "stop", or "length" where max_tokens cut it
    tokens: int | None = None  # of the answer, where the server counts them


@dataclass(frozen=True)
class Trouble:
    """No answer this time.

    Attributes:
        kind: empty (no text), request (perhaps this request's own fault), server (never the request's).
        words: what happened.
        retry_after: seconds that the server asked for.
    """

    kind: Literal["empty", "request", "server"]
    words: str
    retry_after: float = 0.0


class ImageFailed(Exception):
    """This request gets no answer, however often it is asked; another image's may."""


class Key:
    """The key from the environment (VAP_CAPTION_API_KEY), if any; it is in no log and no artefact.

    Raises:
        VapError: it has characters that no header can carry.
    """

    def __init__(self) -> None:
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise VapError(KEY_VARIABLE, "other than printable ASCII characters", "a key", "set it again")

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    def clean(self, text: str) -> str:
        """A server may repeat the key; no line of ours does."""
        return text.replace(self._key, "***") if self._key else text


def failure(error: aiohttp.ClientError | OSError, key: Key) -> Trouble:
    """The meaning of a request that got no whole reply."""
    words = " ".join(key.clean(f"{type(error).__name__} {error}").split())
    nowhere = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    return Trouble("server" if nowhere else "request", words)


def meaning(response: Reply, url: str, key: Key) -> Answer | Trouble:
    """The meaning of a whole reply.

    Raises:
        ImageFailed: the server refuses this request.
        VapError: the server refuses all requests, or is no chat server.
    """
    status = response.status
    if status == 200:
        return _answer(response, url, key)
    words = f"HTTP {status} ({message(response, key)})"
    if status in REFUSES_REQUEST:
        raise ImageFailed(words)
    if status == 500:
        return Trouble("request", words)
    if status in SERVER_BUSY:
        return Trouble("server", words, _retry_after(response))
    fix = "check caption.server and caption.model"
    raise VapError(url, words, "an answer", fix + (f", and {KEY_VARIABLE}" if status in (401, 403) else ""))


def _answer(response: Reply, url: str, key: Key) -> Answer | Trouble:
    try:
        body = json.loads(response.body)
        choice = body["choices"][0]
        text, reason = choice["message"]["content"] or "", choice["finish_reason"] or ""
        if not (isinstance(text, str) and isinstance(reason, str)):
            raise TypeError
        tokens = (body.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError):
        start = " ".join(key.clean(response.text).split())[:80]
        found = f"HTTP 200 with no chat completion ({start})"
        fix = "check that caption.server is the base URL, which ends in /v1"
        raise VapError(url, found, "an OpenAI-compatible server", fix) from None
    text = text.encode("utf-8", "replace").decode().strip()  # no lone surrogates
    if reason == "content_filter":
        raise ImageFailed("the server filtered the answer (finish_reason content_filter)")
    if reason in STOPPING:
        return Trouble("request", f"an answer that was broken off (finish_reason {reason or 'null'})")
    if not text:
        return Trouble("empty", f"an empty answer (finish_reason {reason})")
    return Answer(text, reason, tokens if isinstance(tokens, int) else None)


def message(response: Reply, key: Key) -> str:
    """The server's own words, without the key, then shortened; its error may be an object or a string."""
    try:
        error: Any = json.loads(response.body)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, AttributeError):
        text = response.text
    return " ".join(key.clean(text.encode("utf-8", "replace").decode()).split())[:200]


def _retry_after(response: Reply) -> float:
    """Seconds of a Retry-After header, in either of its forms; 0 without one."""
    value = response.headers.get("Retry-After", "").strip()
    seconds = 0.0
    with contextlib.suppress(ValueError, OverflowError):
        if value.replace(".", "", 1).isdigit():
            seconds = float(value)
        elif value:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
