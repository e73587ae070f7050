"""Does a sample show what its description says?

The measured describer (vap.captioning.measured) looks at each sample. What it sees is compared, attribute by
attribute, with what the description that the sample was drawn from states. Beside that stands the agreement
that a class alone gives: how often the two would agree if the samples of a class had one another's
descriptions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vap.captioning.statements import PATTERNS, UNSAID, stated
from vap.common.artifacts import ArrowFile
from vap.datasets.attributes import MODALITIES
from vap.datasets.images import decode

NOTHING = ""  # seen, where the describer finds no lesion
LEVEL = 0.95  # of the interval
DRAWS = 1000  # bootstrap samples behind it


@dataclass
class Agreement:
    """One attribute of a set of samples.

    Attributes:
        pairs: (class, stated value, seen value) to the number of samples.
    """

    pairs: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def n(self) -> int:
        return self.pairs.total()

    def agree(self) -> float:
        """Share of the samples that show what is stated."""
        return sum(count for (_, said, seen), count in self.pairs.items() if said == seen) / self.n

    def by_class_alone(self) -> float | None:
        """The share that would agree if each sample had the description of another sample of its class.

        It is the mean over all pairs of different samples of one class, each class weighted by its samples.
        None where no class has two samples.
        """
        said: dict[str, Counter[str]] = defaultdict(Counter)
        seen: dict[str, Counter[str]] = defaultdict(Counter)
        own: Counter[str] = Counter()
        for (label, one, other), count in self.pairs.items():
            said[label][one] += count
            seen[label][other] += count
            own[label] += count * (one == other)
        matches, samples = 0.0, 0
        for label, values in said.items():
            if (n := values.total()) > 1:
                pairs = sum(count * seen[label][value] for value, count in values.items()) - own[label]
                matches += pairs / (n - 1)
                samples += n
        return matches / samples if samples else None


def pairs_of(text: str, seen: dict[str, str], modality: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """(attribute, (stated, seen)) of each attribute of which a description states one value, or states one
    by its silence ("without hair" is not always said)."""
    said = stated(text, modality)
    for name in PATTERNS[modality]:
        values = said.get(name) or ([UNSAID[name]] if name in UNSAID else [])
        if len(values) == 1:
            yield name, (values[0], seen.get(name, NOTHING))


class Described(NamedTuple):
    """A sample that was drawn from a description, and what is seen in it.

    Attributes:
        pairs: attribute to (stated value, seen value).
        wrong: the attributes whose two values differ, sorted.
    """

    row: int
    label: str
    text: str
    seen: dict[str, str]
    pairs: dict[str, tuple[str, str]]

    @property
    def wrong(self) -> list[str]:
        return sorted(name for name, (said, is_seen) in self.pairs.items() if said != is_seen)


def described(samples: ArrowFile, n: int, modality: str) -> Iterator[Described]:
    """Those of the first n samples that have a description, one image in memory at a time."""
    for row, (label, text) in enumerate(
        zip(samples.column("label")[:n], samples.column("text"), strict=False)
    ):
        if text is not None:
            from vap.captioning.measured import measure  # scikit-image and scipy take a second

            seen = measure(decode(samples.value("image", row)), modality)
            yield Described(row, label, text, seen, dict(pairs_of(text, seen, modality)))


def adherence(samples: ArrowFile, n: int, modality: str, seed: int) -> dict[str, Any]:
    """How far the first n samples show what their descriptions say.

    Args:
        samples: of the sample stage.
        modality: of the dataset.
        seed: of the bootstrap.

    Returns:
        adherence: mean over samples of the share of the stated attributes that is seen, in 0..1.
        adherence_low, adherence_high: its 95 % interval over samples (percentile bootstrap).
        adherence_class_alone: the same mean, if each sample had the description of another sample of its
            class: the mean over attributes of `Agreement.by_class_alone`, weighted by their samples.
        attributes: of each attribute `n`, `agreement` and `class_alone`.
        All are None where the samples have no descriptions or the describer does not know the modality.
    """
    found: dict[str, Agreement] = {name: Agreement() for name in PATTERNS.get(modality, {})}
    shares: list[float] = []
    for sample in described(samples, n, modality) if modality in MODALITIES else ():
        for name, pair in sample.pairs.items():
            found[name].pairs[sample.label, *pair] += 1
        if sample.pairs:
            shares.append(1 - len(sample.wrong) / len(sample.pairs))
    if not shares:
        names = ("adherence", "adherence_low", "adherence_high", "adherence_class_alone", "attributes")
        return dict.fromkeys(names)
    low, high = _interval(shares, seed)
    attributes: dict[str, dict[str, float | None]] = {}
    alone, weight = 0.0, 0
    for name, entry in found.items():
        if not entry.n:
            continue
        by_class = entry.by_class_alone()
        attributes[name] = {"n": entry.n, "agreement": entry.agree(), "class_alone": by_class}
        if by_class is not None:
            alone, weight = alone + by_class * entry.n, weight + entry.n
    return {
        "adherence": float(np.mean(shares)),
        "adherence_low": low,
        "adherence_high": high,
        "adherence_class_alone": alone / weight if weight else None,
        "attributes": attributes,
    }


def described_right(prepared: ArrowFile, rows: Iterable[int], modality: str) -> dict[str, float] | None:
    """The describer's own accuracy: of real images, the share whose known value it sees, by attribute.

    It is the most that `adherence` can reach. None where no true attributes are known, as of all images but
    phantoms.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    if modality in MODALITIES:
        from vap.captioning.measured import measure

        for row in rows:
            truth = json.loads(prepared.value("attributes", row) or "{}")
            seen = measure(decode(prepared.value("image", row)), modality) if truth else {}
            for name, value in truth.items():
                if name in PATTERNS[modality]:
                    right[name].append(seen.get(name, NOTHING) == value)
    return {name: float(np.mean(values)) for name, values in right.items()} or None


def _interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """The percentile bootstrap's interval of a mean."""
    rng = np.random.default_rng([seed, 35])
    array = np.asarray(values)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(DRAWS)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
