"""Descriptions that no image has: those of a class with their attributes exchanged between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vap.captioning.statements import BACKGROUND, LESION, PATTERNS
from vap.prompts.bank import PromptBank
from vap.prompts.encoders import TextEncoder
from vap.prompts.states import store, unpack

TRIES = 20  # draws for a description that the class does not have

Span = tuple[int, int]


@cache
def _pattern(modality: str, attribute: str) -> re.Pattern[str]:
    values = PATTERNS[modality][attribute].values()
    return re.compile(rf"\b(?:{'|'.join(values)})(?![\w-])", re.IGNORECASE)


def places(text: str, modality: str) -> dict[str, Span]:
    """Attribute of the lesion: where a description first states it; none in what describes the background."""
    hidden = [m.span() for m in re.finditer(BACKGROUND[modality], text, flags=re.IGNORECASE)]
    found = {}
    for attribute in LESION:
        for match in _pattern(modality, attribute).finditer(text):
            if not any(start < match.end() and match.start() < end for start, end in hidden):
                found[attribute] = match.span()
                break
    return found


def modality_of(text: str) -> str:
    """The modality whose words say most of a description."""
    return max(PATTERNS, key=lambda modality: len(places(text, modality)))


def exchanged(text: str, donors: Sequence[str]) -> str:
    """A description that takes its shape, color, size and texture from one donor each, where both state it.

    Args:
        donors: four descriptions of the same modality.
    """
    modality = modality_of(text)
    words = {}
    for attribute, donor in zip(LESION, donors, strict=True):
        if (span := places(donor, modality).get(attribute)) is not None:
            words[attribute] = donor[slice(*span)]
    edits = [(span, words[name]) for name, span in places(text, modality).items() if name in words]
    end = len(text) + 1
    for (start, stop), word in sorted(edits, reverse=True):
        if stop <= end:  # where one phrase states two attributes, the later edit stands
            text = f"{text[:start]}{word}{text[stop:]}"
            end = start
    return text


class ShuffledDraws:
    """The training descriptions of a class, their attributes exchanged.

    Args:
        bank: of the dataset.
        encoder: that made it.
    """

    def __init__(self, bank: PromptBank, encoder: TextEncoder) -> None:
        self.bank, self.encoder = bank, encoder
        self.inputs: dict[str, Path] = {}
        self.texts: list[str] = []
        self._number: dict[str, int] = {}
        self._known: dict[str, set[str]] = {}  # the texts that a class has

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The number of a description that no training image of the class has, if twenty draws find one."""
        if label not in self._known:
            self._known[label] = {self.bank.text(int(row)) for row in self.bank.rows(label)}
        text = ""
        for _ in range(TRIES):
            first, *donors = (self.bank.text(self.bank.draw(label, rng)) for _ in range(1 + len(LESION)))
            text = exchanged(first, donors)
            if text not in self._known[label]:
                break
        if text not in self._number:
            self._number[text] = len(self.texts)
            self.texts.append(text)
        return self._number[text]

    def text(self, row: int) -> str:
        """The description of that number."""
        return self.texts[row]

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `PromptBank.collate`; each is encoded alone, so that no batch-mate matters."""
        states = [self._states(self.texts[row]) for row in rows]
        lengths = torch.tensor([len(s) for s in states])
        context = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        return context, torch.arange(context.shape[1])[None] < lengths[:, None]

    def _states(self, text: str) -> Tensor:
        exact = torch.from_numpy(self.encoder.encode([text])[0].tokens)
        return unpack(*store(exact, self.bank.dtype))
