"""Where the description of a sample comes from: the conditions of `vap sample` and `vap draw`.

    seen             the training descriptions of the class (of a run on a share of the images: their own)
    unseen           the descriptions of the test images of the class
    unseen-DATASET   another dataset's training descriptions, classes matched by name
    other            those of ablation.other, and for a class that it lacks those of all its classes
    shuffled         the training descriptions of the class, their attributes exchanged (vap.prompts.shuffled)
    texts-NAME       the sentences of data/texts/NAME.txt

A condition is spelled so in the command, in file names and in every record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vap.common.errors import VapError, tell
from vap.common.markup import same_name
from vap.common.places import bank_path
from vap.prompts.bank import NULL_ROW, PromptBank, TokenSource
from vap.prompts.encoders import TextEncoder, load_encoder
from vap.prompts.places import locate
from vap.prompts.shuffled import ShuffledDraws
from vap.prompts.states import store, unpack

CONDITIONS = "seen, unseen, unseen-DATASET, other, shuffled or texts-NAME"
SPLIT = {"seen": "train", "unseen": "test"}  # condition to the split whose descriptions are drawn
STREAM = 11  # of random numbers, beside the run's seed


def rng_of(seed: int, index: int) -> np.random.Generator:
    """What chooses the description of sample `index`."""
    return np.random.default_rng([seed, STREAM, index])


class Draws(TokenSource, Protocol):
    """A source of descriptions by class."""

    @property
    def inputs(self) -> dict[str, Path]:
        """The files that it reads beside the dataset's own bank, for the record."""

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The number of a description of class `label`."""

    def text(self, row: int) -> str:
        """The description of that number."""


def parse_condition(condition: str) -> tuple[str, str | None]:
    """("seen" | "unseen" | "other" | "shuffled" | "texts", the name behind the dash if there is one).

    Raises:
        VapError: it is none of the conditions.
    """
    spelled = r"(seen|unseen|other|shuffled)|(unseen|texts)-([A-Za-z0-9][A-Za-z0-9_-]*)"
    found = re.fullmatch(spelled, condition)
    if not found:
        raise VapError("condition", repr(condition), CONDITIONS, "name one of these")
    return found[1] or found[2], found[3]


def draws_of(
    condition: str,
    bank: PromptBank,
    classes: Sequence[str],
    device: Any = "cpu",
    other: str | None = None,
    share: Mapping[str, str] | None = None,
) -> Draws:
    """The source of a condition, checked for all classes.

    Args:
        bank: of the dataset that the model was trained on.
        classes: of that dataset.
        other: the dataset of the condition "other".
        share: id to class of the images that the model was trained on; None for all training images.

    Raises:
        VapError: the condition names no other dataset with a bank, a class has no description there, the
            source's encoder is not the bank's, or the condition would show descriptions of other training
            images than those of `share`.
    """
    kind, name = parse_condition(condition)
    if share is not None and kind == "seen":
        return ShareDraws(bank, share)
    if share is not None and kind == "shuffled":
        found, expected = "a model of a share of the images", "one of all training images"
        raise VapError("condition shuffled", found, expected, "name another condition")
    if kind == "texts":
        path = Path("data/texts") / f"{name}.txt"
        return SentenceDraws(read_sentences(path, classes), bank, device, path)
    if kind == "shuffled":
        return ShuffledDraws(bank, encoder_of(bank, device))
    if kind == "other":
        if other is None:
            raise VapError(
                "params.yaml: ablation.other",
                "no entry for this dataset",
                "the dataset whose descriptions are taken",
                "add one",
            )
        return from_bank(PromptBank(bank_path(other)), bank, classes, lenient=True)
    if name is None:
        return BankDraws(bank, SPLIT[kind])
    path = bank_path(name)
    if path == bank.file.path or not path.exists():
        found = "the dataset's own name" if path == bank.file.path else f"no {path}"
        others = sorted(own.stem for own in path.parent.glob("*.arrow") if own != bank.file.path)
        expected = f"another dataset with a prompt bank: {', '.join(others) or 'there is none'}"
        fix = (
            "name unseen, for its test images"
            if path == bank.file.path
            else "name one, or run its encode stage"
        )
        raise VapError(f"condition {condition}", found, expected, fix)
    return from_bank(PromptBank(path), bank, classes)


@dataclass(frozen=True)
class BankDraws:
    """Descriptions of one split of a bank; an image's each, so that frequent ones stay frequent."""

    bank: PromptBank
    split: str
    inputs: dict[str, Path] = field(default_factory=dict)
    instead: dict[str, list[str]] = field(default_factory=dict)  # of a class that the bank lacks: some it has

    def draw(self, label: str, rng: np.random.Generator) -> int:
        if label in self.instead:
            label = self.instead[label][rng.integers(len(self.instead[label]))]
        return self.bank.draw(label, rng, self.split)

    def text(self, row: int) -> str:
        return self.bank.text(row)

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.bank.collate(rows)


class ShareDraws:
    """The descriptions of some of a bank's training images, an image's each.

    Args:
        share: id to class of these images.
    """

    def __init__(self, bank: PromptBank, share: Mapping[str, str]) -> None:
        self.bank = bank
        self.inputs: dict[str, Path] = {}
        self.rows: dict[str, list[int]] = {}
        for image, label in share.items():
            if (row := bank.row_of.get(image, NULL_ROW)) != NULL_ROW:
                self.rows.setdefault(label, []).append(row)

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The number of a description of class `label`.

        Raises:
            VapError: none of these images of that class has one.
        """
        if label not in self.rows:
            found = f"no description of an image of class {label!r} of the share"
            raise VapError(self.bank.file.path, found, "at least one", "caption and encode again")
        return self.rows[label][rng.integers(len(self.rows[label]))]

    def text(self, row: int) -> str:
        return self.bank.text(row)

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.bank.collate(rows)


def from_bank(
    other: PromptBank, bank: PromptBank, classes: Sequence[str], lenient: bool = False
) -> BankDraws:
    """The training descriptions of another dataset's bank.

    Args:
        lenient: a class that it lacks takes those of all its classes, each equally likely.

    Raises:
        VapError: it lacks a class, or was made by another encoder or with longer texts than `bank`.
    """
    require_same_encoder(other.file.path, other.metadata, bank)
    if other.max_tokens > bank.max_tokens:
        raise VapError(
            other.file.path,
            f"descriptions of up to {other.max_tokens} tokens",
            f"{bank.max_tokens}, as {bank.file.path}",
            "encode both datasets with one encode.max_tokens",
        )
    there = {label for label in other.metadata["classes"] if other.has(label)}
    missing = [label for label in classes if label not in there]
    if lenient and there:
        instead = {label: sorted(there) for label in missing}
        return BankDraws(other, "train", {"prompts_from": other.file.path}, instead)
    if missing:
        raise VapError(
            other.file.path,
            f"no training description of class {missing[0]!r}; it has {', '.join(sorted(there))}",
            f"all of {', '.join(classes)}",
            "name a dataset with the same classes",
        )
    return BankDraws(other, "train", {"prompts_from": other.file.path})


def require_same_encoder(where: Any, found: dict[str, Any], bank: PromptBank) -> None:
    """Check that `found` (encoder, revision) is the encoder of `bank`.

    Raises:
        VapError: another encoder or other weights.
    """
    wanted = bank.metadata
    if found["revision"] != wanted["revision"]:
        raise VapError(
            where,
            f"states of {found['encoder']}, revision {found['revision']}",
            f"{wanted['encoder']}, revision {wanted['revision']}, as {bank.file.path}",
            "use that encoder's files, or encode again",
        )


def encoder_of(bank: PromptBank, device: Any = "cpu", name: str | None = None) -> TextEncoder:
    """The encoder that made a bank.

    Args:
        name: where its files lie now; None: where they lay when the bank was made.

    Raises:
        VapError: its files are gone, or its weights are no longer those.
    """
    name = name or bank.metadata["encoder"]
    require_same_encoder(f"encoder {name}", {"encoder": name, "revision": locate(name).revision}, bank)
    return load_encoder(name, bank.max_tokens, device)


def read_sentences(path: Path, classes: Sequence[str], label: str | None = None) -> list[tuple[str, str]]:
    """(class, sentence) of a text file: `class<TAB>sentence` a line, or sentences alone.

    Empty lines and lines that begin with # are left out.

    Args:
        classes: the known ones.
        label: the class of sentences alone; where the lines name theirs, only its lines are kept.
            None keeps all, and asks for at least one sentence of each class.

    Raises:
        VapError: a line names no known class, or a class has no sentence.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VapError(
            path, f"no readable text ({error})", "class<TAB>sentence a line, in UTF-8", "name such a file"
        ) from None
    found: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, tab, sentence = line.partition("\t")
        if not tab:
            only = label or (classes[0] if len(classes) == 1 else None)
            if only is None:
                raise VapError(
                    f"{path}:{number}", "a sentence without a class", "class<TAB>sentence", "name the class"
                )
            name, sentence = only, line
        name = same_name(name.strip(), classes) or name.strip()
        if name not in classes or not sentence.strip():
            what = f"class {name!r}" if sentence.strip() else "no sentence"
            raise VapError(
                f"{path}:{number}",
                what,
                f"a class of {', '.join(classes)} and a sentence",
                "correct the line",
            )
        found.append((name, sentence.strip()))
    for wanted in classes if label is None else [label]:
        if not any(name == wanted for name, _ in found):
            raise VapError(path, f"no sentence of class {wanted!r}", "at least one", "add a line")
    return [entry for entry in found if label in (None, entry[0])]


class SentenceDraws:
    """A user's own sentences, each of a class equally likely, encoded as the bank's descriptions were.

    Args:
        sentences: (class, sentence).
        bank: its encoder, max_tokens and dtype are used.
        path: the file of the sentences, for the record.
        encoder: that made the bank; None: it is loaded.

    Raises:
        VapError: the encoder's weights are no longer those that made the bank.
    """

    def __init__(
        self,
        sentences: Sequence[tuple[str, str]],
        bank: PromptBank,
        device: Any = "cpu",
        path: Path | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        encoder = encoder or encoder_of(bank, device)
        self.inputs: dict[str, Path] = {"texts": path} if path else {}
        self.sentences = list(sentences)
        self.rows: dict[str, list[int]] = {}
        self.states: list[Tensor] = []  # (n_tokens, width) float32 each
        for row, (label, sentence) in enumerate(self.sentences):
            self.rows.setdefault(label, []).append(row)
            encoded = encoder.encode([sentence])[0]  # alone: no batch-mate matters
            if encoded.whole > bank.max_tokens:
                tell(
                    f"{sentence!r}: found {encoded.whole} tokens; the bank has encode.max_tokens: "
                    f"{bank.max_tokens}, so its end is cut off"
                )
            exact = torch.from_numpy(encoded.tokens)
            self.states.append(unpack(*store(exact, bank.dtype)))

    def draw(self, label: str, rng: np.random.Generator) -> int:
        """The number of a sentence of class `label`."""
        return self.rows[label][rng.integers(len(self.rows[label]))]

    def text(self, row: int) -> str:
        """The sentence of that number."""
        return self.sentences[row][1]

    def collate(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `PromptBank.collate`."""
        states = [self.states[row] for row in rows]
        lengths = torch.tensor([len(s) for s in states])
        context = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
        return context, torch.arange(context.shape[1])[None] < lengths[:, None]
