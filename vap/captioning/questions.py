"""The versioned questions of VAPS and the conversations they make (paper §2.2)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml
from vap.datasets.attributes import MODALITIES

FOLDER = Path(__file__).parent / "questions"

Message = dict[str, Any]


@dataclass(frozen=True)
class Questions:
    """Question 1 to 3 of one modality, in one version."""

    modality: str
    version: int
    question1: str
    question2: str
    question3: str

    def impression(self, png: bytes) -> list[Message]:
        """Step 1, t1 = MLLM(X0, Question1). The image comes first, so that a prefix cache can keep it."""
        return [{"role": "user", "content": [_image(png), _text(self.question1)]}]

    def knowledge(self) -> list[Message]:
        """Step 2, t2 = MLLM(Question2): no image, independent of t1."""
        return [{"role": "user", "content": self.question2}]

    def summary(self, png: bytes, t1: str, t2: str) -> list[Message]:
        """Step 3, t_mix = MLLM(t1, t2, X0, Question3), as a conversation that begins like step 1."""
        return [
            *self.impression(png),
            {"role": "assistant", "content": t1},
            *self.knowledge(),
            {"role": "assistant", "content": t2},
            {"role": "user", "content": self.question3},
        ]


def _image(png: bytes) -> Message:
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def require_server(server: str | list[str], dataset: str, modality: str) -> None:
    """Refuse the measured describer for a modality that it does not know.

    Raises:
        VapError: it is `caption.server`, and knows others.
    """
    if server == "measured" and modality not in MODALITIES:
        raise VapError(
            f"params.yaml: dataset.{dataset}.modality: {modality}",
            "caption.server: measured",
            f"a server that knows it (the measured describer knows {', '.join(MODALITIES)})",
            "set caption.server",
        )


def questions_file(modality: str) -> Path:
    """Where a modality's questions stand."""
    return FOLDER / f"{modality}.yaml"


def load_questions(modality: str, version: int, leave_out: Sequence[str] = ()) -> Questions:
    """The questions of a modality.

    Args:
        leave_out: attributes that question 3 does not ask for, names under `attributes` of the version.

    Raises:
        VapError: there is no such file, version or attribute, or the file is none of questions.
    """
    path = questions_file(modality)
    if not path.is_file():
        raise VapError(
            path, "no such file", f"the questions for {modality}", "write it after dermoscopy.yaml"
        )
    try:
        versions = read_yaml(path, "the questions", "write it after dermoscopy.yaml")
        if version not in versions:
            known = ", ".join(str(v) for v in versions)
            raise VapError(
                f"params.yaml: caption.questions: {version}",
                f"versions {known}",
                f"one in {path.name}",
                "choose one",
            )
        entry = versions[version]
        texts = [entry[f"question{i}"] for i in (1, 2, 3)]
        attributes = dict(entry.get("attributes") or {})
        if not all(isinstance(text, str) and text for text in (*texts, *attributes.values())):
            raise TypeError("a question or attribute is no text")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        fix = "write it after dermoscopy.yaml"
        raise VapError(
            f"{path}: version {version}", f"no questions ({error})", "question1 to question3", fix
        ) from None
    if leave_out:
        texts[2] = _without(texts[2], attributes, leave_out, path)
    return Questions(modality, version, *texts)


def _without(question: str, attributes: dict[str, str], leave_out: Sequence[str], path: Path) -> str:
    """Question 3 whose enumeration "a, b, c, and d" lacks some attributes."""
    where = "params.yaml: caption.leave_out"
    if unknown := [name for name in leave_out if name not in attributes]:
        raise VapError(where, repr(unknown[0]), f"of {', '.join(attributes)} ({path.name})", "correct it")
    kept = [phrase for name, phrase in attributes.items() if name not in leave_out]
    if not kept:
        raise VapError(where, "all attributes", "one that is left to ask for", "leave out fewer")
    whole = _enumerate(list(attributes.values()))
    if question.count(whole) != 1:
        raise VapError(path, f"no {whole!r} in question 3", "its attributes", "correct `attributes`")
    return question.replace(whole, _enumerate(kept))


def _enumerate(phrases: list[str]) -> str:
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{', '.join(phrases[:-1])}, and {phrases[-1]}"
