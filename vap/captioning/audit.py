"""`vap audit captions`: what the descriptions of a dataset say, and how much of it is true.

On phantoms, whose attributes are known, every statement is checked; on any dataset the descriptions are
counted and compared with the measured describer. One pass, a row group in memory at a time.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vap.captioning.audit_page import Chosen, Example, write_page
from vap.captioning.measured import measure
from vap.captioning.statements import PATTERNS, UNSAID, diagnoses, refuses, stated, words
from vap.common.artifacts import ArrowFile, atomic
from vap.common.errors import VapError
from vap.common.markup import markdown, write_csv
from vap.common.places import captions_path, prepared_path
from vap.datasets.attributes import MODALITIES
from vap.datasets.images import decode

COLUMNS = ["id", "t1", "t_mix", "finish_reason", "error"]
COMPARED = 2000  # images that the measured describer looks at, evenly spaced
FUNCTION_WORDS = frozenset(words("a an and are as at by in is it its no of on or that the this to with"))


@dataclass
class Attribute:
    """The statements about one attribute.

    Attributes:
        known: descriptions of images whose true value is known.
        stated, correct, false: of those, the ones with a statement, with the truth alone, with a wrong value.
        truth: how often each true value occurs.
        confused: (true value, stated wrong value) to its count.
        compared, agree: statements beside the measured describer's, and those that are the same.
    """

    known: int = 0
    stated: int = 0
    correct: int = 0
    false: int = 0
    truth: Counter[str] = field(default_factory=Counter)
    confused: Counter[tuple[str, str]] = field(default_factory=Counter)
    compared: int = 0
    agree: int = 0

    def check(self, said: list[str], truth: str, unsaid: str | None) -> None:
        """Count one description."""
        wrong = [value for value in said if value != truth]
        self.known += 1
        self.truth[truth] += 1
        self.stated += bool(said)
        self.correct += (truth in said and not wrong) or (not said and truth == unsaid)
        self.false += bool(wrong)
        self.confused.update((truth, value) for value in wrong)


@dataclass
class Audit:
    """The counts of one dataset's descriptions."""

    images: int = 0
    failed: int = 0
    cut: int = 0
    length: Counter[int] = field(default_factory=Counter)  # words to descriptions
    vocabulary: Counter[str] = field(default_factory=Counter)
    texts: set[int] = field(default_factory=set)  # hashes
    likes: set[int] = field(default_factory=set)  # hashes without numbers, order and function words
    refusals: int = 0
    diagnosed: int = 0
    named: Counter[str] = field(default_factory=Counter)  # diagnosis to descriptions
    attributes: dict[str, Attribute] = field(default_factory=lambda: defaultdict(Attribute))

    @property
    def described(self) -> int:
        return self.images - self.failed

    def count(self, text: str, finish_reason: str | None, classes: list[str]) -> None:
        """Count one description's form."""
        spoken = words(text)
        self.length[len(spoken)] += 1
        self.vocabulary.update(spoken)
        self.texts.add(hash(text))
        self.likes.add(hash(frozenset(w for w in spoken if w not in FUNCTION_WORDS and not w.isdigit())))
        self.cut += finish_reason == "length"
        self.refusals += refuses(text)
        names = diagnoses(text, classes)
        self.diagnosed += bool(names)
        self.named.update(set(names))

    def form(self) -> dict[str, float]:
        """The measures that need no truth; shares are of the descriptions."""
        n = max(self.described, 1)
        lengths = sorted(self.length)
        return {
            "images": self.images,
            "without a description": self.failed,
            "words, mean": sum(k * v for k, v in self.length.items()) / n,
            "words, least": lengths[0] if lengths else 0,
            "words, most": lengths[-1] if lengths else 0,
            "vocabulary, distinct words": len(self.vocabulary),
            "distinct descriptions, share": len(self.texts) / n,
            "near-duplicates, share": 1 - len(self.likes) / n,
            "cut by max_tokens, share": self.cut / n,
            "refusals, share": self.refusals / n,
            "name a diagnosis, share": self.diagnosed / n,
        }


def audit(dataset: str, folder: Path = Path("results/audit")) -> Path:
    """Write captions.csv, captions.md and captions.html under results/audit/{dataset}; returns that folder.

    Raises:
        VapError: there are no descriptions, or they are not those of the prepared images.
    """
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    path = captions_path(dataset)
    modality, classes = str(prepared.metadata["modality"]), list(prepared.metadata["classes"])
    result = Audit()
    for name in PATTERNS.get(modality, {}):  # in this order
        result.attributes[name] = Attribute()
    step = max(1, -(-len(prepared) // COMPARED))
    chosen = Chosen(len(prepared))
    for row, entry in enumerate(caption_rows(path, prepared)):
        result.images += 1
        text = entry["t_mix"]
        truth = json.loads(prepared.value("attributes", row) or "{}")
        said = stated(text, modality) if text else {}
        if text:
            result.count(text, entry["finish_reason"], classes)
            for name, value in truth.items():
                result.attributes[name].check(said.get(name, []), value, UNSAID.get(name))
            if row % step == 0 and modality in MODALITIES:
                seen = measure(decode(prepared.value("image", row)), modality)
                for name in said.keys() & seen.keys():
                    result.attributes[name].compared += 1
                    result.attributes[name].agree += said[name] == [seen[name]]
        else:
            result.failed += 1
        wrong = sorted(name for name, values in said.items() if name in truth and values != [truth[name]])
        example = Example(row, entry["id"], entry["t1"], text, entry["error"], truth, wrong)
        chosen.see(example)
        if wrong or not text:
            chosen.blame(example, len(wrong) if text else 99)
    target = folder / dataset
    record = pq.read_schema(path).metadata or {}
    by = (
        json.loads(record.get(b"vap.provenance", b"{}"))
        .get("params", {})
        .get("caption", {})
        .get("model", "?")
    )
    _write_csv(target / "captions.csv", result)
    with atomic(target / "captions.md") as part:
        part.write_text(_markdown(dataset, by, result), encoding="utf-8")
    with atomic(target / "captions.html") as part:
        title = f"The descriptions of {dataset}, by {by}"
        write_page(part, title, prepared, chosen.parts("Most false statements"))
    return target


def caption_rows(path: Path, prepared: ArrowFile) -> Iterator[dict[str, Any]]:
    """The captions' rows, checked against the prepared images."""
    if not path.exists():
        raise VapError(path, "no such file", "the descriptions", "run the caption stage")
    try:
        file = pq.ParquetFile(path)
        if lacking := [name for name in COLUMNS if name not in file.schema_arrow.names]:
            raise pa.ArrowInvalid(f"no column {lacking[0]}")
        row = 0
        for batch in file.iter_batches(columns=COLUMNS, batch_size=1024):
            for entry in batch.to_pylist():
                if row >= len(prepared) or entry["id"] != prepared.value("id", row):
                    raise VapError(
                        path, f"image {entry['id']}", "the prepared images", "run the caption stage"
                    )
                row += 1
                yield entry
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise VapError(
            path, f"no readable captions ({error})", "the caption stage's", "caption again"
        ) from None
    if row != len(prepared):
        raise VapError(path, f"{row} descriptions", f"{len(prepared)}", "run the caption stage")


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _shares(entry: Attribute) -> dict[str, float | None]:
    """An attribute's line: shares, or None where nothing is known."""
    known = entry.known or None
    return {
        "accuracy": entry.correct / known if known else None,
        "stated": entry.stated / known if known else None,
        "false": entry.false / entry.stated if entry.stated else None,
        "majority": max(entry.truth.values()) / known if known else None,
        "agreement": entry.agree / entry.compared if entry.compared else None,
    }


def _write_csv(path: Path, result: Audit) -> None:
    """A line a number: measure, attribute (empty for those of the whole description), value, images."""
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        columns = ("measure", "attribute", "value", "images")
        rows = [(name, "", f"{value:.6g}", result.described) for name, value in result.form().items()]
        for name, entry in result.attributes.items():
            for measure_name, share in _shares(entry).items():
                if share is not None:
                    of = {"false": entry.stated, "agreement": entry.compared}.get(measure_name, entry.known)
                    rows.append((measure_name, name, f"{share:.6g}", of))
        write_csv(file, columns, (dict(zip(columns, row, strict=True)) for row in rows))


def _markdown(dataset: str, by: str, result: Audit) -> str:
    lines = [f"# The descriptions of {markdown(dataset)}, by {markdown(by)}", ""]
    lines += ["| attribute | accuracy | stated | false | majority | agreement | most often taken for |"]
    lines += ["|---|---:|---:|---:|---:|---:|---|"]
    for name, entry in result.attributes.items():
        shares = " | ".join("–" if share is None else f"{share:.1%}" for share in _shares(entry).values())
        mistakes = ", ".join(
            f"{markdown(f'{true} → {said}')} ({count})"
            for (true, said), count in entry.confused.most_common(2)
        )
        lines.append(f"| {markdown(name)} | {shares} | {mistakes or '–'} |")
    lines += [
        "",
        "accuracy: descriptions that state the true value and no other, of those whose truth is known.",
        "stated: say anything of it. false: of those that do, with a wrong value. majority: the accuracy of",
        "always saying the commonest value. agreement: of the statements that the measured describer makes",
        "too, the same.",
        "",
        "| measure | value |",
        "|---|---:|",
    ]
    for measure_name, value in result.form().items():
        shown = f"{value:.1%}" if measure_name.endswith("share") else f"{value:.4g}"
        lines.append(f"| {measure_name} | {shown} |")
    if result.named:
        named = ", ".join(f"{markdown(name)} ({count})" for name, count in result.named.most_common(10))
        lines += ["", f"Diagnoses named: {named}."]
    return "\n".join(lines) + "\n"
