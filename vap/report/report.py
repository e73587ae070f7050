"""report: what a run has made, as one HTML page that needs no other file, and the numbers to compare."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vap import __version__
from vap.common.artifacts import atomic, file_sha256, write_json
from vap.common.errors import VapError
from vap.common.markup import uncell, write_csv
from vap.common.places import model_path
from vap.params import Params
from vap.provenance.lock import Lock
from vap.report import pictures
from vap.report.plots import bars, curves
from vap.results import table, table2, table3
from vap.results.figure import figure_path

PAGE = Path("results/report.html")
SUMMARY = Path("results/summary")
DISTANCES = Path("results/distances.csv")  # DVC takes every file of a folder of metrics for one
TEMPLATES = Path(__file__).with_suffix("")
SHORT = 12  # hex digits of a sha256
COMPARED = {
    "fid": "distance",
    "isc_mean": "is",
    "precision": "precision",
    "recall": "recall",
    "coverage": "coverage",
    "adherence": "adherence",
}
# Of each table: title, file, and the columns that are shown.
IN_1 = (
    "dataset method features n fid fid_low fid_high isc_mean precision recall density coverage floor_fid "
    "adherence"
)
IN_2 = (
    "dataset row condition features n fid fid_low fid_high recall precision floor_fid paper_fid paper_recall"
)
IN_3 = (
    "dataset classifier ratio images n_real n_synthetic mauc mauc_low mauc_high f1 f1_low f1_high "
    "paper_mauc paper_f1"
)
TABLES = (
    ("Table 1: image synthesis", table.TABLE, (*IN_1.split(), *table.PAPER_COLUMNS)),
    ("Table 2: without a part, and with unseen descriptions", table2.TABLE, IN_2.split()),
    ("Table 3: downstream classification", table3.TABLE, IN_3.split()),
)
SECTIONS = {
    "bars": "Metrics with intervals",
    "beside": "Real, StyleGAN and VAP-Diffusion",
    "sweeps": "One attribute at a time",
    "captions": "Images and their descriptions",
    "curves": "Training",
    "neighbours": "Nearest training images",
    "figures": "Pages of pictures",
}
T = TypeVar("T")
Cells = list[dict[str, str]]


def run(params: Params) -> Path:
    """Write results/report.html, a JSON a dataset and method in results/summary, and
    results/distances.csv.

    What is not there is left out, and the page says so. The same artefacts give the same bytes; the commit
    is the one that recorded Table 1 in dvc.lock.

    Raises:
        VapError: there is no Table 1.
    """
    told: list[str] = []
    found = [(title, path, columns, _rows(path)) for title, path, columns in TABLES]
    if not found[0][3]:
        raise VapError(table.TABLE, "no table", "Table 1 of this run", "make it: `make table1`")
    told += [f"{title}: {path} is not made yet." for title, path, _, rows in found if not rows]
    own = found[0][3]

    def each(
        what: str, make: Callable[[str], T], datasets: Sequence[str] | None = None
    ) -> list[tuple[str, T]]:
        """What `make` gives of each dataset; of those that lack something, why."""
        parts = []
        for dataset in datasets or params.datasets:
            try:
                parts.append((dataset, make(dataset)))
            except VapError as error:
                told.append(f"{what} of {dataset}: {error.where}: found {error.found}.")
            except OSError as error:
                told.append(f"{what} of {dataset}: {error.filename}: {error.strerror}.")
        return [(dataset, part) for dataset, part in parts if part]

    texts = [method for method in params.rows if params.kind(method) == "prompts"]
    rivals = [method for method in ("stylegan",) if method in params.rows]
    if not rivals:
        told.append("StyleGAN is no method of this run, so the pictures beside each other lack it.")
    if not texts:
        told.append("No method of this run reads descriptions, so no attribute is changed.")
    first = list({params.dataset[name].modality: name for name in reversed(params.datasets)}.values())[::-1]
    compared = [*rivals, *texts[:1]] or list(params.rows[:1])
    beside = each("Pictures", lambda name: pictures.side_by_side(params, name, compared), first)
    shown = each("Sweeps", lambda name: pictures.sweeps(params, name, texts[0]), first) if texts else []
    if texts:
        done = {name for name, _ in shown}
        told += [
            f"Sweeps of {name}: no description of its bank states each attribute in known words."
            for name in first
            if name not in done and not any(line.startswith(f"Sweeps of {name}:") for line in told)
        ]
    parts: dict[str, Any] = {
        "bars": [(name, charts) for name in params.datasets if (charts := _bars(own, name))],
        "beside": [(name, params.dataset[name].modality, rows) for name, rows in beside],
        "sweeps": [(name, texts[0], rows) for name, rows in shown],
        "captions": each("Descriptions", pictures.described, first),
        "curves": each("Curves", lambda name: _curves(params, name)),
        "neighbours": [
            (name, compared[-1], near)
            for name, near in each("Neighbours", lambda name: pictures.neighbours(params, name, compared[-1]))
        ],
        "figures": each("The page", lambda name: pictures.data_url(figure_path(name).read_bytes())),
    }
    tables = [_table(number, *entry) for number, entry in enumerate(found, 1) if entry[3]]
    links = [(entry["id"], entry["title"]) for entry in tables]
    links += [(name, title) for name, title in SECTIONS.items() if parts[name]]
    records, libraries = _records(params)
    lock = Lock().of(str(table.TABLE))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    from markupsafe import Markup

    page = environment.get_template("page.html.j2").render(
        datasets=params.datasets,
        methods=params.rows,
        image_size=params.prepare.image_size,
        seed=params.seed,
        evaluate=params.evaluate,
        sample=params.sample,
        guidance=params.method[texts[0]].sample.model_dump().get("guidance_scale") if texts else None,
        phantoms=[name for name in params.datasets if params.dataset[name].adapter == "phantom"],
        style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        sections=[*links, ("provenance", "Where the numbers come from")],
        missing=told,
        tables=tables,
        records=records,
        libraries=libraries,
        version=__version__,
        commit=lock["commit"] if lock else None,
        **parts,
    )
    _summary(own)
    with atomic(PAGE) as part:
        part.write_text(page.strip() + "\n", encoding="utf-8")
    return PAGE


def _rows(path: Path) -> Cells:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: uncell(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _table(number: int, title: str, path: Path, columns: Sequence[str], rows: Cells) -> dict[str, Any]:
    kept = [name for name in columns if name in rows[0] and any(row[name] not in ("", "–") for row in rows)]
    paper = any(name.startswith("paper_") for name in kept)
    caption = "fid is the Fréchet distance in the features that the row names. " if number < 3 else ""
    caption += (
        "The paper's values are of 10,000 images of 256 × 256 pixels, and of Inception's features as far as "
        "it says: other features or another scale cannot be set beside them."
        if paper
        else "The paper has no values for these datasets."
    )
    lines = [[row[name] for name in kept] for row in rows]
    return {"id": f"table{number}", "title": title, "head": kept, "rows": lines, "caption": caption}


# ── plots ───────────────────────────────────────────────────────────────────────────────────────────


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _bars(rows: Cells, dataset: str) -> list[tuple[str, str]]:
    charts = []
    for name, title in (("fid", "Fréchet distance ↓"), ("precision", "Precision ↑"), ("recall", "Recall ↑")):
        lines = [
            (row["method"], value, _number(row.get(f"{name}_low")), _number(row.get(f"{name}_high")))
            for row in rows
            if row["dataset"] == dataset and (value := _number(row[name])) is not None
        ]
        if svg := bars(lines, f"{title} of {dataset}"):
            charts.append((title, svg))
    return charts


def _curves(params: Params, dataset: str) -> str:
    series = {}
    for method in params.rows:
        rows = _rows(model_path(dataset, method) / "train.csv")
        points = [(_number(row.get("step")), _number(row.get("loss"))) for row in rows]
        series[method] = [(x, y) for x, y in points if x is not None and y is not None]
    return curves(series, f"Training losses on {dataset}", "step", "loss")


# ── records and numbers ─────────────────────────────────────────────────────────────────────────────


def _records(params: Params) -> tuple[list[list[str]], list[str]]:
    """A line a model that is there, and the libraries that trained them."""
    lines, libraries = [], set()
    for dataset in params.datasets:
        for method in params.rows:
            folder = model_path(dataset, method)
            if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
                continue
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            record = config["provenance"]
            libraries |= {f"{name} {version}" for name, version in record["libraries"].items()}
            weights = file_sha256(folder / "model.safetensors")[:SHORT]
            steps = str(config["train"].get("steps", "–"))
            seed = str(record["params"].get("seed", "–"))
            lines.append([f"{dataset} {method}", seed, steps, record["code"][:SHORT], weights])
    return lines, sorted(libraries)


def _summary(rows: Cells) -> None:
    """What DVC compares: few numbers of each dataset and method, and the distances for its bars."""
    with atomic(SUMMARY) as part:
        part.mkdir(parents=True)
        for row in rows:
            numbers = {new: _number(row[name]) for name, new in COMPARED.items()}
            known = {name: value for name, value in numbers.items() if value is not None}
            write_json(part / row["dataset"] / f"{row['method']}.json", known)
    lines = [{"run": f"{row['dataset']} {row['method']}", "distance": row["fid"]} for row in rows]
    with atomic(DISTANCES) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, ("run", "distance"), lines)
