"""The caption stage: what is asked, what it keeps when it is killed, the ablations."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from caption_toy import (
    GONE,
    IDS,
    OUT,
    describer,
    image_of,
    kept,
    lay_out,
    pictures,
    question_of,
    run,
    stop_after,
)
from chat_server import answer, chat_server

import vap.params
from vap.captioning import questions
from vap.captioning.ask import image_seed, shrink
from vap.captioning.replies import KEY_VARIABLE
from vap.common.artifacts import file_sha256
from vap.common.errors import VapError
from vap.datasets.images import decode, encode

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out(tmp_path, monkeypatch)


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

        server.forget()
        server.script = [describer(odd)] * 8 + [GONE]
        with pytest.raises(VapError, match="HTTP 401") as caught:
            run(url)
        assert "\n" not in str(caught.value)
        assert not OUT.exists()
        assert 5 <= len(kept()) <= 8  # all but those in flight, first answers without a last one too
        missing = 1 + 2 * len(IDS) - len(kept())

        server.forget()
        server.script = [describer(odd)]
        run(url)
        assert len(server.requests) == missing
        assert file_sha256(OUT) == whole
        assert not list(Path("work/caption").iterdir())


@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-7], lambda data: data + b"\0" * 99, lambda data: data + b"{}\n"]
)
def test_a_spoilt_end_of_the_journal_is_cut_off(project: Path, spoil: Callable[[bytes], bytes]) -> None:
    with chat_server(describer()) as server:
        run(server.url)
        whole = file_sha256(OUT)
        OUT.unlink()
        stop_after(server, 8)
        with pytest.raises(VapError):
            run(server.url)
        journal = next(Path("work/caption").glob("*/answers.jsonl"))
        journal.write_bytes(spoil(journal.read_bytes()))
        stop_after(server, 0)
        with pytest.raises(VapError):  # stopped once more: what is spoilt must not spoil the next line
            run(server.url)
        left = len(kept())
        stop_after(server, 7)
        with pytest.raises(VapError):
            run(server.url)
        missing = 1 + 2 * len(IDS) - len(kept())
        assert len(kept()) > left
        server.forget()
        server.script = [describer()]
        run(server.url)
        assert len(server.requests) == missing
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
        server.forget()
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


# ── ablations, and what is asked ────────────────────────────────────────────────────────────────


def test_the_first_question_alone(project: Path) -> None:
    with chat_server(describer()) as server:
        rows = run(server.url, caption__steps="impression")
    assert {question_of(request) for request in server.requests} == {1}
    assert all(row["t_mix"] == row["t1"] and row["t2"] is None for row in rows)


@pytest.mark.parametrize("step2", ["shared", "per_image"])
def test_the_first_two_questions_joined(project: Path, step2: str) -> None:
    with chat_server(describer()) as server:
        rows = run(server.url, caption__steps="impression+knowledge", caption__step2=step2)
    asked = [question_of(request) for request in server.requests]
    assert [asked.count(step) for step in (1, 2, 3)] == [9, 1 if step2 == "shared" else 9, 0]
    assert all(row["t_mix"] == f"{row['t1']} in general" for row in rows)


def test_a_cut_first_answer_is_told_of_the_joined_one(project: Path) -> None:
    def reply(request: dict[str, Any]) -> Any:
        return answer("cut", "length" if question_of(request) == 1 else "stop")

    with chat_server(reply) as server:
        rows = run(server.url, caption__steps="impression+knowledge")
    assert {row["finish_reason"] for row in rows} == {"length"}


def test_question_2_for_each_image_has_a_seed_of_its_own(project: Path) -> None:
    with chat_server(describer()) as server:
        run(server.url, caption__step2="per_image")
        seeds = [r["seed"] for r in server.requests if question_of(r) == 2]
        assert sorted(seeds) == sorted(image_seed(0, image) for image in IDS)
        assert len(set(seeds)) == len(IDS)
        assert max(seeds) < 2**31
        third = next(r for r in server.requests if question_of(r) == 3)
        assert third["seed"] in seeds


def test_left_out_attributes_reach_the_server(project: Path) -> None:
    with chat_server(lambda _: answer("fine")) as server:
        run(server.url, caption__leave_out=["size"])
    assert sum("color, and texture" in str(r["messages"][-1]["content"]) for r in server.requests) == len(IDS)


def test_images_are_scaled_down_to_the_models_limit(project: Path) -> None:
    with chat_server(describer()) as server:
        run(server.url, caption__max_image_side=8)
        small = server.requests[-1]["messages"][0]["content"][0]["image_url"]["url"]
        assert decode(base64.b64decode(small.partition(",")[2])).shape == (8, 8, 3)
        server.forget()
        run(server.url, caption__max_image_side=16)
        urls = {
            r["messages"][0]["content"][0]["image_url"]["url"]
            for r in server.requests
            if image_of(r) is not None
        }
        assert urls == set(pictures())


def test_shrinking_keeps_the_aspect_ratio() -> None:
    png = encode(np.zeros((20, 40, 3), np.uint8))
    assert decode(shrink(png, 10)).shape == (5, 10, 3)
    assert shrink(png, 40) is png
    assert shrink(png, None) is png
    assert shrink(png, 10) == shrink(png, 10)


def test_a_new_modality_is_a_new_file(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    monkeypatch.setattr(questions, "FOLDER", folder)
    monkeypatch.setattr(vap.params, "QUESTIONS", folder)
    asked = {f"question{i}": f"What about fundus {i}?" for i in (1, 2, 3)}
    (folder / "fundus.yaml").write_text(yaml.safe_dump({1: asked}))
    with pytest.raises(VapError, match=r"dataset.own.modality: found 'mri'; expected .*: fundus"):
        run(dataset__own__modality="mri")
    with pytest.raises(VapError, match="the measured describer knows"):
        run(dataset__own__modality="fundus")
    with chat_server(answer("An optic disc.")) as server:
        rows = run(server.url, dataset__own__modality="fundus")
    assert {row["t_mix"] for row in rows} == {"An optic disc."}
    assert {r["messages"][-1]["content"] for r in server.requests if len(r["messages"]) == 5} == {
        asked["question3"]
    }
