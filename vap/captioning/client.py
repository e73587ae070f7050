"""An asynchronous client for any OpenAI-compatible chat server, or several with the same model."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import random
import time
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from vap.captioning.questions import Message
from vap.captioning.replies import Answer, ImageFailed, Key, Reply, Trouble, failure, meaning, message
from vap.common.errors import VapError, tell

# How often each kind of trouble is tried again.
RETRIES = {"empty": 2, "request": 5, "server": 6}
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds; it doubles each time
ASIDE_FROM = 3  # troubles in a row from which it is told that a server is set aside
PROBE_TIMEOUT = 10.0  # seconds

NEWER_LIMIT = "max_completion_tokens"

Recover = Callable[[], Awaitable[bool]]


@dataclass
class Endpoint:
    """One server.

    Attributes:
        url: its base URL, which ends in /v1.
        in_flight: requests that it has not answered yet.
        troubles: of the server, since its last answer.
        aside_until: it gets no request before this time (monotonic, seconds), if another can.
    """

    url: str
    in_flight: int = 0
    troubles: int = 0
    aside_until: float = 0.0


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for a server (HTTPS_PROXY, NO_PROXY, …); none for this machine."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # no URL, which is told where it is asked
        return None
    host = parts.hostname or ""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return None
    if host == "localhost" or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


class ChatClient:
    """Asks the servers; use it as an async context manager.

    Args:
        urls: base URLs that end in /v1; requests go to the least busy one that answers.
        model: name of the model at the servers.
        concurrency: requests in flight, over all servers.
        timeout: seconds a request.
        seed: of the answers (where no other is given) and of the waits' jitter.
        recover: called after a trouble; returns True where it has made a dead server live again.

    Raises:
        VapError: the key in the environment cannot be sent.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        max_tokens: int,
        temperature: float,
        concurrency: int,
        timeout: float,
        seed: int,
        recover: Recover | None = None,
    ) -> None:
        self.endpoints = [Endpoint(url.rstrip("/")) for url in urls]
        self.model, self.max_tokens = model, max_tokens
        self.cut_by_context = 0  # answers that the model's context cut before max_tokens
        self._body: dict[str, Any] = {
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        self._key, self._recover = Key(), recover
        self._jitter = random.Random(seed)
        self._concurrency, self._timeout = concurrency, timeout

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(  # a quarter of httpx's time a request
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            headers={**self._key.headers(), "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=PROBE_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def _send(self, url: str, content: bytes | None = None, timeout: float | None = None) -> Reply:
        """The reply to a POST of `content`, or to a GET.

        Raises:
            VapError: the URL is none.
            aiohttp.ClientError, TimeoutError, OSError: there is no whole reply.
        """
        method = "GET" if content is None else "POST"
        limit = aiohttp.ClientTimeout(total=timeout or self._timeout, sock_connect=PROBE_TIMEOUT)
        try:
            sending = self._http.request(
                method, url, data=content, timeout=limit, allow_redirects=False, proxy=proxy_of(url)
            )
            async with sending as response:
                return Reply(response.status, response.headers, await response.read())
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise VapError(
                "params.yaml: caption.server",
                self._key.clean(f"{url} ({error})"),
                "http://HOST:PORT/v1",
                "correct it",
            ) from None

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    async def ask(self, messages: list[Message], seed: int | None = None) -> Answer:
        """One answer; transient troubles are tried again, after waits that double, with jitter.

        Raises:
            ImageFailed: the server refuses this request, or keeps giving no answer to it.
            VapError: the servers refuse all requests, or cannot be reached.
        """
        content = self._content(messages, seed)
        counts = dict.fromkeys(RETRIES, 0)
        endpoint: Endpoint | None = None
        while True:
            endpoint = self._choose(endpoint)
            try:
                reply = await self._post(endpoint, content)
            except ImageFailed as error:
                if NEWER_LIMIT not in str(error) or NEWER_LIMIT in self._body:
                    raise
                self._body[NEWER_LIMIT] = self._body.pop("max_tokens")  # what newer models call it
                content = self._content(messages, seed)
                continue
            if isinstance(reply, Answer):
                endpoint.troubles, endpoint.aside_until = 0, 0.0
                cut = reply.tokens is not None and reply.tokens < self.max_tokens
                self.cut_by_context += reply.finish_reason == "length" and cut
                return reply
            if reply.kind != "empty" and self._recover and await self._recover():
                counts = dict.fromkeys(RETRIES, 0)
                continue
            kind = reply.kind
            if kind == "request" and counts[kind] >= RETRIES[kind]:
                if await self._alive(endpoint):
                    raise ImageFailed(f"{reply.words}, {RETRIES[kind]} retries")
                kind = "server"
            if counts[kind] >= RETRIES[kind]:
                words = f"{reply.words}, {RETRIES[kind]} retries"
                if kind == "empty":
                    raise ImageFailed(words)
                raise _gone(endpoint.url, words)
            counts[kind] += 1
            if kind == "server":
                self._set_aside(endpoint, reply)
            wait = min(FIRST_WAIT * 2 ** (sum(counts.values()) - 1), LONGEST_WAIT)
            await asyncio.sleep(max(wait * self._jitter.uniform(0.75, 1.25), reply.retry_after))

    def _content(self, messages: list[Message], seed: int | None) -> bytes:
        body = {**self._body, "messages": messages} | ({} if seed is None else {"seed": seed})
        return json.dumps(body, ensure_ascii=False).encode()

    async def _post(self, endpoint: Endpoint, content: bytes) -> Answer | Trouble:
        endpoint.in_flight += 1
        try:
            response = await self._send(f"{endpoint.url}/chat/completions", content)
        except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
            return failure(error, self._key)
        finally:
            endpoint.in_flight -= 1
        return meaning(response, endpoint.url, self._key)

    # ── servers ─────────────────────────────────────────────────────────────────────────────────

    def _choose(self, last: Endpoint | None) -> Endpoint:
        """The least busy server that is not set aside, rather another than the one that gave no answer
        last; if all are set aside, the one to come back first."""
        now = time.monotonic()
        live = [endpoint for endpoint in self.endpoints if endpoint.aside_until <= now]
        if live:
            return min(live, key=lambda endpoint: (endpoint is last, endpoint.in_flight))
        return min(self.endpoints, key=lambda endpoint: endpoint.aside_until)

    def _set_aside(self, endpoint: Endpoint, trouble: Trouble) -> None:
        endpoint.troubles += 1
        pause = min(FIRST_WAIT * 2**endpoint.troubles, 2 * LONGEST_WAIT)
        endpoint.aside_until = time.monotonic() + max(pause, trouble.retry_after)
        if endpoint.troubles == ASIDE_FROM and len(self.endpoints) > 1:
            tell(f"{endpoint.url}: {trouble.words}: its requests go to the others")

    async def _alive(self, endpoint: Endpoint) -> bool:
        """Whether a server that failed one request is there for others: vLLM's /health, if it has one."""
        try:
            url = endpoint.url.removesuffix("/v1") + "/health"
            return (await self._send(url, timeout=PROBE_TIMEOUT)).status < 500
        except (aiohttp.ClientError, OSError):
            return False

    async def check(self) -> None:
        """Ask every server for its models, and whether max_tokens fits in the model's context.

        A server without that list is taken as it is. One that cannot be reached is set aside.

        Raises:
            VapError: a server refuses the key, max_tokens cannot fit, or no server can be reached.
        """
        reached = await asyncio.gather(*(self._check(endpoint) for endpoint in self.endpoints))
        if all(trouble is not None for trouble in reached):
            raise _gone(self.endpoints[0].url, f"{reached[0]}, {RETRIES['server']} retries")

    async def _check(self, endpoint: Endpoint) -> str | None:
        """None, or the trouble of a server that cannot be reached."""
        trouble = Trouble("server", "")
        for attempt in range(RETRIES["server"] + 1):
            if attempt:
                wait = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
                await asyncio.sleep(wait * self._jitter.uniform(0.75, 1.25))
            try:
                response = await self._send(f"{endpoint.url}/models", timeout=PROBE_TIMEOUT)
            except (aiohttp.ClientError, OSError) as error:
                trouble = failure(error, self._key)
                self._set_aside(endpoint, trouble)
                continue
            if response.status in (401, 403):
                meaning(response, endpoint.url, self._key)
            if response.status >= 500 and response.status != 501:
                words = f"HTTP {response.status} ({message(response, self._key)})"
                trouble = Trouble("server", words)
                self._set_aside(endpoint, trouble)
                continue
            endpoint.troubles, endpoint.aside_until = 0, 0.0
            limit = _context(response, self.model)
            if limit is not None and self.max_tokens >= limit:
                raise VapError(
                    f"params.yaml: caption.max_tokens: {self.max_tokens}",
                    f"a context of {limit} tokens (max_model_len of {self.model})",
                    "room for the question and the answer",
                    "lower it, or raise the server's max_model_len",
                )
            return None
        return trouble.words


def _context(response: Reply, model: str) -> int | None:
    """max_model_len of a model in the reply of /v1/models, where it is told."""
    try:
        cards: list[Any] = json.loads(response.body)["data"]
        limit = next(card["max_model_len"] for card in cards if card["id"] == model)
    except (ValueError, LookupError, TypeError, StopIteration):
        return None
    return limit if isinstance(limit, int) else None


def _gone(url: str, words: str) -> VapError:
    return VapError(url, words, "an answer", "see the server's log, then run again: nothing is lost")
