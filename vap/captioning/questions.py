"""The versioned questions of VAPS and the conversations they make (paper §2.2)."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vap.errors import VapError

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


def questions_file(modality: str) -> Path:
    """Where a modality's questions stand."""
    return FOLDER / f"{modality}.yaml"


def load_questions(modality: str, version: int) -> Questions:
    """The questions of a modality.

    Raises:
        VapError: there is no such file or version.
    """
    path = questions_file(modality)
    if not path.is_file():
        raise VapError(
            path, "no such file", f"the questions for {modality}", "write it after dermoscopy.yaml"
        )
    versions = yaml.safe_load(path.read_text(encoding="utf-8"))
    if version not in versions:
        known = ", ".join(str(v) for v in versions)
        raise VapError(
            f"params.yaml: caption.questions: {version}",
            f"versions {known}",
            f"one in {path.name}",
            "choose one",
        )
    entry = versions[version]
    return Questions(modality, version, *(entry[f"question{i}"] for i in (1, 2, 3)))
