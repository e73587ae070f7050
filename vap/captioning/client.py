"""An asynchronous client for any OpenAI-compatible chat server."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Self

import httpx

from vap.captioning.questions import Message
from vap.errors import VapError

RETRIES = 6  # of transient failures
EMPTY_RETRIES = 2  # of empty answers
FIRST_WAIT = 0.5  # seconds; doubles each time
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
KEY_VARIABLE = "VAP_CAPTION_API_KEY"


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str  # "stop", or "length" where max_tokens cut it


class ChatClient:
    """Asks one server; use it as an async context manager.

    Args:
        url: base URL that ends in /v1.
        model: name of the model at the server.
        concurrency: requests in flight.
        timeout: seconds a request.

    The key, if any, comes from the environment (VAP_CAPTION_API_KEY); it is in no log and no artefact.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int,
        temperature: float,
        concurrency: int,
        timeout: float,
        seed: int,
    ) -> None:
        self.url, self.model = url.rstrip("/"), model
        self._body = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise VapError(
                f"{KEY_VARIABLE} for {self.url}",
                "other than printable ASCII characters",
                "a key",
                "set it again",
            )
        key = self._key
        self._http = httpx.AsyncClient(
            timeout=timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def _clean(self, text: str) -> str:
        """A server may repeat the key; no line of ours does."""
        return text.replace(self._key, "***") if self._key else text

    async def ask(self, messages: list[Message]) -> Answer:
        """One answer; transient failures and empty answers are tried again.

        Raises:
            VapError: the server refuses, cannot be reached, or keeps giving no text.
        """
        wait, empty, last = FIRST_WAIT, 0, ""
        for attempt in range(RETRIES + 1):
            try:
                response = await self._http.post(
                    f"{self.url}/chat/completions", json={**self._body, "messages": messages}
                )
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
                raise VapError(
                    "params.yaml: caption.server",
                    self._clean(f"{self.url} ({error})"),
                    "http://HOST:PORT/v1",
                    "correct it",
                ) from None
            except httpx.TransportError as error:
                last = self._clean(f"{type(error).__name__} {error}".strip())
            else:
                if response.status_code == 200:
                    answer = _answer(response)
                    if answer.text:
                        return answer
                    empty += 1
                    last = f"an empty answer (finish_reason {answer.finish_reason})"
                    if empty > EMPTY_RETRIES:
                        break
                elif response.status_code in TRANSIENT:
                    last = f"HTTP {response.status_code} ({self._clean(_message(response))})"
                else:
                    raise VapError(
                        self.url,
                        f"HTTP {response.status_code} ({self._clean(_message(response))})",
                        "an answer",
                        "check caption.server and caption.model"
                        + (f", and {KEY_VARIABLE}" if response.status_code in (401, 403) else ""),
                    )
            if attempt < RETRIES:
                await asyncio.sleep(wait)
                wait = min(wait * 2, 30)
        raise VapError(
            self.url,
            f"{last}, {RETRIES} retries",
            "an answer",
            "see the server's log, then run again: nothing is lost",
        )


def _answer(response: httpx.Response) -> Answer:
    try:
        choice = response.json()["choices"][0]
        return Answer((choice["message"]["content"] or "").strip(), choice["finish_reason"] or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Answer("", "malformed")


def _message(response: httpx.Response) -> str:
    """The server's own words, shortened; its error may be an object or a string."""
    try:
        error: Any = response.json()["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError, AttributeError):
        text = response.text
    return " ".join(text.split())[:200]
