"""Where the scores of Table 3 stand, and what a source is called there."""

from __future__ import annotations

from pathlib import Path

REAL_ALONE = "none"  # the source of a classifier that sees no synthetic image


def scores_path(dataset: str, classifier: str, ratio: str, source: str) -> Path:
    """Beside results/metrics, not in it: Table 1 depends on all of that folder."""
    return Path("results/downstream") / dataset / f"{classifier}-{ratio}-{source}.json"


def label_of(source: str) -> str:
    """E.g. "real", "real + vap"."""
    return "real" if source == REAL_ALONE else f"real + {source}"
