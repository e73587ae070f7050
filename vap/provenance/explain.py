"""`vap explain`: the whole chain behind one cell of a table, from the number down to the raw files.

The chain is read from the records that the artefacts carry (vap.common.artifacts.provenance). A record
names what its stage read by sha256; here each of these files is hashed again.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vap.captioning.questions import FOLDER as QUESTIONS
from vap.common.artifacts import file_sha256
from vap.common.code import STAGES, code_hash, module_file
from vap.common.errors import VapError
from vap.common.markup import uncell
from vap.common.places import floor_path, latents_path, metrics_path
from vap.downstream.places import label_of, scores_path, source_of
from vap.provenance.lock import Lock
from vap.results.table import NUMBERS, SD, mean_and_sd
from vap.runs import method_of, seed_run

# table to its number, the columns that name a row, and where the paper's printed numbers are kept
TABLES: dict[str, tuple[int, tuple[str, ...], str]] = {
    "table1.csv": (1, ("dataset", "method"), "vap/results/paper.py"),
    "table2.csv": (2, ("dataset", "method", "condition"), "vap/results/paper.py"),
    "table3.csv": (3, ("dataset", "classifier", "ratio", "images"), "vap/results/paper3.py"),
}
KEYS = {"seeds": "seed", "images": "source"}  # column to the JSON's key, where they differ
PAPER = "paper_"
FLOOR = "floor_"  # of real images against real images, from the floor stage's JSON
NO_DESCRIPTION = "none"  # Table 2's condition of a method that takes none: its samples are `seen`
EMPTY = ("", "–", "/")  # a cell without a number
RECORD = {"stage": str, "item": list, "params": dict, "inputs": dict, "code": str, "libraries": dict}
# stage to what of its params names a model, by dotted key
MODELS: dict[str, dict[str, str]] = {
    "caption": {"model": "caption.model", "server": "by", "revision": "vllm.revision"},
    "encode": {"encoder": "encode.encoder"},
    "latents": {"autoencoder": "latents.autoencoder"},
    "evaluate": {"features": "evaluate.features", "prc_features": "evaluate.prc_features"},
    "classify": {
        "classifier": "downstream.classifier.model",
        "weights": "downstream.classifier.weights",
    },
}
MATCHES, CHANGED, ABSENT = "matches", "CHANGED since", "absent here"

Found = dict[str, Any]


def explain(table: Path, row: str, column: str) -> Found:
    """What is behind a cell, as JSON values; docs/provenance.md lists the keys.

    Args:
        table: table1.csv, table2.csv or table3.csv, wherever it lies; all other paths are of the project,
            which is the working folder.
        row: its number, 1 below the header; or its leading cells, or the first of those that name it
            (TABLES), joined by commas.
        column: a name in the header.

    Raises:
        VapError: table, row or column is unknown; a file that the chain goes through is absent or foreign.
    """
    number, names, printed = _table(table)
    place, cells = _row(table, row)
    if column not in cells:
        raise VapError(table, f"no column {column}", f"one of {', '.join(cells)}", "name one")
    if lacking := [name for name in names if not cells.get(name)]:
        raise VapError(table, f"row {place} without {lacking[0]}", "the table stage's CSV", "make it again")
    found: Found = {
        "table": str(table),
        "row": place,
        "names": {name: cells[name] for name in names},
        "column": column,
        "value": cells[column],
    }
    if column.startswith(PAPER):
        return found | {"paper": {"table": number, "file": printed}}
    if "runs" in cells and column.removesuffix(SD) in NUMBERS:
        return found | _mean_of_runs(table, cells, column)
    path, own = _scores(number, cells)
    if column.startswith(FLOOR):
        path, own = floor_path(cells["dataset"]), {"dataset": cells["dataset"]}
    read = _read(table, path, own, column)
    of_runs = "runs" in cells and column == "seeds"  # those of all runs
    repeated = number == 3 and cells["images"] != label_of(own["source"])  # the scores of another row
    if of_runs or (repeated and column in ("images", "generator_data")):
        read["key"], read["value"] = None, None
    read["state"] = _agrees(cells[column], column, read["value"]) if read["key"] else None
    return found | {"from": read, "records": _records(path)}


def _read(table: Path, path: Path, own: Mapping[str, str], column: str) -> Found:
    """What a JSON has under a column's key; it must say of itself what `own` says."""
    data = _json(path)
    if foreign := [name for name, value in own.items() if str(data.get(name)) != value]:
        what = f"{foreign[0]} {data.get(foreign[0])}"
        raise VapError(path, what, f"{own[foreign[0]]}, as in {table}", "run its stage again")
    key, value = _value(data, column)
    return {"path": str(path), "sha256": file_sha256(path), "key": key, "value": value}


def _mean_of_runs(table: Path, cells: Mapping[str, str], column: str) -> Found:
    """The runs behind a mean, or behind its standard deviation, and whether they still give it."""
    first, *further = cells["seeds"].split()
    names = [cells["method"], *(seed_run(cells["method"], int(seed)) for seed in further)]
    runs = []
    for name, seed in zip(names, [first, *further], strict=True):
        path, own = _scores(1, {**cells, "method": name})
        runs.append({"run": name, "seed": int(seed), **_read(table, path, own, column.removesuffix(SD))})
    cell = cells[column]
    mean, sd = mean_and_sd([run["value"] for run in runs], len(cell.partition(".")[2]))
    state = MATCHES if cell == (sd if column.endswith(SD) else mean) else CHANGED
    return {"runs": runs, "state": state, "records": _records(*(Path(run["path"]) for run in runs))}


# ── the cell ──────────────────────────────────────────────────────────────────────────────────────


def _table(table: Path) -> tuple[int, tuple[str, ...], str]:
    if table.name not in TABLES:
        raise VapError(table, table.name, f"one of {', '.join(TABLES)}", "name one in results/tables")
    return TABLES[table.name]


def _row(table: Path, row: str) -> tuple[int, dict[str, str]]:
    """(number of the row, column to cell)."""
    remake = "make the table again"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise VapError(table, error.strerror or "no file", "the table", "make it, or `dvc pull`") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise VapError(table, f"no CSV ({error})", "the table stage's CSV", remake) from None
    if bad := [i for i, cells in enumerate(rows, 1) if None in cells or None in cells.values()]:
        raise VapError(table, f"row {bad[0]} of another length than the header", "one CSV", remake)
    if not rows:
        raise VapError(table, "no row below a header", "the table stage's CSV", remake)
    rows = [{name: uncell(cell) for name, cell in cells.items()} for cells in rows]
    if re.fullmatch(r"\d+", row):
        if not 1 <= int(row) <= len(rows):
            raise VapError(table, f"no row {row}", f"1 to {len(rows)}", "name one; 1 is below the header")
        return int(row), rows[int(row) - 1]
    wanted = [cell.strip() for cell in row.split(",")]
    names = _table(table)[1]
    hits = []
    for i, cells in enumerate(rows):
        naming = [cells.get(name) for name in names]
        if wanted in (list(cells.values())[: len(wanted)], naming[: len(wanted)]):
            hits.append(i)
    if len(hits) != 1:
        what = f"{len(hits) or 'no'} row{'s' * (len(hits) != 1)} beginning with {','.join(wanted)}"
        if hits:
            what += f" ({', '.join(str(i + 1) for i in hits)})"
        some = "; ".join(",".join(cells.get(name, "") for name in names) for cells in rows[:3])
        raise VapError(table, what, f"one row, such as {some}", "give more leading cells, or its number")
    return hits[0] + 1, rows[hits[0]]


def _scores(number: int, cells: Mapping[str, str]) -> tuple[Path, dict[str, str]]:
    """The JSON that a row was read from, and what it must say of itself."""
    if number == 3:
        own = {name: cells[name] for name in ("dataset", "classifier", "ratio")}
        own["source"] = source_of(cells["images"], cells["ratio"])
        return scores_path(own["dataset"], own["classifier"], own["ratio"], own["source"]), own
    own = {name: cells[name] for name in ("dataset", "method")}
    own["condition"] = cells["condition"] if number == 2 else "seen"
    if own["condition"] == NO_DESCRIPTION:
        own["condition"] = "seen"
    return metrics_path(own["dataset"], own["method"], own["condition"]), own


def _value(data: Found, column: str) -> tuple[str | None, Any]:
    """(key, value) of the JSON that a column prints; no key where the table stage works it out."""
    if not column.startswith(FLOOR):
        key = KEYS.get(column, column)
        return (key, data[key]) if key in data else (None, None)
    for part in ("train_halves", "train_test"):  # the second of a small dataset
        if isinstance(data.get(part), dict):
            key = column.removeprefix(FLOOR)
            return f"{part}.{key}", data[part].get(key)
    return "train_halves", None


def _agrees(cell: str, column: str, value: Any) -> str | None:
    """Whether the JSON still says what the table says; None where the table prints no number."""
    if cell in EMPTY:
        return MATCHES if value in (None, []) else None
    if column == "images":
        same = cell == label_of(value)
    elif isinstance(value, list):
        same = cell == " ".join(map(str, value))
    elif isinstance(value, int | float):
        same = cell == f"{value:.{len(cell.partition('.')[2])}f}"  # to the table's decimals
    else:
        same = cell == str(value)
    return MATCHES if same else CHANGED


# ── the chain ─────────────────────────────────────────────────────────────────────────────────────


def _records(*first: Path) -> dict[str, Found]:
    """File that holds a record to the record and the state of what it read, from `first` upstream."""
    hashes: dict[Path, str] = {}
    lock, todo = Lock(), list(first)
    found: dict[str, Found] = {}
    while todo:
        home = todo.pop(0)
        if str(home) in found:
            continue
        record = read_record(home)
        inputs = {name: _input(record, name, hashes) for name in record["inputs"]}
        modules = _modules(record)
        known = all(module_file(name) for name in modules)
        found[str(home)] = {
            "stage": record["stage"],
            "item": record["item"],
            "seed": record["params"].get("seed"),
            "params": {name: value for name, value in record["params"].items() if name != "seed"},
            "models": _models(record),
            "listing": record.get("listing"),
            "code": {"recorded": record["code"], "now": code_hash(modules) if known else None},
            "libraries": record["libraries"],
            "other_here": _other_versions(record["libraries"]),
            "dvc": lock.of(home.as_posix()),
            "inputs": inputs,
        }
        todo += [Path(entry["record"]) for entry in inputs.values() if entry["record"]]
    return found


def read_record(path: Path) -> Found:
    """The record of what made an artefact.

    Raises:
        VapError: the file is absent, not readable, or carries no record.
    """
    if not path.is_file():
        raise VapError(path, "no such file", "an artefact of the chain", "`dvc pull`, or run its stage")
    record: Any
    if path.suffix == ".json":
        record = _json(path).get("provenance")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            if path.suffix == ".parquet":
                metadata = pq.read_schema(path).metadata
            else:
                metadata = pa.ipc.open_file(pa.memory_map(str(path))).schema.metadata
            record = json.loads((metadata or {}).get(b"vap.provenance", b"null"))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise VapError(path, f"no artefact ({error})", "one of this project", "run its stage") from None
    whole = isinstance(record, dict) and all(isinstance(record.get(key), of) for key, of in RECORD.items())
    if whole:
        named = [record["stage"], *record["item"]]
        whole = all(isinstance(name, str) and re.fullmatch(r"[^/\\]+", name) for name in named) and all(
            isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("path", "sha256"))
            for entry in record["inputs"].values()
        )
    if not whole:
        raise VapError(path, "no record of what made it", "an artefact of this project", "run its stage")
    return dict(record)


def _json(path: Path) -> Found:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VapError(path, "no such file", "what the row was read from", "`dvc pull`") from None
    except (ValueError, OSError) as error:
        raise VapError(path, f"no readable JSON ({error})", "a stage's JSON", _again(path)) from None
    if not isinstance(data, dict):
        raise VapError(path, type(data).__name__, "a stage's JSON object", _again(path))
    return data


def _again(path: Path) -> str:
    """Which stage to run for a JSON."""
    match path.parts:
        case ("results", "metrics", _, "real.json"):
            stage = "floor"
        case ("results", "metrics" | "ablation", _, _):
            stage = "evaluate"
        case ("results", "downstream", _, _):
            stage = "classify"
        case ("results", "models", _, _, _):
            stage = "train"
        case _:
            return "run its stage again"
    return f"run the {stage} stage again"


def _input(record: Found, name: str, hashes: dict[Path, str]) -> Found:
    """A file that a stage read: sha256 as recorded and now, and which file holds its own record."""
    told, recorded = record["inputs"][name]["path"], record["inputs"][name]["sha256"]
    path, now = _place(record["stage"], name, told), None
    if path is not None and path.exists():
        now = hashes[path] = hashes.get(path) or file_sha256(path)
    state = ABSENT if now is None else MATCHES if now == recorded else CHANGED
    home = _home(Path(told))
    shown = {"path": told, "recorded": recorded, "now": now, "state": state}
    return {**shown, "record": str(home) if home else None}


def _place(stage: str, name: str, told: str) -> Path | None:
    """Where an input lies; records do not say where a machine keeps questions and text encoders."""
    if stage == "caption" and name == "questions":
        return QUESTIONS / told
    if stage == "encode" and name.startswith("encoder"):
        if told != "minilm" and not Path(told).exists():
            os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported: nothing is fetched
        from vap.prompts.places import locate

        try:
            return locate(told).inputs().get(name)
        except (VapError, OSError, ImportError):
            return None
    return Path(told)


def _home(path: Path) -> Path | None:
    """The file with an artefact's record; None for what no stage made."""
    match path.parts:
        case ("results", "models", _, _, _):
            return path.parent / "config.json"
        case ("data", "autoencoders", dataset, _):
            return latents_path(dataset)  # made by the same run
        case ("data", "prepared" | "captions" | "prompts" | "latents", _):
            return path
        case ("results", "samples" | "ablation" | "metrics" | "downstream", _, _):
            return path
    return None


def _modules(record: Found) -> list[str]:
    """What the stage's code hash is over: as in the stages' calls of `provenance`."""
    stage, item = record["stage"], record["item"]
    names = [STAGES[stage]] if stage in STAGES else []
    if stage in ("train", "sample"):
        names += [f"vap.generators.{method_of(name)}" for name in item[1:2]]
    if stage == "caption" and record["params"].get("by") == "measured":
        names.append("vap.captioning.describer_server")
    return names


def _models(record: Found) -> dict[str, Any]:
    found = {}
    for name, key in MODELS.get(record["stage"], {}).items():
        value: Any = record["params"]
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


def _other_versions(libraries: Mapping[str, str]) -> dict[str, str | None]:
    """The libraries whose version here is another; None where there is none."""
    found: dict[str, str | None] = {}
    for name, recorded in libraries.items():
        try:
            here: str | None = version(name)
        except PackageNotFoundError:
            here = None
        if here != recorded:
            found[name] = here
    return found
