"""table2: VAP-Diffusion and what it is without a part, under seen and unseen descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vap.params import AblationParams, Params
from vap.results.paper import TABLE2
from vap.results.table import (
    ADHERENCE,
    NO_VALUE,
    Row,
    distance_name,
    floor_of,
    followed,
    interval,
    lines_of,
    notes,
    number,
    row_of,
    write,
)

TABLE = Path("results/tables/table2.csv")
COLUMNS = (
    "dataset",
    "method",
    "row",
    "condition",
    "features",
    "reference",
    "n",
    "n_reference",
    "seeds",
    "fid",
    "fid_low",
    "fid_high",
    "recall",
    "recall_low",
    "recall_high",
    "precision",
    "fid_train",
    "fid_test",
    "adherence",
    "adherence_low",
    "adherence_high",
    "adherence_class_alone",
    "floor_fid",
    "floor_n",
    "paper_fid",
    "paper_recall",
)
NO_DESCRIPTION = "none"  # condition of the method without descriptions


def run(params: Params) -> Path:
    """Write results/tables/table2.csv and .md: for each dataset the full method, the one without descriptions
    and those without another part, under each condition.

    The paper's numbers stand beside the rows of its own datasets under `unseen`, and beside its method
    without descriptions. It does not state the reference images: `fid_train` and `fid_test` are both there.

    Raises:
        VapError: a metric file is absent or of another run.
    """
    rows = [
        _row(params.ablation, dataset, method, condition)
        for dataset in params.datasets
        for method, condition in plan(params.ablation)
    ]
    write(TABLE, COLUMNS, rows, _markdown(rows))
    return TABLE


def plan(settings: AblationParams) -> list[tuple[str, str]]:
    """(method, condition) of a dataset's rows."""
    conditions = ["seen", *settings.conditions, *settings.across]
    rows = [(settings.full, condition) for condition in conditions]
    rows.append((settings.plain, NO_DESCRIPTION))
    return rows + [(method, condition) for method in settings.without for condition in conditions]


def _row(settings: AblationParams, dataset: str, method: str, condition: str) -> Row:
    seen = "seen" if condition == NO_DESCRIPTION else condition
    found = row_of(dataset, method, seen)
    part = method.partition("_without_")[2]
    name, key = {settings.full: ("VAP-Diffusion", "full"), settings.plain: ("w/o VAPS", "plain")}.get(
        method, (f"w/o {part.upper()}", f"without_{part}")
    )
    paper = TABLE2.get((dataset, key)) if condition in ("unseen", NO_DESCRIPTION) else None
    found |= floor_of(dataset) | {"row": name, "condition": condition}
    found |= dict(zip(("paper_fid", "paper_recall"), map(number, paper or ("", "")), strict=True))
    return {column: found[column] for column in COLUMNS}


def _markdown(rows: Sequence[Row]) -> str:
    with_paper = any(row["paper_fid"] for row in rows)
    head = ["Dataset", "", "Descriptions", f"{distance_name(rows)} ↓", "Recall ↑", "Precision ↑"]
    head += [f"{ADHERENCE} ↑", "against train", "against test", "n", "Real against real"]
    head += ["Paper: FID", "Recall"] if with_paper else []
    body = []
    for row in rows:
        cells = [row["dataset"], row["row"], row["condition"], interval(row, "fid"), interval(row, "recall")]
        cells += [row["precision"], followed(row), row["fid_train"], row["fid_test"]]
        cells.append(f"{row['n']} / {row['n_reference']}")
        cells.append(f"{row['floor_fid']} (n = {row['floor_n']})")
        cells += [row[name] or NO_VALUE for name in ("paper_fid", "paper_recall")] if with_paper else []
        body.append(cells)
    lines = ["# Table 2: without a part, and with unseen descriptions", "", *lines_of(head, body), ""]
    lines += [
        "Descriptions of each sample's class. seen: of the training images; unseen: of the test images;"
        " shuffled: of the training images, their attributes exchanged so that no image has them; other:"
        " of another dataset's training images, of any class where that dataset lacks the class; none: the"
        " method takes none.",
        "The two distances against train and test are of equally many images.",
        *notes(rows),
    ]
    return "\n".join(lines) + "\n"
