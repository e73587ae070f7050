"""The chat client: what each fault on the wire means, several servers, the key."""

from __future__ import annotations

import asyncio
import email.utils
import json
import threading
import time
from typing import Any

import pytest
from chat_server import DROP, TEAR, answer, chat_server

from vap.captioning import client
from vap.captioning.client import RETRIES, ChatClient
from vap.captioning.replies import KEY_VARIABLE, Answer, ImageFailed
from vap.common.errors import VapError

SECRET = "sk-very-secret-0123456789"
REQUEST = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}}
DEAD = (503, b"")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits, remembered instead of waited for."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    return waited


def ask(*urls: str, timeout: float = 5.0, times: int = 1, check: bool = False, **options: Any) -> Answer:
    """The last of several answers, asked one after the other."""

    async def work() -> Answer:
        given: dict[str, Any] = {"max_tokens": 9, "temperature": 0.5, "concurrency": 2, "seed": 7} | options
        async with ChatClient(urls, "some-model", timeout=timeout, **given) as chat:
            if check:
                await chat.check()
            for _ in range(times - 1):
                await chat.ask([{"role": "user", "content": "What is it?"}])
            return await chat.ask([{"role": "user", "content": "What is it?"}])

    return asyncio.run(work())


def ends(url: str, **options: Any) -> str:
    """The line of an error that ends the run."""
    with pytest.raises(VapError) as caught:
        ask(url, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


def fails(url: str, **options: Any) -> str:
    """The reason of an error that concerns one image."""
    with pytest.raises(ImageFailed) as caught:
        ask(url, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── what is tried again ─────────────────────────────────────────────────────────────────────────


def test_request_is_openais(waits: list[float]) -> None:
    with chat_server(answer(" A mole.\n")) as server:
        assert ask(server.url + "/") == Answer("A mole.", "stop")
    assert server.requests == [
        {
            "model": "some-model",
            "max_tokens": 9,
            "temperature": 0.5,
            "seed": 7,
            "messages": [{"role": "user", "content": "What is it?"}],
        }
    ]
    assert not waits


TRANSIENT = {
    "500, the engine died": (500, {"error": {"message": "EngineCore encountered an issue"}}),
    "500 with a string": (500, b"Internal Server Error"),
    "502 of a gateway": (502, b"<html>Bad Gateway</html>"),
    "503, starting": (503, b""),
    "504": (504, b""),
    "408": (408, b""),
    "429 with a string": (429, {"error": "slow down"}),
    "dropped": DROP,
    "torn": TEAR,
    "200 with a 429 inside": (200, {"error": {"message": "upstream", "code": 429}}),
    "200 with a 502 in a string": (200, {"error": {"message": "upstream overloaded", "code": "502"}}),
    "200 with an error of no number": (200, {"error": {"message": "no", "code": "server_error"}}),
    "200 with an error in words": (200, {"error": "upstream went away"}),
    "no text": answer(None),
    "white space": answer("  \n"),
    "stopped by SIGTERM": answer("A mole wi", "abort"),
    "stopped, no reason": answer("A mole wi", None),
}


@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_what_may_pass_is_tried_again(waits: list[float], fault: Any) -> None:
    with chat_server(fault, fault, answer("A mole.")) as server:
        assert ask(server.url).text == "A mole."
    assert len(server.requests) == 3
    assert all(abs(wait - middle) <= middle / 4 for wait, middle in zip(waits, (0.5, 1.0), strict=True))


def test_waits_double_with_jitter_from_the_seed(waits: list[float]) -> None:
    for seed in (1, 1, 2):
        with chat_server(DEAD) as server:
            ends(server.url, seed=seed)
    runs = [waits[i : i + 6] for i in (0, 6, 12)]
    assert runs[0] == runs[1] != runs[2]
    assert all(0.75 * m <= w <= 1.25 * m for w, m in zip(runs[2], (0.5, 1, 2, 4, 8, 16), strict=True))


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(waits: list[float], form: str) -> None:
    value = "21" if form == "seconds" else email.utils.formatdate(time.time() + 21, usegmt=True)
    with chat_server((429, b"", {"Retry-After": value}), answer("A mole.")) as server:
        ask(server.url)
    assert waits[0] == pytest.approx(21, abs=1.5)


@pytest.mark.parametrize("value", ["", "soon", "-3", "9" * 400, "nan"])
def test_retry_after_that_is_none_does_no_harm(waits: list[float], value: str) -> None:
    with chat_server((503, b"", {"Retry-After": value}), answer("A mole.")) as server:
        ask(server.url)
    assert 0 < waits[0] <= 300


def test_an_answer_that_does_not_come_in_time(waits: list[float]) -> None:
    gate = threading.Event()

    def late(_request: dict[str, Any]) -> Any:
        gate.wait(2)
        return answer("late")

    with chat_server(late, answer("A mole.")) as server:
        assert ask(server.url, timeout=0.2).text == "A mole."
        gate.set()


FORMS = {
    "a string": {"content": "A mole."},
    "parts": {"content": [{"type": "text", "text": "A "}, {"type": "text", "text": "mole."}]},
    "a part that is no text": {"content": [{"type": "image_url"}, {"type": "text", "text": "A mole."}]},
    "reasoning beside it": {"content": "A mole.", "reasoning_content": "Well.", "reasoning": "Well."},
    "a refusal that is none": {"content": "A mole.", "refusal": None},
    "thoughts": {"content": "<think>\nIs it a melanoma?\n</think>\n\nA mole."},
    "thoughts whose start the prompt has": {"content": "Is it a melanoma?\n</think>\n\nA mole."},
    "thoughts twice": {"content": "<think>a</think> <think>b</think>A mole."},
    "thoughts within thoughts": {"content": "<think>a <think>b</think> c</think>A mole."},
    "thoughts under another name": {"content": "<Thinking>Is it?</Thinking>A mole."},
    "thoughts in other brackets": {"content": "◁think▷Is it?◁/think▷A mole."},
    "more thoughts that are cut": {"content": "A mole.\n<think>But is"},
}


@pytest.mark.parametrize("told", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("finish", [{"finish_reason": "stop"}, {}], ids=["finished", "no reason given"])
def test_an_answer_in_any_form_is_its_text_alone(told: dict[str, Any], finish: dict[str, str]) -> None:
    with chat_server((200, {"choices": [{"message": told, **finish}]})) as server:
        assert ask(server.url).text == "A mole."


def test_a_model_that_wants_max_completion_tokens_gets_it(waits: list[float]) -> None:
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

    def reply(request: dict[str, Any]) -> Any:
        if "max_tokens" in request:
            return 400, {"error": {"message": words, "code": "unsupported_parameter"}}
        return answer("A mole.")

    with chat_server(reply) as server:
        assert ask(server.url, times=3).text == "A mole."
    assert [request.get("max_completion_tokens") for request in server.requests] == [None, 9, 9, 9]


def test_a_server_that_wants_another_limit_for_ever_fails_the_request(waits: list[float]) -> None:
    with chat_server((400, {"error": {"message": "max_completion_tokens is too large"}})) as server:
        assert "too large" in fails(server.url)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("http://mllm.example.org/v1", "http://proxy:3128"),
        ("https://mllm.example.org/v1", "http://secure:3128"),
        ("http://inside.example.com/v1", None),
        ("http://127.0.0.1:8000/v1", None),
        ("http://localhost:8000/v1", None),
        ("http://[::1]:8000/v1", None),
    ],
)
def test_the_environments_proxy_is_for_other_machines(
    url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("http", "http://proxy:3128"),
        ("https", "http://secure:3128"),
        ("no", "example.com"),
    ):
        monkeypatch.setenv(f"{name}_proxy", value)
    assert client.proxy_of(url) == proxy


def test_a_proxy_is_asked_in_the_servers_place(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with chat_server(answer("A mole.")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask("http://mllm.invalid/v1").text == "A mole."
    assert len(proxy.requests) == 1


# ── what is one image's failure ─────────────────────────────────────────────────────────────────

REFUSED = {
    "400 bad base64, not an image, truncated": ((400, REQUEST), "HTTP 400 (max_tokens is too large)"),
    "413": ((413, b""), "HTTP 413"),
    "422": ((422, {"detail": [{"msg": "extra"}]}), "HTTP 422"),
    "400 with an odd body": ((400, {"error": {"message": None}}), "HTTP 400 (None)"),
    "filtered": (answer("", "content_filter"), "content_filter"),
    "200 with a 400 inside": ((200, {"error": {"message": "too long", "code": 400}}), "HTTP 400 (too long)"),
    "200 without a choice": ((200, {"choices": [], "note": "busy"}), "no choice of an answer"),
    "200 with choices null": ((200, {"choices": None}), "no choice of an answer"),
    "refused": (
        (200, {"choices": [{"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}]}),
        "the model refused: I cannot.",
    ),
    "filtered with text": (answer("A mo", "content_filter"), "content_filter"),
}


@pytest.mark.parametrize(("fault", "words"), REFUSED.values(), ids=REFUSED)
def test_a_refused_request_fails_at_once(waits: list[float], fault: Any, words: str) -> None:
    with chat_server(fault) as server:
        assert words in fails(server.url)
    assert len(server.requests) == 1


CAPPED = {
    "500, as of an image that cannot be fetched": (
        (500, {"error": {"message": "no"}}),
        "request",
        "HTTP 500 (no)",
    ),
    "dropped": (DROP, "request", "ServerDisconnectedError"),
    "broken off": (answer("A m", "abort"), "request", "abort"),
    "empty": (answer(""), "empty", "an empty answer (finish_reason stop)"),
    "only thoughts": (answer(None, "length"), "empty", "an empty answer (finish_reason length)"),
    "cut in its thoughts": (answer("<think>\nWell, the", "length"), "empty", "raise caption.max_tokens"),
}


@pytest.mark.parametrize(("fault", "kind", "words"), CAPPED.values(), ids=CAPPED)
@pytest.mark.parametrize("health", [(200, b""), (404, b"")], ids=["vllm", "other"])
def test_a_fault_that_stays_while_the_server_lives_is_the_requests(
    waits: list[float], fault: Any, kind: str, words: str, health: Any
) -> None:
    with chat_server(fault) as server:
        server.health = health
        assert words in fails(server.url)
    assert len(server.requests) == RETRIES[kind] + 1


# ── what ends the run ───────────────────────────────────────────────────────────────────────────

FATAL = {
    "401 with a string": ((401, {"error": "Unauthorized"}), "HTTP 401 (Unauthorized)"),
    "403": ((403, b"Forbidden\nby the gateway"), "HTTP 403 (Forbidden by the gateway)"),
    "404, unknown model": ((404, {"error": {"message": "no model `some-model`"}}), "no model `some-model`"),
    "405": ((405, b""), "HTTP 405"),
    "307": ((307, b""), "HTTP 307"),
    "200 without JSON": ((200, b"<html>Welcome</html>"), "no chat completion (<html>Welcome</html>)"),
    "200 with a 401 inside": ((200, {"error": {"message": "who?", "code": "401"}}), "HTTP 401 (who?)"),
    "200 with a list": ((200, ["a", "list"]), "no chat completion"),
    "200 with a number for text": (answer(7), "no chat completion"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("fault", "words"), FATAL.values(), ids=FATAL)
def test_a_refusal_of_all_requests_ends_the_run_at_once(waits: list[float], fault: Any, words: str) -> None:
    with chat_server(fault) as server:
        line = ends(server.url)
        assert server.url in line
    assert words in line
    assert len(server.requests) == 1
    assert (KEY_VARIABLE in line) == ("HTTP 401" in line or "HTTP 403" in line)


@pytest.mark.parametrize("fault", [(500, b"engine died"), DROP], ids=["500", "dropped"])
@pytest.mark.parametrize("health", [(503, b""), DROP], ids=["unhealthy", "gone"])
def test_a_dead_server_ends_the_run(waits: list[float], fault: Any, health: Any) -> None:
    with chat_server(fault) as server:
        server.health = health
        ends(server.url)
    assert len(server.requests) == RETRIES["request"] + RETRIES["server"] + 1


def test_a_server_that_is_not_there_is_one_line(waits: list[float]) -> None:
    with chat_server(DROP) as server:
        url = server.url
    for check in (False, True):
        waits.clear()
        assert "Cannot connect" in ends(url, check=check)
        assert len(waits) == RETRIES["server"]


@pytest.mark.parametrize("url", ["http://HOST:PORT/v1", "http://[::1/v1"])
@pytest.mark.parametrize("check", [False, True])
def test_a_url_that_is_none_is_one_line(waits: list[float], url: str, check: bool) -> None:
    assert "caption.server" in ends(url, check=check)


# ── finish_reason and the context ───────────────────────────────────────────────────────────────


def test_a_cut_answer_says_so(waits: list[float]) -> None:
    with chat_server(answer("A mole wi", "length")) as server:
        assert ask(server.url) == Answer("A mole wi", "length")


def card(limit: int) -> tuple[int, dict[str, Any]]:
    return 200, {"data": [{"id": "other", "max_model_len": 3}, {"id": "some-model", "max_model_len": limit}]}


def test_max_tokens_that_cannot_fit_is_told_before_any_question(waits: list[float]) -> None:
    with chat_server(answer("A mole.")) as server:
        server.models = card(9)
        line = ends(server.url, check=True)
        assert "caption.max_tokens: 9" in line
        assert "9 tokens" in line
        assert not server.requests
        server.models = card(10)
        ask(server.url, check=True)


@pytest.mark.parametrize(
    "models", [(404, b""), (200, b"no JSON"), (200, {"data": [{"id": "x"}]}), (501, b"")]
)
def test_a_server_without_a_list_of_models_is_taken_as_it_is(waits: list[float], models: Any) -> None:
    with chat_server(answer("A mole.")) as server:
        server.models = models
        assert ask(server.url, check=True).text == "A mole."


def test_a_key_that_is_refused_is_told_before_any_question(waits: list[float]) -> None:
    with chat_server(answer("A mole.")) as server:
        server.models = (401, {"error": "Unauthorized"})
        assert KEY_VARIABLE in ends(server.url, check=True)
    assert not server.requests


def test_answers_that_the_context_cut_are_counted() -> None:
    async def work(url: str) -> int:
        options: dict[str, Any] = {"max_tokens": 9, "temperature": 0, "concurrency": 1, "seed": 0}
        async with ChatClient([url], "some-model", timeout=5, **options) as chat:
            for _ in range(3):
                await chat.ask([])
            return chat.cut_by_context

    script = [answer("a", "length", completion_tokens=9), answer("a", "length", completion_tokens=4)]
    with chat_server(*script, answer("a", "stop", completion_tokens=2)) as server:
        assert asyncio.run(work(server.url)) == 1


# ── several servers ─────────────────────────────────────────────────────────────────────────────


def test_requests_are_spread_over_the_servers() -> None:
    async def work(urls: list[str]) -> None:
        options: dict[str, Any] = {"max_tokens": 9, "temperature": 0, "concurrency": 8, "seed": 0}
        async with ChatClient(urls, "some-model", timeout=5, **options) as chat:
            await asyncio.gather(*(chat.ask([]) for _ in range(40)))

    with chat_server(answer("a")) as one, chat_server(answer("b")) as other:
        asyncio.run(work([one.url, other.url]))
    assert min(len(one.requests), len(other.requests)) >= 10
    assert len(one.requests) + len(other.requests) == 40


@pytest.mark.parametrize("check", [False, True])
def test_a_server_that_dies_is_set_aside(
    waits: list[float], capsys: pytest.CaptureFixture[str], check: bool
) -> None:
    with chat_server(DROP) as gone:
        url = gone.url
    with chat_server(answer("A mole.")) as live:
        assert ask(url, live.url, times=12, check=check).text == "A mole."
        assert len(live.requests) == 12
    assert len(waits) == (RETRIES["server"] if check else 1)  # its troubles are met once
    assert ("its requests go to the others" in capsys.readouterr().err) == check


def test_a_server_that_comes_back_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(client.time, "monotonic", lambda: now[0])

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    with chat_server(DEAD, answer("one")) as one, chat_server(DEAD, DEAD, answer("other")) as other:
        assert ask(one.url, other.url).text in ("one", "other")
    assert {len(one.requests), len(other.requests)} == {2, 1}


def test_all_servers_gone_is_one_line(waits: list[float]) -> None:
    with chat_server(DROP) as one, chat_server(DROP) as other:
        urls = one.url, other.url
    with pytest.raises(VapError, match="Cannot connect"):
        ask(*urls, check=True)


# ── a server of our own that dies ───────────────────────────────────────────────────────────────


def test_recovery_starts_the_count_anew(waits: list[float]) -> None:
    lives = [True] * 3

    async def recover() -> bool:
        return bool(lives) and lives.pop()

    with chat_server(*[DEAD] * (3 + RETRIES["server"]), answer("A mole.")) as server:
        assert ask(server.url, recover=recover).text == "A mole."
    assert not lives


# ── the key ─────────────────────────────────────────────────────────────────────────────────────


def test_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    repeated = {"error": f"Incorrect API key provided: {SECRET}."}
    for fault in ((401, repeated), DEAD, (429, repeated), (200, SECRET.encode())):
        with chat_server(fault) as server:
            assert SECRET not in ends(server.url)
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    for fault in ((500, repeated), (400, repeated), DROP, answer("")):
        with chat_server(fault) as server:
            assert SECRET not in fails(server.url)
    monkeypatch.delenv(KEY_VARIABLE)
    with chat_server(answer("A mole.")) as server:
        ask(server.url)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("key", [SECRET + "\r", SECRET + "\n", SECRET + "é"])
def test_a_key_that_is_no_header_is_one_line_without_it(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], key: str
) -> None:
    """A key from a file with Windows line ends, for one."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    with chat_server((401, b"")) as server:
        assert SECRET not in ends(server.url)


def test_odd_text_is_text(waits: list[float]) -> None:
    body = json.dumps({"choices": [{"message": {"content": "a\ud800é\u2028"}, "finish_reason": "stop"}]})
    with chat_server((200, body.encode())) as server:
        ask(server.url).text.encode()
