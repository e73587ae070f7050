"""The chain of `vap explain` as a readable tree."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from vap.common.errors import plain
from vap.provenance.explain import ABSENT, CHANGED, EMPTY, MATCHES, Found, explain
from vap.results.table import SD

SHORT = 12  # hex digits of a sha256
PIPE = 4096  # columns of a file or a pipe: every line whole
STYLES = {MATCHES: "green", CHANGED: "bold red", ABSENT: "yellow"}


def run(table: Path, row: str, column: str, as_json: bool) -> None:
    """Print the chain behind a cell.

    Raises:
        VapError: as `explain`.
    """
    with Console(stderr=True).status("hashing the chain's files"):
        found = explain(table, row, column)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE)
    console.print(tree(found))
    if "records" in found:
        console.print(Text(summary(found)))


def tree(found: Found) -> Tree:
    """The cell at the root; every artefact with what made it, then what that read."""
    place = f"{found['table']}, row {found['row']} ({', '.join(found['names'].values())})"
    cell = plain(f"{found['column']} = {found['value'] or 'empty'}")
    root = Tree(Text.assemble(f"{plain(place)}: ", (cell, "bold")))
    if "paper" in found:
        paper = found["paper"]
        said = f"the paper's printed number, Table {paper['table']} of the paper; kept in {paper['file']}"
        if found["value"] in EMPTY:
            said = f"the paper prints no number for this row in its Table {paper['table']}"
        root.add(Text(said))
        return root
    told: set[str] = set()
    if "runs" in found:
        what = "standard deviation" if found["column"].endswith(SD) else "mean"
        node = root.add(Text.assemble(f"{what} over {len(found['runs'])} runs, ", *_stated(found["state"])))
        for run in found["runs"]:
            value = json.dumps(run["value"])
            said = f"{run['run']}, seed {run['seed']}: {run['path']}, {run['key']} {value}"
            below = node.add(Text(f"{said}; sha256 {run['sha256'][:SHORT]}"))
            _add(below, found["records"], run["path"], run["path"], told)
        return root
    read = found["from"]
    node = root.add(
        Text.assemble(f"read from {read['path']}, ", *_said(read), f"; sha256 {read['sha256'][:SHORT]}")
    )
    _add(node, found["records"], read["path"], read["path"], told)
    return root


def _said(read: Mapping[str, Any]) -> Iterator[str | tuple[str, str]]:
    """What the JSON has under the cell's key."""
    if read["key"] is None:
        yield "which has no such key: the table stage works this column out"
        return
    yield plain(f"{read['key']} {json.dumps(read['value'], ensure_ascii=False)} ")
    if read["state"] is None:
        yield "(which the table does not print)"
    else:
        yield from _stated(read["state"])


def _stated(state: str) -> Iterator[str | tuple[str, str]]:
    yield (state, STYLES[state])
    yield "" if state == MATCHES else " the table was written: make it again"


def _add(node: Tree, records: Mapping[str, Found], home: str, path: str, told: set[str]) -> None:
    """Below an artefact: what made it, and the files that this read. A record is told once."""
    record = records[home]
    made = f"made by {' '.join([record['stage'], *record['item']])}"
    if home in told:
        node.add(Text(f"{made}: above", "dim"))
        return
    told.add(home)
    seed = "" if record["seed"] is None else f", seed {record['seed']}"
    by = node.add(Text.assemble((made, "bold"), seed, "" if home == path else f" (its record is in {home})"))
    for line in _facts(record):
        by.add(line)
    for name, entry in record["inputs"].items():
        state = entry["state"]
        text = Text.assemble(
            f"{name}: {entry['path']}  sha256 {entry['recorded'][:SHORT]} ", (state, STYLES[state])
        )
        if state == CHANGED:
            text.append(f" (now {entry['now'][:SHORT]})")
            text.append("; what follows is of the file that is there now" if entry["record"] else "")
        below = node.add(text)
        if entry["record"]:
            _add(below, records, entry["record"], entry["path"], told)


def _facts(record: Found) -> Iterator[Text]:
    for name, value in record["params"].items():
        if isinstance(value, dict):
            flat = " ".join(part for key, inner in value.items() for part in _flat(key, inner))
            yield Text(plain(f"params {name}: {flat}"))
        else:
            yield Text(plain(f"params {' '.join(_flat(name, value))}"))
    if record["models"]:
        models = ", ".join(f"{name} {value}" for name, value in record["models"].items())
        yield Text(plain(f"models: {models}"))
    if record["listing"]:
        yield Text(
            f"listing sha256 {record['listing'][:SHORT]} of the raw images' names, labels and sizes; "
            "each image's sha256 is in the file's column sha256"
        )
    recorded, now = record["code"]["recorded"], record["code"]["now"]
    state = "is not here" if now is None else "is the same here" if now == recorded else CHANGED
    style = "green" if now == recorded else "bold red"
    text = Text.assemble(f"code {recorded[:SHORT]} ", (state, style))
    if state == CHANGED:
        text.append(f" (now {now[:SHORT]})")
    yield text
    versions = []
    for name, used in record["libraries"].items():
        here = record["other_here"].get(name, used)
        versions.append(f"{name} {used}" + ("" if here == used else f" (here {here or 'none'})"))
    yield Text(f"libraries {', '.join(versions)}")
    if dvc := record["dvc"]:
        commit = f"last recorded in commit {dvc['commit']}" if dvc["commit"] else "in no commit"
        yield Text(
            f"dvc.lock {dvc['stage']}, {commit}" + (", uncommitted changes" * bool(dvc["uncommitted"]))
        )


def _flat(name: str, value: Any) -> Iterator[str]:
    """key=value by dotted key; lists and null as in JSON."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    else:
        yield f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def summary(found: Found) -> str:
    """One line: whether the chain is whole."""
    records = found["records"].values()
    read = {(entry["path"], entry["state"]) for record in records for entry in record["inputs"].values()}
    lines = [f"{len(records)} records, {len({path for path, _ in read})} files"]
    bad = {state: sorted(path for path, now in read if now == state) for state in (CHANGED, ABSENT)}
    lines += [f"{state}: {', '.join(paths)}" for state, paths in bad.items() if paths]
    if code := sorted({r["stage"] for r in records if r["code"]["now"] != r["code"]["recorded"]}):
        lines.append(f"code {CHANGED}: {', '.join(code)}")
    if found.get("from", found)["state"] == CHANGED:
        lines.append("the table is older than its JSON")
    return "; ".join(lines if len(lines) > 1 else [*lines, "all as recorded"])
