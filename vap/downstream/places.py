"""Where the scores of Table 3 stand, and what a source is called there."""

from __future__ import annotations

from pathlib import Path

from vap.runs import method_of, share_run

REAL_ALONE = "none"  # the source of a classifier that sees no synthetic image
SHARE = " (trained on the share)"  # of the label of a generator that saw the classifier's real images alone


def scores_path(dataset: str, classifier: str, ratio: str, source: str) -> Path:
    """Beside results/metrics, not in it: Table 1 depends on all of that folder."""
    return Path("results/downstream") / dataset / f"{classifier}-{ratio}-{source}.json"


def curves_folder(dataset: str, classifier: str, ratio: str, source: str) -> Path:
    """Where a classifier's live curves stand; no artefact."""
    return Path("logs/classify") / f"{dataset}-{classifier}-{ratio}-{source}"


def generator_data_of(source: str) -> str | None:
    """What the generator has seen: "full", all real images; "ratio", the classifier's; None: no generator."""
    if source == REAL_ALONE:
        return None
    return "full" if method_of(source) == source else "ratio"


def label_of(source: str) -> str:
    """E.g. "real", "real + vap", "real + vap (trained on the share)"."""
    if source == REAL_ALONE:
        return "real"
    return f"real + {method_of(source)}" + SHARE * (generator_data_of(source) == "ratio")


def source_of(label: str, ratio: str) -> str:
    """The source of a label; at 100 percent the share is the whole, and the source the method itself."""
    if label == label_of(REAL_ALONE):
        return REAL_ALONE
    source = label.removeprefix("real + ")
    method = source.removesuffix(SHARE)
    return method if method == source or ratio == "100" else share_run(method, int(ratio))
