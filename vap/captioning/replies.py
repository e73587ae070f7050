"""What a server's reply to a chat request means: an answer, a trouble to try again, or the end.

| reply | meaning |
|---|---|
| 200 with text | an answer, also where max_tokens cut it (finish_reason length) |
| 200 without text, or with nothing after a model's thoughts | tried again a little, then this image failed |
| 200 with an error in its body | as the status that the error's code names; without one as 500 |
| 200 without a choice, or with a refusal | this image failed, with the server's words |
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
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp

from vap.common.errors import VapError

KEY_VARIABLE = "VAP_CAPTION_API_KEY"
REFUSES_REQUEST = frozenset({400, 413, 422, 451})
SERVER_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504})
STOPPING = frozenset({"", "abort", "error"})  # finish_reason of an answer that a stopping server cut
_TAG = "[<◁]{}(?:think|thinking|thought|thoughts|reasoning)[>▷]"
OPENING = re.compile(_TAG.format(""), re.IGNORECASE)
CLOSING = re.compile(_TAG.format("/"), re.IGNORECASE)
THOUGHTS = re.compile(f"{_TAG.format('')}.*?{_TAG.format('/')}", re.IGNORECASE | re.DOTALL)
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
        if body.get("error"):
            return _error_inside(response, body["error"], url, key)
        choices = body["choices"]
        if not choices:
            raise ImageFailed(f"the server gave no choice of an answer ({message(response, key)})")
        told, reason = choices[0]["message"], choices[0].get("finish_reason", "stop") or ""
        text, refusal = _text_of(told.get("content")), told.get("refusal")
        if not (isinstance(text, str) and isinstance(reason, str)):
            raise TypeError
        tokens = (body.get("usage") or {}).get("completion_tokens")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        start = " ".join(key.clean(response.text).split())[:80]
        found = f"HTTP 200 with no chat completion ({start})"
        fix = "check that caption.server is the base URL, which ends in /v1"
        raise VapError(url, found, "an OpenAI-compatible server", fix) from None
    if refusal and not text:
        raise ImageFailed(f"the model refused: {' '.join(key.clean(str(refusal)).split())[:200]}")
    whole = text.encode("utf-8", "replace").decode()  # no lone surrogates
    text = without_thoughts(whole)
    if reason == "content_filter":
        raise ImageFailed("the server filtered the answer (finish_reason content_filter)")
    if reason in STOPPING:
        return Trouble("request", f"an answer that was broken off (finish_reason {reason or 'null'})")
    if not text and whole.strip():
        fix = "raise caption.max_tokens, or turn the model's thinking off"
        return Trouble("empty", f"thoughts and no answer after them (finish_reason {reason}): {fix}")
    if not text:
        return Trouble("empty", f"an empty answer (finish_reason {reason})")
    return Answer(text, reason, tokens if isinstance(tokens, int) else None)


def _error_inside(response: Reply, error: Any, url: str, key: Key) -> Answer | Trouble:
    """An error in the body of a 200, as gateways send it: what its own code would have meant as a status."""
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else 500
    if not 400 <= status <= 599:
        status = 500
    return meaning(Reply(status, response.headers, response.body), url, key)


def _text_of(content: Any) -> Any:
    """The text of a message's content: a string, a list of parts of which some are text, or nothing."""
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content or ""


def without_thoughts(text: str) -> str:
    """What a reasoning model says after its thoughts, stripped; "" where they were never closed.

    Thoughts stand between <think> and </think>, or another word of THOUGHTS; some servers leave the opening
    one out, since the prompt ends with it.
    """
    text = THOUGHTS.sub("", text)
    if end := list(CLOSING.finditer(text)):
        text = text[end[-1].end() :]
    if (start := OPENING.search(text)) is not None:
        text = text[: start.start()]
    return text.strip()


def message(response: Reply, key: Key) -> str:
    """The server's own words, without the key, then shortened; its error may be an object or a string."""
    try:
        error: Any = json.loads(response.body)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
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
