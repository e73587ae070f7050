"""`vap audit samples`: does a sample show what its description says?

The counts of vap.captioning.adherence as a table and a page. Beside them stands how often a real training
image shows what its own description says, which is the most that can be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vap.captioning.adherence import Agreement, described, pairs_of
from vap.captioning.audit import COMPARED, caption_rows
from vap.captioning.audit_page import Chosen, Example, write_page
from vap.captioning.measured import measure
from vap.captioning.statements import PATTERNS
from vap.common.artifacts import ArrowFile, atomic
from vap.common.errors import VapError
from vap.common.markup import markdown, write_csv
from vap.common.places import captions_path, prepared_path, samples_path
from vap.datasets.attributes import MODALITIES
from vap.datasets.images import decode


@dataclass
class WithReal(Agreement):
    """An attribute, with the same of real images.

    Attributes:
        real, real_agree: training images with a statement; of those, the ones in which it is seen.
    """

    real: int = 0
    real_agree: int = 0


def audit_samples(dataset: str, method: str, condition: str, folder: Path = Path("results/audit")) -> Path:
    """Write results/audit/{dataset}/METHOD-CONDITION.csv, .md and .html; returns the path without suffix.

    Raises:
        VapError: there are no samples, they were drawn without descriptions, or the describer does not know
            the modality.
    """
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    modality = str(prepared.metadata["modality"])
    if modality not in MODALITIES:
        expected = f"one of {', '.join(MODALITIES)}"
        raise VapError(
            prepared.path, f"modality {modality}", expected, "the measured describer knows no other"
        )
    samples = ArrowFile(samples_path(dataset, method, condition), "samples")
    if all(text is None for text in samples.column("text")):
        fix = "name a method that learns from prompts"
        raise VapError(samples.path, "samples drawn without descriptions", "some with", fix)
    found = {name: WithReal() for name in PATTERNS[modality]}
    chosen = Chosen(len(samples))
    for sample in described(samples, len(samples), modality):
        for name, pair in sample.pairs.items():
            found[name].pairs[sample.label, *pair] += 1
        row, wrong = sample.row, sample.wrong
        example = Example(row, f"sample {row}", None, sample.text, None, sample.seen, wrong)
        chosen.see(example)
        chosen.blame(example, len(wrong))
    _count_real(found, dataset, prepared, modality)

    target = folder / dataset / f"{method}-{condition}"
    title = f"Samples of {method} on {dataset}, {condition} descriptions"
    _write_csv(target.with_suffix(".csv"), found)
    with atomic(target.with_suffix(".md")) as part:
        part.write_text(_markdown(title, found), encoding="utf-8")
    parts = chosen.parts("Least like their descriptions")
    with atomic(target.with_suffix(".html")) as part:
        write_page(part, title, samples, parts, attributes="Seen in it")
    return target


def _count_real(found: dict[str, WithReal], dataset: str, prepared: ArrowFile, modality: str) -> None:
    """The same of training images, evenly spaced, and their own descriptions."""
    splits = prepared.column("split")
    train = [row for row in range(len(prepared)) if splits[row] == "train"]
    chosen = set(train[:: max(1, -(-len(train) // COMPARED))])
    for row, entry in enumerate(caption_rows(captions_path(dataset), prepared)):
        if row in chosen and entry["t_mix"]:
            seen = measure(decode(prepared.value("image", row)), modality)
            for name, (said, is_seen) in pairs_of(entry["t_mix"], seen, modality):
                found[name].real += 1
                found[name].real_agree += said == is_seen


def _lines(found: dict[str, WithReal]) -> Iterator[tuple[str, int, float, float | None, float | None]]:
    """Attribute, samples, agreement, by class alone, of real images."""
    for name, entry in found.items():
        if entry.n:
            real = entry.real_agree / entry.real if entry.real else None
            yield name, entry.n, entry.agree(), entry.by_class_alone(), real


def _write_csv(path: Path, found: dict[str, WithReal]) -> None:
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        columns = ("attribute", "samples", "agreement", "class_alone", "real")
        rows = (
            (name, n, *("" if share is None else f"{share:.6g}" for share in shares))
            for name, n, *shares in _lines(found)
        )
        write_csv(file, columns, (dict(zip(columns, row, strict=True)) for row in rows))


def _markdown(title: str, found: dict[str, WithReal]) -> str:
    lines = [f"# {markdown(title)}", "", "| attribute | samples | agreement | class alone | real |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, n, *shares in _lines(found):
        cells = " | ".join("–" if share is None else f"{share:.1%}" for share in shares)
        lines.append(f"| {name} | {n} | {cells} |")
    lines += [
        "",
        "agreement: samples in which the measured describer sees what their description states. class alone:",
        "the same, if the samples of a class had one another's descriptions. real: training images and their",
        "own descriptions, which is the most that can be expected; all, where the describer wrote them.",
    ]
    return "\n".join(lines) + "\n"
