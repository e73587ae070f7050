"""`vap bank show`, `search` and `stats`: a prompt bank as tables; `prompt_bank` for a notebook."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vap.common.errors import VapError, plain
from vap.common.places import bank_path
from vap.params import ComputeParams
from vap.prompts.bank import NULL_ROW, PromptBank

BAR = 40  # characters of the histogram's longest bar
BIN = 16  # tokens


@dataclass(frozen=True)
class Hit:
    """A description near a query."""

    row: int
    similarity: float  # cosine of the pooled vectors, -1..1
    text: str
    ids: list[str]
    labels: list[str]
    splits: list[str]


@dataclass(frozen=True)
class ClassStats:
    """What the descriptions of one class are like.

    Attributes:
        images, distinct: described images, and their distinct descriptions.
        tokens_mean, tokens_max: over the images.
        vocabulary: distinct words, in lower case.
        shared: share of the images whose description another image of the class has too.
        intra: mean cosine of the pooled vectors of two different descriptions of the class.
        inter: of one of the class and one of another class; None where there is no such pair.
    """

    images: int
    distinct: int
    tokens_mean: float
    tokens_max: int
    vocabulary: int
    shared: float
    intra: float | None
    inter: float | None


def unit_vectors(bank: PromptBank) -> npt.NDArray[np.float32]:
    """(rows, pooled_width) pooled vectors, each of length 1."""
    vectors = bank.pooled()
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    return vectors


def described(
    bank: PromptBank, label: str | None = None, split: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, entry) of the descriptions that an image of `label` and `split` has.

    An entry has those images alone. The null prompt is left out.
    """
    for row, entry in enumerate(bank.file.rows(["text", "ids", "labels", "splits"])):
        images = [
            image
            for image in zip(entry["ids"], entry["labels"], entry["splits"], strict=True)
            if label in (None, image[1]) and split in (None, image[2])
        ]
        if images and row != NULL_ROW:
            ids, labels, splits = (list(column) for column in zip(*images, strict=True))
            yield row, {"text": entry["text"], "ids": ids, "labels": labels, "splits": splits}


def nearest(
    bank: PromptBank,
    query: npt.NDArray[np.float32],
    n: int,
    label: str | None = None,
    split: str | None = None,
) -> list[Hit]:
    """The n descriptions whose pooled vectors are nearest to `query` (pooled_width,), nearest first.

    Raises:
        VapError: no description has that class and split.
    """
    entries = dict(described(bank, label, split))
    if not entries:
        splits = {name for row in bank.file.rows(["splits"]) for name in row["splits"]}
        asked = {  # what was asked for, what there is
            "label": (label, f"of class {label!r}", f"a class of {', '.join(bank.metadata['classes'])}"),
            "split": (split, f"in split {split!r}", f"a split of {', '.join(sorted(splits)) or 'none'}"),
        }
        given = {name: told for name, (value, *told) in asked.items() if value is not None}
        raise VapError(
            bank.file.path,
            " ".join(["no description", *(found for found, _ in given.values())]),
            " and ".join(there for _, there in given.values()) or "at least one",
            "leave " + " or ".join(f"--{name}" for name in given) + " out"
            if given
            else "caption and encode again",
        )
    rows = np.asarray(list(entries))
    similarity = unit_vectors(bank)[rows] @ (query / max(float(np.linalg.norm(query)), 1e-12))
    best = np.argsort(-similarity, kind="stable")[:n]
    return [Hit(int(rows[i]), float(similarity[i]), **entries[int(rows[i])]) for i in best]


def statistics(bank: PromptBank) -> dict[str, ClassStats]:
    """`ClassStats` of every class that has a described image, all splits together."""
    vectors = unit_vectors(bank).astype(np.float64)
    counts: dict[str, Counter[int]] = {}  # class to images of each row
    words: dict[str, set[str]] = {}
    for row, entry in described(bank):
        for label in entry["labels"]:
            counts.setdefault(label, Counter())[row] += 1
        for label in set(entry["labels"]):
            words.setdefault(label, set()).update(re.findall(r"\w+", entry["text"].lower()))
    sums = {label: vectors[list(rows)].sum(axis=0) for label, rows in counts.items()}
    total, pairs = sum(sums.values()), sum(len(rows) for rows in counts.values())
    result = {}
    for label in [name for name in bank.metadata["classes"] if name in counts]:
        rows, own = counts[label], sums[label]
        images, distinct, others = rows.total(), len(rows), pairs - len(rows)
        tokens = bank.lengths[list(rows)]
        result[label] = ClassStats(
            images=images,
            distinct=distinct,
            tokens_mean=float(tokens @ np.asarray(list(rows.values())) / images),
            tokens_max=int(tokens.max()),
            vocabulary=len(words[label]),
            shared=sum(n for n in rows.values() if n > 1) / images,
            # the sum over all pairs is |sum|^2, of which each vector with itself gives its own square
            intra=float(own @ own - np.square(vectors[list(rows)]).sum()) / (distinct * (distinct - 1))
            if distinct > 1
            else None,
            inter=float(own @ (total - own)) / (distinct * others) if others else None,
        )
    return result


def prompt_bank(path: str | Path) -> pa.Table:
    """A prompt bank as a table: a row for each description, class and split.

    Args:
        path: data/prompts/DATASET.arrow, or prompts.arrow of a bundle.

    Returns:
        columns `row` (in the bank), `text`, `label`, `split`, `images` (that it describes) and `tokens`.

    Raises:
        VapError: there is no bank.
    """
    bank = PromptBank(Path(path))
    names = ("row", "text", "label", "split", "images", "tokens")
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for row, entry in described(bank):
        counts = Counter(zip(entry["labels"], entry["splits"], strict=True))
        for (label, split), images in counts.items():
            values = (row, entry["text"], label, split, images, int(bank.lengths[row]))
            for name, value in zip(names, values, strict=True):
                columns[name].append(value)
    return pa.table(columns)


class PlainTable(Table):
    """A table whose cells are text, whatever they hold: a description may have what rich takes for markup."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in cells), **options)


# ── the commands ────────────────────────────────────────────────────────────────────────────────────


def show(dataset: str, examples: int = 3, console: Console | None = None) -> None:
    """Print a bank's metadata and size, images a class and split, token lengths, and some descriptions."""
    console, bank = console or Console(), PromptBank(bank_path(dataset))
    facts = PlainTable(title=Text(plain(str(bank.file.path))), show_header=False, title_justify="left")
    size = bank.file.path.stat().st_size
    metadata = bank.metadata
    error = metadata.get("error", {})
    for name, value in {
        "encoder": f"{metadata['encoder']}, revision {metadata['revision']}",
        "pooled": f"{metadata.get('pooled')}, {metadata.get('pooled_width')} numbers",
        "token states": f"{bank.dtype}, width {bank.width}, at most {bank.max_tokens} tokens",
        "error of the dtype": f"max {error.get('max')}, rms {error.get('rms')} (relative)",
        "descriptions": f"{len(bank) - 1} distinct, of {len(bank.row_of)} images",
        "without description": f"{metadata.get('undescribed', 0)} images, which get the null prompt",
        "cut off": f"{metadata.get('cut')} descriptions, at {bank.max_tokens} tokens; "
        f"the longest has {metadata.get('longest')}",
        "size": f"{size / 1e6:.1f} MB, {size / len(bank) / 1e3:.1f} kB a description",
    }.items():
        facts.add_row(name, value)
    console.print(facts)

    counted: Counter[tuple[str, str]] = Counter()
    for _, entry in described(bank):
        counted.update(zip(entry["labels"], entry["splits"], strict=True))
    splits = [split for split in ("train", "val", "test") if any(key[1] == split for key in counted)]
    images = PlainTable("class", *splits, title="described images", title_justify="left")
    for label in metadata["classes"]:
        images.add_row(label, *(str(counted[label, split]) for split in splits))
    console.print(images)

    lengths = bank.lengths[1:]
    bars = PlainTable("tokens", "descriptions", "", title="token lengths", title_justify="left")
    bins = np.bincount(lengths // BIN) if len(lengths) else np.zeros(0, int)
    for i in np.flatnonzero(bins):
        bar = "█" * max(1, round(BAR * bins[i] / bins.max()))
        bars.add_row(f"{i * BIN}–{i * BIN + BIN - 1}", str(bins[i]), bar)
    console.print(bars)

    some = PlainTable("class", "description", title="examples", title_justify="left", show_lines=True)
    for row in np.unique(np.linspace(1, len(bank) - 1, examples).astype(int)) if len(bank) > 1 else []:
        labels = dict.fromkeys(bank.file.value("labels", int(row)))
        some.add_row(", ".join(labels), bank.text(int(row)))
    console.print(some)


def search(
    dataset: str,
    query: str,
    compute: ComputeParams,
    n: int = 10,
    label: str | None = None,
    split: str | None = None,
    console: Console | None = None,
) -> list[Hit]:
    """Print the descriptions nearest to a query by the cosine of the encoder's pooled vectors."""
    from vap.common.places import set_up_torch
    from vap.prompts.draws import encoder_of

    bank = PromptBank(bank_path(dataset))
    encoder = encoder_of(bank, set_up_torch(compute))
    hits = nearest(bank, encoder.encode([query])[0].pooled, n, label, split)
    table = PlainTable("cosine", "class", "split", "images", "description", show_lines=True)
    for hit in hits:
        more = f" and {len(hit.ids) - 3} more" if len(hit.ids) > 3 else ""
        table.add_row(
            f"{hit.similarity:.3f}",
            ", ".join(dict.fromkeys(hit.labels)),
            ", ".join(dict.fromkeys(hit.splits)),
            ", ".join(hit.ids[:3]) + more,
            hit.text,
        )
    (console or Console()).print(table)
    return hits


def stats(dataset: str, console: Console | None = None) -> dict[str, ClassStats]:
    """Print `statistics` of a dataset's bank."""
    found = statistics(PromptBank(bank_path(dataset)))
    table = PlainTable("class", "distinct", "tokens", "longest", "words", "shared", "intra", "inter")
    for label, row in found.items():
        table.add_row(
            label,
            f"{row.distinct}/{row.images}",
            f"{row.tokens_mean:.1f}",
            str(row.tokens_max),
            str(row.vocabulary),
            f"{row.shared:.0%}",
            *("–" if value is None else f"{value:.3f}" for value in (row.intra, row.inter)),
        )
    console = console or Console()
    console.print(table)
    console.print(
        "distinct: descriptions/images; tokens: mean of the images; words: distinct; shared: images whose "
        "description another of the class has too; intra: mean cosine of the pooled vectors of two "
        "descriptions of the class; inter: of one of the class and one of another"
    )
    return found
