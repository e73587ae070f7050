"""table: the metrics of all datasets and methods as the paper's Table 1, with its values beside ours."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vap.common.artifacts import atomic
from vap.common.errors import VapError
from vap.common.markup import markdown, write_csv
from vap.common.places import floor_path, metrics_path
from vap.params import Params
from vap.results.paper import TABLE1
from vap.runs import seed_run

TABLE = Path("results/tables/table1.csv")
PAPER_COLUMNS = ("paper_fid", "paper_is", "paper_precision", "paper_recall")
NUMBERS = (
    "fid",
    "fid_low",
    "fid_high",
    "isc_mean",
    "isc_std",
    "precision",
    "recall",
    "precision_low",
    "precision_high",
    "recall_low",
    "recall_high",
    "density",
    "coverage",
    "kid_mean",
    "kid_std",
    "prd_f8",
    "prd_f1_8",
    "fid_train",
    "fid_test",
    "adherence",
    "adherence_low",
    "adherence_high",
    "adherence_class_alone",
)
SPREADS = tuple(name for name in NUMBERS if name.endswith(("_low", "_high", "_std")))  # within a run
SD = "_sd"  # of a column beside a mean over runs: their sample standard deviation
COLUMNS = (
    "dataset",
    "method",
    "features",
    "prc_features",
    "reference",
    "n",
    "n_reference",
    "seeds",
    *NUMBERS,
    "floor_fid",
    "floor_n",
    *PAPER_COLUMNS,
)
MEASURED = ("precision", "recall", "density", "coverage")  # beside FID and IS in Markdown
ADHERENCE = "Description followed"
NO_VALUE = "–"  # of a metric that the settings leave out

Row = dict[str, Any]


def run(params: Params) -> Path:
    """Write results/tables/table1.csv and .md, a row per dataset and method in params.yaml's order.

    `fid` is the Fréchet distance in the features that the row names; only with features `inception` is
    it the FID of the literature. `floor_fid` is the distance between two draws of `floor_n` real images. The
    paper's values stand beside the rows of its own datasets. With runs of further seeds among
    `methods` a row is of `runs` runs: every number is their mean, `NAME_sd` their sample standard deviation.

    Raises:
        VapError: a metric file is absent or of another run.
    """
    floors = {dataset: floor_of(dataset) for dataset in params.datasets}
    with_runs = len(params.methods) > len(params.rows)
    columns = columns_of(with_runs)
    rows = []
    for dataset in params.datasets:
        for method in params.rows:
            seeds = params.seeds_of(method)
            row = mean_row(dataset, method, seeds) if with_runs else row_of(dataset, method, "seen")
            row |= floors[dataset]
            paper: Sequence[float | str] = TABLE1.get((dataset, method), ("",) * 4)
            row |= {name: number(value) for name, value in zip(PAPER_COLUMNS, paper, strict=True)}
            rows.append(row)
    write(TABLE, columns, rows, _markdown(rows))
    return TABLE


# ── runs with further seeds ─────────────────────────────────────────────────────────────────────────


def columns_of(with_runs: bool) -> tuple[str, ...]:
    """The columns: with further seeds `runs`, and beside every mean NAME_sd, but for spreads within a run."""
    if not with_runs:
        return COLUMNS
    columns = []
    for name in COLUMNS:
        columns += [name, "runs"] if name == "seeds" else [name]
        columns += [name + SD] if name in NUMBERS and name not in SPREADS else []
    return tuple(columns)


def mean_row(dataset: str, method: str, seeds: Sequence[int]) -> Row:
    """The numbers of a method's own run and of those with `seeds`, as text; a dash where a run has none.

    Raises:
        VapError: the metrics of a run are absent, or no metrics.
    """
    names = [method, *(seed_run(method, seed) for seed in seeds)]
    paths = [metrics_path(dataset, name, "seen") for name in names]
    metrics = [read(path) for path in paths]
    rows = [_row_of(found, path) for found, path in zip(metrics, paths, strict=True)]
    row = rows[0] | {"runs": str(len(rows))}
    row["seeds"] = " ".join(map(str, [row["seeds"], *seeds]))
    for name in NUMBERS:
        mean, sd = mean_and_sd([found[name] for found in metrics], 4 if "kid" in name else 3)
        row |= {name: mean} if name in SPREADS else {name: mean, name + SD: sd}
    return row


def mean_and_sd(values: Sequence[float | None], digits: int = 3) -> tuple[str, str]:
    """Mean and sample standard deviation (over n - 1); dashes where a value is absent or alone."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return NO_VALUE, NO_VALUE
    sd = number(statistics.stdev(known), digits) if len(known) > 1 else NO_VALUE
    return number(statistics.fmean(known), digits), sd


# ── what the tables share ───────────────────────────────────────────────────────────────────────────


def row_of(dataset: str, method: str, condition: str) -> Row:
    """The numbers of one set of samples, as text.

    Raises:
        VapError: the metrics are absent, or no metrics.
    """
    path = metrics_path(dataset, method, condition)
    return _row_of(read(path), path)


def _row_of(metrics: Mapping[str, Any], path: Path) -> Row:
    wanted = f"{path.parent.name}/{path.stem}"
    try:
        own = f"{metrics['dataset']}/{metrics['method']}-{metrics['condition']}"
        if own != wanted:
            raise VapError(path, f"metrics of {own}", "its own", "run the evaluate stage again")
        row = {name: metrics[name] for name in COLUMNS if name in metrics}
        row["seeds"] = metrics["seed"]
        row |= {name: number(metrics[name], 4 if "kid" in name else 3) for name in NUMBERS}
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from None
    return row


def floor_of(dataset: str) -> Row:
    """The distance of real images to other real images: two halves, or train and test of a small dataset."""
    path = floor_path(dataset)
    metrics = read(path)
    try:
        part = metrics["train_halves"] or metrics["train_test"]
        if part is None:
            return {"floor_fid": NO_VALUE, "floor_n": NO_VALUE}
        return {"floor_fid": number(part["fid"]), "floor_n": str(part["n"])}
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(path, error) from None


def read(path: Path) -> Mapping[str, Any]:
    """The evaluate or the floor stage's JSON.

    Raises:
        VapError: it is absent, not readable, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        raise VapError(path, "no such file", "the metrics", f"run the {_stage_of(path)} stage") from None
    except (OSError, ValueError) as error:
        raise _foreign(path, error) from None


def _stage_of(path: Path) -> str:
    return "floor" if path == floor_path(path.parent.name) else "evaluate"


def _foreign(path: Path, error: Exception) -> VapError:
    stage = _stage_of(path)
    return VapError(
        path, f"no metrics ({error!r})", f"the {stage} stage's JSON", f"run the {stage} stage again"
    )


def number(value: float | str | None, digits: int = 3) -> str:
    """A number as it is printed; "–" for none."""
    if value is None:
        return NO_VALUE
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def write(path: Path, columns: Sequence[str], rows: Sequence[Row], text: str) -> None:
    """The CSV, and the Markdown `text` beside it."""
    table = io.StringIO()
    write_csv(table, columns, rows)
    with atomic(path) as part:
        part.write_text(table.getvalue(), encoding="utf-8")
    with atomic(path.with_suffix(".md")) as part:
        part.write_text(text, encoding="utf-8")


def lines_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def distance_name(rows: Sequence[Row]) -> str:
    """FID only where the features are Inception's."""
    features = sorted({row["features"] for row in rows})
    return "FID" if features == ["inception"] else f"FD ({markdown(', '.join(features))})"


def interval(row: Row, name: str) -> str:
    """A number with its 95 % interval, where it has one."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return row[name] if NO_VALUE in (low, high) else f"{row[name]} [{low}, {high}]"  # type: ignore[no-any-return]


def followed(row: Row) -> str:
    """Adherence in percent with its interval, and in parentheses what the class alone gives."""
    names = ("adherence", "adherence_low", "adherence_high", "adherence_class_alone")
    if NO_VALUE in (row["adherence"], row["adherence_class_alone"]):
        return NO_VALUE
    share, low, high, alone = (f"{100 * float(row[name]):.0f}" for name in names)
    return f"{share} % [{low}, {high}] ({alone} %)"


def notes(rows: Sequence[Row], seeds: str | None = None) -> list[str]:
    """What a reader must know of the numbers.

    Args:
        seeds: of the runs that a row is the mean of; None where it is of one run.
    """
    features = sorted({row["features"] for row in rows})
    references = sorted({row["reference"] for row in rows})
    lines = [
        f"Features: {markdown(', '.join(features))}; reference: {markdown(', '.join(references))} split;"
        " n: samples / real. In brackets the 95 % interval (docs/metrics.md)."
    ]
    if seeds is not None:
        lines[0] = lines[0].partition(" In brackets")[0]
        lines.append(
            f"Mean ± sample standard deviation over {len(seeds.split())} runs, each trained and sampled with"
            f" a seed of its own ({', '.join(seeds.split())}) and measured against the same real images."
        )
    if features != ["inception"]:
        lines.append(
            "The distance, IS, precision and recall are measured in these features, not in Inception's:"
            " they compare the rows of this table, and none with a published FID."
        )
    if any(row["adherence"] != NO_VALUE for row in rows):
        alone = "" if seeds is not None else "; in parentheses the share that it would see if each sample had"
        alone += " the description of another sample of its class" if alone else ""
        lines.append(
            f"{ADHERENCE}: of the attributes that a sample's description states, the share that the measured"
            f" describer sees in the sample{alone}. A dash: the method takes no description."
        )
    return lines


def _markdown(rows: Sequence[Row]) -> str:
    with_paper = any(row["paper_fid"] for row in rows)
    seeds = rows[0]["seeds"] if "runs" in rows[0] else None
    head = ["Dataset", "Method", f"{distance_name(rows)} ↓", "IS ↑", "Precision ↑", "Recall ↑", "Density ↑"]
    head += ["Coverage ↑", f"{ADHERENCE} ↑", "n", "Seeds", "Real against real"]
    head += ["Paper: FID", "IS", "Precision", "Recall"] if with_paper else []
    body = []
    for row in rows:
        score = NO_VALUE if row["isc_mean"] == NO_VALUE else f"{row['isc_mean']} ± {row['isc_std']}"
        numbers = [interval(row, "fid"), score, *(row[name] for name in MEASURED), followed(row)]
        if seeds is not None:
            numbers = [_with_sd(row, name) for name in ("fid", "isc_mean", *MEASURED, "adherence")]
        cells = [row["dataset"], row["method"], *numbers]
        cells += [f"{row['n']} / {row['n_reference']}", str(row["seeds"])]
        cells.append(f"{row['floor_fid']} (n = {row['floor_n']})")
        cells += [row[name] or NO_VALUE for name in PAPER_COLUMNS] if with_paper else []
        body.append(cells)
    lines = ["# Table 1: image synthesis", "", *lines_of(head, body), "", *notes(rows, seeds)]
    return "\n".join(lines) + "\n"


def _with_sd(row: Row, name: str) -> str:
    """A mean over runs ± its sample standard deviation."""
    return NO_VALUE if row[name] == NO_VALUE else f"{row[name]} ± {row[name + SD]}"
