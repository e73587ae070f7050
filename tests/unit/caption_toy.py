"""A project of nine images and a chat server that describes them, for the tests of the caption stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from chat_server import ChatServer, answer
from toy import CLASSES, settings, write

import vap.captioning.caption as stage
from vap.captioning import client
from vap.captioning.questions import load_questions
from vap.datasets.images import encode

REFUSED = (400, {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "code": 400}})
GONE = (401, {"error": "Unauthorized"})
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
OUT = Path("data/captions/own.parquet")
IDS = [f"z{9 - i}" for i in range(9)]  # not in alphabetical order


@cache
def picture(row: int) -> bytes:
    pixels = np.full((16, 16, 3), 200, np.uint8)
    pixels[4:12, 4 : 6 + row % 7] = (120 - 5 * row, 70, 50)
    return encode(pixels)


def lay_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose client hardly waits; its folder, which is the current one."""
    monkeypatch.setattr(client, "FIRST_WAIT", 0.002)
    monkeypatch.chdir(folder)
    rows = []
    for i, image in enumerate(IDS):
        entry = {"id": image, "label": CLASSES[i % 2], "split": "train", "group": image}
        rows.append({**entry, "sha256": "", "image": picture(i)})
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=CLASSES)
    return folder


def run(url: str | list[str] = "measured", **changes: Any) -> list[dict[str, Any]]:
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
    """Answer so often, then refuse everything: the stage ends as if it had been killed."""
    server.forget()
    server.script = [describer()] * answers + [GONE]


def kept() -> list[dict[str, Any]]:
    """The entries of the journal."""
    journal = next(Path("work/caption").glob("*/answers.jsonl"))
    return [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]


def image_of(request: dict[str, Any]) -> int | None:
    """The row of the image that a request is about."""
    content = request["messages"][0]["content"]
    if not isinstance(content, list):
        return None
    return pictures().index(content[0]["image_url"]["url"])


def pictures() -> list[str]:
    ask = load_questions("dermoscopy", 1)
    return [ask.impression(picture(row))[0]["content"][0]["image_url"]["url"] for row in range(len(IDS))]


def broken(fault: Any, rows: set[int], steps: set[int]) -> Callable[[dict[str, Any]], Any]:
    """A describer that answers with `fault` about some images, at some steps."""
    good = describer()

    def reply(request: dict[str, Any]) -> Any:
        return fault if image_of(request) in rows and question_of(request) in steps else good(request)

    return reply
