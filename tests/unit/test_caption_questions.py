"""The questions of VAPS: the paper's words, the conversations, attributes left out, new files."""

from __future__ import annotations

from pathlib import Path

import pytest
from caption_toy import (
    PAPER,
)

from vap.captioning import questions
from vap.captioning.questions import load_questions
from vap.common.errors import VapError

SECRET = "sk-very-secret-0123456789"


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


LEFT_OUT = {
    ("size",): "according to the shape, color, and texture of the lesion and skin background.",
    ("shape", "size"): "according to the color and texture of the lesion and skin background.",
    ("texture", "size", "shape"): "according to the color of the lesion and skin background.",
}


@pytest.mark.parametrize("leave_out", LEFT_OUT)
def test_question_3_without_some_attributes(leave_out: tuple[str, ...]) -> None:
    q = load_questions("dermoscopy", 1, leave_out)
    begin = PAPER[2].index("according")
    assert q.question3 == PAPER[2][:begin] + LEFT_OUT[leave_out]
    assert (q.question1, q.question2) == PAPER[:2]


@pytest.mark.parametrize("modality", ["dermoscopy", "chest_xray", "colonoscopy"])
@pytest.mark.parametrize("version", [1, 2])
def test_every_attribute_of_the_paper_can_be_left_out(modality: str, version: int) -> None:
    whole = load_questions(modality, version).question3
    word = {"color": "density"} if modality == "chest_xray" else {}
    for name in ("shape", "color", "size", "texture"):
        text = load_questions(modality, version, [name]).question3
        assert len(text) < len(whole)
        assert word.get(name, name) in whole
        assert word.get(name, name) not in text


def test_what_cannot_be_left_out_is_one_line() -> None:
    with pytest.raises(VapError, match=r"leave_out: found 'hair'; expected of shape, color, size, texture"):
        load_questions("dermoscopy", 1, ["hair"])
    with pytest.raises(VapError, match="found all attributes"):
        load_questions("dermoscopy", 1, ["shape", "color", "size", "texture"])


@pytest.mark.parametrize(
    "content",
    [
        "1: {question1: a, question2: b}",
        "1: [a, b, c]",
        "1: {",
        "3",
        "1: {question1: 1, question2: b, question3: c}",
    ],
)
def test_a_broken_question_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(questions, "FOLDER", tmp_path)
    (tmp_path / "mri.yaml").write_text(content)
    with pytest.raises(VapError, match=r"mri.yaml|caption.questions") as caught:
        load_questions("mri", 1)
    assert "\n" not in str(caught.value)
