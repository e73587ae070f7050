"""Captions: what the client tries again, what the stage keeps when it is killed, the paper's words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import DROP, ChatServer, answer, chat_server
from toy import CLASSES, settings, write

import vap.stages.caption as stage
from vap.artifacts import file_sha256
from vap.captioning import client
from vap.captioning.client import KEY_VARIABLE, RETRIES, Answer, ChatClient
from vap.captioning.questions import load_questions
from vap.datasets.images import encode
from vap.errors import VapError

SECRET = "sk-very-secret-0123456789"
OBJECT = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits, remembered instead of waited for."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    return waited


def ask(url: str, timeout: float = 5.0) -> Answer:
    async def once() -> Answer:
        options: dict[str, Any] = {"max_tokens": 9, "temperature": 0.5, "concurrency": 2}
        async with ChatClient(url, "some-model", timeout=timeout, seed=7, **options) as chat:
            return await chat.ask([{"role": "user", "content": "What is it?"}])

    return asyncio.run(once())


def refused(url: str) -> str:
    with pytest.raises(VapError) as caught:
        ask(url)
    line = str(caught.value)
    assert "\n" not in line
    assert url in line
    return line


# ── client ──────────────────────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize(
    "failure",
    [
        (500, {"error": {"message": "engine died"}}),
        (502, b"<html>Bad Gateway</html>"),
        (503, b""),
        (429, {"error": "slow down"}),
        DROP,
        answer(None),
        answer("  \n"),
        (200, b"no JSON"),
        (200, {"choices": []}),
        (200, ["a", "list"]),
    ],
)
def test_transient_failures_are_tried_again(waits: list[float], failure: Any) -> None:
    with chat_server(failure, failure, answer("A mole.")) as server:
        assert ask(server.url).text == "A mole."
    assert len(server.requests) == 3
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("failure", "requests", "words"),
    [
        ((500, {"error": {"message": "engine died"}}), RETRIES + 1, "HTTP 500 (engine died)"),
        (DROP, RETRIES + 1, "RemoteProtocolError"),
        (answer(""), client.EMPTY_RETRIES + 1, "an empty answer (finish_reason stop)"),
    ],
)
def test_transient_failures_have_an_end(waits: list[float], failure: Any, requests: int, words: str) -> None:
    with chat_server(failure) as server:
        assert words in refused(server.url)
    assert len(server.requests) == requests
    assert len(waits) == requests - 1


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ((400, OBJECT), "HTTP 400 (max_tokens is too large)"),
        ((401, {"error": "Unauthorized"}), "HTTP 401 (Unauthorized)"),
        ((403, b"Forbidden\nby the gateway"), "HTTP 403 (Forbidden by the gateway)"),
        ((404, {"error": {"message": "no model `some-model`"}}), "no model `some-model`"),
        ((422, {"detail": [{"msg": "extra"}]}), "HTTP 422"),
        ((307, b""), "HTTP 307"),
    ],
)
def test_permanent_failures_are_not_tried_again(waits: list[float], failure: Any, words: str) -> None:
    with chat_server(failure) as server:
        line = refused(server.url)
    assert words in line
    assert len(server.requests) == 1
    assert (KEY_VARIABLE in line) == (failure[0] in (401, 403))


def test_a_cut_answer_says_so(waits: list[float]) -> None:
    with chat_server(answer("A mole wi", "length")) as server:
        assert ask(server.url) == Answer("A mole wi", "length")


def test_a_server_that_is_not_there_is_one_line(waits: list[float]) -> None:
    with chat_server(DROP) as server:
        url = server.url
    assert "ConnectError" in refused(url)
    assert waits == [0.5, 1, 2, 4, 8, 16]


def test_a_server_that_does_not_answer_in_time(waits: list[float]) -> None:
    import threading

    gate = threading.Event()

    def late(_request: dict[str, Any]) -> Any:
        gate.wait(2)
        return answer("late")

    with chat_server(late, answer("A mole.")) as server:
        assert ask(server.url, timeout=0.2).text == "A mole."
        gate.set()


def test_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    for failure in ((401, {"error": "bad key"}), (500, b"down"), DROP, answer("")):
        with chat_server(failure) as server:
            assert SECRET not in refused(server.url)
        assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    monkeypatch.delenv(KEY_VARIABLE)
    with chat_server(answer("A mole.")) as server:
        ask(server.url)
    assert "Authorization" not in server.headers[0]


def test_key_is_not_told_where_the_server_repeats_it(
    monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with chat_server((401, {"error": f"Incorrect API key provided: {SECRET}."})) as server:
        assert SECRET not in refused(server.url)


@pytest.mark.parametrize("key", [SECRET + "\r", SECRET + "\n", SECRET + "é"])
def test_a_key_that_is_no_header_is_one_line_without_it(
    monkeypatch: pytest.MonkeyPatch, waits: list[float], key: str
) -> None:
    """A key from a file with Windows line ends, for one."""
    monkeypatch.setenv(KEY_VARIABLE, key)
    with chat_server((401, b"")) as server:
        assert SECRET not in refused(server.url)


def test_a_url_that_is_none_is_one_line(waits: list[float]) -> None:
    refused("http://HOST:PORT/v1")


@pytest.mark.parametrize(
    "failure",
    [answer(["a", "list"]), (400, {"error": {"message": None}})],  # type: ignore[arg-type]
)
def test_answers_of_the_wrong_type_are_one_line(waits: list[float], failure: Any) -> None:
    with chat_server(failure) as server:
        refused(server.url)


# ── questions ───────────────────────────────────────────────────────────────────────────────────

PAPER = (
    "You are an AI visual assistant observing a skin lesion image. Describe the information you "
    "observe from the image without providing any conclusions.",
    "Skin lesions may present with diverse shapes, colors, sizes, and texture features. The "
    "surrounding skin may also appear normal or show signs of inflammation, pigmentation, or "
    "other changes. Can you provide the specific aspects of these features and how they manifest "
    "in different ways?",
    "Based on this image itself, please describe it shortly and concisely, according to the "
    "shape, color, size (due to the unavailability of quantitative dimensions, you can just "
    "describe their approximate proportion in the whole image), and texture of the lesion and "
    "skin background.",
)


def test_version_1_of_dermoscopy_is_the_papers_wording() -> None:
    q = load_questions("dermoscopy", 1)
    assert (q.question1, q.question2, q.question3) == PAPER


def test_conversations_are_the_papers_three_steps() -> None:
    q = load_questions("dermoscopy", 1)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}}
    first = {"role": "user", "content": [image, {"type": "text", "text": PAPER[0]}]}
    second = {"role": "user", "content": PAPER[1]}
    assert q.impression(b"png") == [first]
    assert q.knowledge() == [second]  # no image, no t1
    assert q.summary(b"png", "T1", "T2") == [
        first,
        {"role": "assistant", "content": "T1"},
        second,
        {"role": "assistant", "content": "T2"},
        {"role": "user", "content": PAPER[2]},
    ]


@pytest.mark.parametrize("modality", ["dermoscopy", "chest_xray", "colonoscopy"])
@pytest.mark.parametrize("version", [1, 2])
def test_every_modality_has_its_questions(modality: str, version: int) -> None:
    q = load_questions(modality, version)
    texts = (q.question1, q.question2, q.question3)
    assert all(text == " ".join(text.split()) for text in texts)
    assert "Based on this image itself" in q.question3
    if modality != "dermoscopy":
        assert not any("skin" in text.lower() for text in texts)


def test_an_unknown_version_or_modality_is_one_line() -> None:
    with pytest.raises(VapError, match=r"caption.questions: 9: found versions 1, 2") as caught:
        load_questions("dermoscopy", 9)
    assert "\n" not in str(caught.value)
    with pytest.raises(VapError, match=r"mri.yaml: found no such file"):
        load_questions("mri", 1)


# ── stage ───────────────────────────────────────────────────────────────────────────────────────

OUT = Path("data/captions/own.parquet")
IDS = [f"z{9 - i}" for i in range(9)]  # not in alphabetical order


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = []
    for i, image in enumerate(IDS):
        pixels = np.full((16, 16, 3), 200, np.uint8)
        pixels[4:12, 4 : 6 + i % 7] = (120 - 5 * i, 70, 50)
        entry = {"id": image, "label": CLASSES[i % 2], "split": "train", "group": image}
        rows.append({**entry, "sha256": "", "image": encode(pixels)})
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=CLASSES)
    return tmp_path


def run(url: str = "measured", **changes: Any) -> list[dict[str, Any]]:
    stage.run(settings(caption__server=url, **changes), "own")
    return list(pq.read_table(OUT).to_pylist())


def question_of(request: dict[str, Any]) -> int:
    """Which of the three steps a request is."""
    last = request["messages"][-1]["content"]
    if isinstance(last, list):
        return 1
    return 2 if last == PAPER[1] else 3


def describer(odd: str = "") -> Callable[[dict[str, Any]], Any]:
    """Answers that depend on the image alone, in any order."""

    def reply(request: dict[str, Any]) -> Any:
        step = question_of(request)
        if step == 2:
            return answer("in general")
        url = request["messages"][0]["content"][0]["image_url"]["url"]
        return answer(f"answer {step}{odd} to {sum(map(ord, url))}", "stop")

    return reply


def stop_after(server: ChatServer, answers: int) -> None:
    """From the next request on, refuse: the stage ends as if it had been killed."""
    server.script = [describer()] * answers + [(400, OBJECT)]


def test_measured_describer_describes_every_image_in_order(project: Path) -> None:
    rows = run()
    assert [row["id"] for row in rows] == IDS
    for row in rows:
        assert row["t1"]
        assert row["t_mix"]
        assert row["t1"] != row["t_mix"]
        assert row["finish_reason"] == "stop"
        assert (row["model"], row["questions"]) == ("measured-describer", 1)
    assert len({row["t2"] for row in rows}) == 1
    assert len({row["t_mix"] for row in rows}) > 1


def test_steps_are_asked_as_the_paper_has_them(project: Path) -> None:
    with chat_server(describer()) as server:
        rows = run(server.url)
    steps = [question_of(request) for request in server.requests]
    assert steps[0] == 2
    assert [steps.count(step) for step in (1, 2, 3)] == [9, 1, 9]
    third = next(r for r in server.requests if question_of(r) == 3)
    assert [m["role"] for m in third["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert third["messages"][3]["content"] == "in general"
    t1 = third["messages"][1]["content"]
    row = next(row for row in rows if row["t1"] == t1)
    assert row["t_mix"] == t1.replace("answer 1", "answer 3")


@pytest.mark.parametrize("odd", ["", ' ␤\u2028\x85 é 字 " \\ \n'])
def test_a_killed_run_asks_only_what_is_missing(project: Path, odd: str) -> None:
    with chat_server(describer(odd)) as server:
        url = server.url
        run(url)
        whole = file_sha256(OUT)
        OUT.unlink()

        server.requests.clear()
        server.script = [describer(odd)] * 8 + [(400, OBJECT)]
        with pytest.raises(VapError, match="max_tokens is too large") as caught:
            run(url)
        assert "\n" not in str(caught.value)
        assert not OUT.exists()
        journal = next(Path("work/caption").glob("*/answers.jsonl"))
        kept = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
        images = {entry["id"] for entry in kept if "id" in entry}
        assert 1 <= len(images) <= 3  # 1 + 2 x 3 answers, and some in flight

        server.requests.clear()
        server.script = [describer(odd)]
        run(url)
        assert len(server.requests) == 2 * (len(IDS) - len(images))
        assert file_sha256(OUT) == whole
        assert not journal.exists()


def test_a_torn_last_line_is_cut_off(project: Path) -> None:
    with chat_server(describer()) as server:
        run(server.url)
        whole = file_sha256(OUT)
        OUT.unlink()
        server.requests.clear()
        stop_after(server, 8)
        with pytest.raises(VapError):
            run(server.url)
        journal = next(Path("work/caption").glob("*/answers.jsonl"))
        lines = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(b"".join(lines)[:-7])  # the last answer is torn
        server.requests.clear()
        stop_after(server, 0)
        with pytest.raises(VapError):  # stopped once more: what is torn must not spoil the next line
            run(server.url)
        server.requests.clear()
        stop_after(server, 7)
        with pytest.raises(VapError):
            run(server.url)
        more = len(journal.read_bytes().splitlines()) - (len(lines) - 1)
        assert more >= 1
        server.requests.clear()
        server.script = [describer()]
        run(server.url)
        assert len(server.requests) == 2 * (len(IDS) - (len(lines) - 2) - more)
        assert file_sha256(OUT) == whole


@pytest.mark.parametrize("concurrency", [1, 6])
def test_concurrency_changes_no_byte(project: Path, concurrency: int) -> None:
    with chat_server(describer()) as server:
        run(server.url)
        whole = file_sha256(OUT)
        OUT.unlink()
        run(server.url, caption__concurrency=concurrency)
    assert file_sha256(OUT) == whole


def test_other_questions_do_not_take_over_old_answers(project: Path) -> None:
    with chat_server(describer()) as server:
        stop_after(server, 8)
        with pytest.raises(VapError):
            run(server.url)
        server.requests.clear()
        server.script = [describer()]
        run(server.url, caption__questions=2)
        assert len(server.requests) == 1 + 2 * len(IDS)


def test_key_is_in_no_artefact(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    with chat_server(describer()) as server:
        stop_after(server, 8)
        with pytest.raises(VapError):
            run(server.url)
        for file in project.rglob("*"):
            assert not file.is_file() or SECRET.encode() not in file.read_bytes()
        server.script = [describer()]
        run(server.url)
    assert SECRET.encode() not in OUT.read_bytes()


def test_an_unknown_model_is_one_line(project: Path) -> None:
    with pytest.raises(VapError, match="The model `gpt` does not exist") as caught:
        run(caption__model="gpt")
    assert "\n" not in str(caught.value)
