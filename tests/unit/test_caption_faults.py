"""The caption stage on servers that fail: one image, at random, one of several servers."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from caption_toy import (
    GONE,
    OUT,
    REFUSED,
    broken,
    describer,
    kept,
    lay_out,
    question_of,
    run,
)
from chat_server import DROP, TEAR, answer, chat_server
from toy import CLASSES, write

from vap.common.artifacts import file_sha256
from vap.common.errors import VapError

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out(tmp_path, monkeypatch)


FAULTS = {
    "refused": (REFUSED, 1, r"question 1: HTTP 400 \(max_tokens is too large\)"),
    "refused at the end": (REFUSED, 3, r"question 3: HTTP 400"),
    "500 for ever": ((500, b"boom"), 1, r"question 1: HTTP 500 \(boom\), 5 retries"),
    "dropped for ever": (DROP, 3, r"question 3: ServerDisconnectedError .*, 5 retries"),
    "torn for ever": (TEAR, 1, r"question 1: ClientPayloadError .*, 5 retries"),
    "empty": (answer(""), 3, r"question 3: an empty answer \(finish_reason stop\), 2 retries"),
    "filtered": (answer("", "content_filter"), 1, "question 1: .* content_filter"),
}


@pytest.mark.parametrize(("fault", "step", "reason"), FAULTS.values(), ids=FAULTS)
def test_an_image_that_fails_is_recorded_with_its_reason(
    project: Path, fault: Any, step: int, reason: str
) -> None:
    with chat_server(describer()) as server:
        good = run(server.url)
        server.script = [broken(fault, {2, 5}, {step})]
        rows = run(server.url, caption__max_failed=0.25)
    for row, (before, now) in enumerate(zip(good, rows, strict=True)):
        if row not in (2, 5):
            assert now == before
            assert now["error"] is None
            continue
        assert re.match(reason, now["error"]), now["error"]
        assert (now["t_mix"], now["finish_reason"]) == (None, None)
        assert now["t1"] == (before["t1"] if step == 3 else None)
        assert now["t2"] == before["t2"]


def test_more_failures_than_allowed_end_the_stage_and_are_asked_again(project: Path) -> None:
    with chat_server(describer()) as server:
        run(server.url)
        whole = file_sha256(OUT)
        OUT.unlink()
        server.script = [broken(REFUSED, {0, 4, 8}, {3})]
        with pytest.raises(VapError) as caught:
            run(server.url, caption__max_failed=0.25, caption__concurrency=1)
        line = str(caught.value)
        assert "\n" not in line
        assert "3 of 9 images without a description, the last z1: question 3: HTTP 400" in line
        assert "at most 2 (caption.max_failed: 0.25)" in line
        assert not OUT.exists()
        server.forget()
        server.script = [describer()]
        run(server.url)
        assert [question_of(request) for request in server.requests] == [3, 3, 3]
        assert file_sha256(OUT) == whole


def test_allowed_failures_stay_through_an_interruption(project: Path) -> None:
    faulty = broken(REFUSED, {1}, {1})
    with chat_server(faulty) as server:
        run(server.url, caption__max_failed=0.2)
        whole = file_sha256(OUT)
        OUT.unlink()
        server.forget()
        server.script = [faulty] * 9 + [GONE]
        with pytest.raises(VapError):
            run(server.url, caption__max_failed=0.2, caption__concurrency=1)
        assert any("error" in entry for entry in kept())
        server.script = [faulty]
        run(server.url, caption__max_failed=0.2)
    assert file_sha256(OUT) == whole


def test_question_2_that_is_not_answered_ends_the_stage(project: Path) -> None:
    with (
        chat_server(REFUSED) as server,
        pytest.raises(VapError, match="no answer to question 2: HTTP 400"),
    ):
        run(server.url, caption__max_failed=1.0)


# ── faults at random ────────────────────────────────────────────────────────────────────────────


def test_random_faults_lose_and_duplicate_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 % of the replies to 2,000 requests are 5xx or dropped connections."""
    monkeypatch.chdir(tmp_path)
    ids = [f"i{i:04d}" for i in range(1000)]
    blank = {"label": CLASSES[0], "split": "train", "sha256": ""}
    rows = [{**blank, "id": i, "group": i, "image": i.encode()} for i in ids]
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=CLASSES)
    asked: dict[str, int] = {}
    answered: list[str] = []
    guard, faults = threading.Lock(), [(500, b""), (502, b""), (503, b""), DROP, TEAR]

    def reply(request: dict[str, Any]) -> Any:
        name = json.dumps(request["messages"])
        with guard:
            asked[name] = asked.get(name, -1) + 1
            chance = hashlib.sha256(f"{name} {asked[name]}".encode()).digest()
            if chance[0] < 26:
                return faults[chance[1] % len(faults)]
            answered.append(name)
        image = request["messages"][0]["content"]
        return answer(image if isinstance(image, str) else image[0]["image_url"]["url"])

    with chat_server(reply) as server:
        table = run(server.url, caption__concurrency=8)
    assert [row["id"] for row in table] == ids
    assert len(answered) == len(set(answered)) == len(asked) == 2001
    assert sum(asked.values()) > 120
    for row in table:
        image = "data:image/png;base64," + base64.b64encode(row["id"].encode()).decode()
        assert (row["t1"], row["t_mix"], row["error"]) == (image, image, None)


# ── several servers ─────────────────────────────────────────────────────────────────────────────


def test_a_server_that_dies_half_way_changes_no_byte(project: Path) -> None:
    with chat_server(describer()) as server:
        run(server.url)
        whole = file_sha256(OUT)
        OUT.unlink()
        with chat_server(*[describer()] * 4, DROP) as weak:
            weak.health = DROP
            run([weak.url, server.url])
    assert len(weak.requests) >= 5
    assert file_sha256(OUT) == whole


# ── the servers that users reported ─────────────────────────────────────────────────────────────────

CHAT = Path(
    os.environ.get("VAP_TEST_REPORTS", Path(__file__).parents[3] / "shared/reports"), "server/chat.py"
)
WORDS = "A small dark lesion on pale skin."
ANSWERED = {  # what each description must hold, and must not
    "plain": (WORDS, "<"),
    "think": (WORDS, "melanoma"),
    "halfthink": (WORDS, "melanoma"),
    "markdown": ("[/INST]", "\x1b"),
    "chinese": ("浅色皮肤上有一个小的深色圆形病灶", "?"),
    "nul": ("Number", "<"),  # kept as it is, and shown without its control characters
    "special": (WORDS, "\x00"),
    "maxtok": (WORDS, "max_tokens"),
    "error200some": (WORDS, "overloaded"),
    "bom": (WORDS, "\ufeff"),
}
ENDED = {  # in one line, with the server's own words
    "cutthink": r"thoughts and no answer after them \(finish_reason length\): raise caption.max_tokens",
    "quota": r"HTTP 429 \(You exceeded your current quota, please check your plan",
    "error200": r"HTTP 429 \(Provider returned error\)",
    "choices0": r"the server gave no choice of an answer",
    "sse": r"HTTP 200 with no chat completion \(data: ",
    "html": r"HTTP 200 with no chat completion \(<html>login</html>\)",
}


@pytest.fixture
def reported(request: pytest.FixtureRequest, project: Path) -> Iterator[str]:
    """The URL of the scripted server of that report."""
    if not CHAT.is_file():
        pytest.skip(f"no reports at {CHAT}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, CHAT, str(port), request.param])
    try:
        while server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(("reported", "words"), ANSWERED.items(), ids=ANSWERED, indirect=["reported"])
def test_a_reported_server_is_understood(reported: str, words: tuple[str, str]) -> None:
    there, absent = words
    for row in run(reported, caption__model="m"):
        assert row["error"] is None
        assert there in row["t_mix"]
        assert absent not in row["t_mix"]


@pytest.mark.parametrize(("reported", "reason"), ENDED.items(), ids=ENDED, indirect=["reported"])
def test_a_reported_server_that_gives_no_answer_is_told_with_its_own_words(
    reported: str, reason: str
) -> None:
    with pytest.raises(VapError, match=reason) as found:
        run(reported, caption__model="m", caption__max_failed=1.0)
    assert "\n" not in str(found.value)
