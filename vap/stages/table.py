"""table: the metrics of all datasets and methods as the paper's Table 1, with its values beside ours."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from vap.artifacts import atomic
from vap.errors import VapError
from vap.params import Params
from vap.stages.common import metrics_path
from vap.stages.paper import TABLE1

TABLE = Path("results/tables/table1.csv")
PAPER_COLUMNS = ("paper_fid", "paper_is", "paper_precision", "paper_recall")
COLUMNS = (
    "dataset",
    "method",
    "features",
    "reference",
    "n",
    "n_reference",
    "seeds",
    "fid",
    "isc_mean",
    "isc_std",
    "precision",
    "recall",
    *PAPER_COLUMNS,
)


def run(params: Params) -> Path:
    """Write results/tables/table1.csv and .md, a row per dataset and method in params.yaml's order.

    `fid` is the Fréchet distance in the features that the row names; only with features `inception` is
    it the FID of the literature. The paper's values stand beside the rows of its own datasets.

    Raises:
        VapError: a metric file is absent or of another run.
    """
    rows = [_row(params, dataset, method) for dataset in params.datasets for method in params.methods]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic(TABLE) as part:
        part.write_text(text.getvalue(), encoding="utf-8")
    with atomic(TABLE.with_suffix(".md")) as part:
        part.write_text(_markdown(rows), encoding="utf-8")
    return TABLE


def _row(params: Params, dataset: str, method: str) -> dict[str, Any]:
    path = metrics_path(dataset, method, "seen")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        row = {name: metrics[name] for name in COLUMNS if name in metrics}
        row["seeds"] = metrics["seed"]
    except FileNotFoundError:
        raise VapError(path, "no such file", "the metrics", "run the evaluate stage") from None
    except (ValueError, KeyError, TypeError) as error:
        raise VapError(
            path, f"no metrics ({error!r})", "the evaluate stage's JSON", "evaluate again"
        ) from None
    for name in ("fid", "isc_mean", "isc_std", "precision", "recall"):
        row[name] = f"{row[name]:.3f}"
    paper = TABLE1.get((dataset, method))
    row |= dict.fromkeys(PAPER_COLUMNS, "")
    if paper:
        row |= {name: f"{value:.3f}" for name, value in zip(PAPER_COLUMNS, paper, strict=True)}
    return row


def _markdown(rows: list[dict[str, Any]]) -> str:
    features = sorted({row["features"] for row in rows})
    references = sorted({row["reference"] for row in rows})
    fid = "FID" if features == ["inception"] else f"FD ({', '.join(features)})"
    with_paper = any(row["paper_fid"] for row in rows)
    head = ["Dataset", "Method", f"{fid} ↓", "IS ↑", "Precision ↑", "Recall ↑", "n", "Seeds"]
    head += ["Paper: FID", "IS", "Precision", "Recall"] if with_paper else []
    lines = ["# Table 1: image synthesis", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["dataset"], row["method"], row["fid"]]
        cells += [f"{row['isc_mean']} ± {row['isc_std']}", row["precision"], row["recall"]]
        cells += [f"{row['n']} / {row['n_reference']}", str(row["seeds"])]
        cells += [row[name] or "–" for name in PAPER_COLUMNS] if with_paper else []
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Features: {', '.join(features)}; reference: {', '.join(references)} split; n: samples / real.",
    ]
    if features != ["inception"]:
        lines.append(
            "The distance, IS, precision and recall are measured in these features, not in Inception's:"
            " they compare the rows of this table, and none with a published FID."
        )
    return "\n".join(lines) + "\n"
