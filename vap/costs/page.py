"""The listing of `vap cost`: a table by rich, or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml
from vap.costs.estimate import Sum, by_stage, estimate, load_rates, sum_of
from vap.costs.model import Device, Rates, Row
from vap.params import PARAMS_FILE, parse

BENCHMARKS = Path("benchmarks/out")


def cost(source: Path = PARAMS_FILE, device: str = "cuda", as_json: bool = False) -> None:
    """List what the settings in `source` cost.

    Raises:
        VapError: the settings do not fit the schema, or the device is none of cpu and cuda.
    """
    if device not in ("cpu", "cuda"):
        raise VapError("--device", repr(device), "cpu or cuda", "name one of the two")
    config = read_yaml(source, "the settings", "`vap profile list` names profiles")
    params, rates = parse(config, source), load_rates(BENCHMARKS)
    kind: Device = "cpu" if device == "cpu" else "cuda"
    rows = estimate(params, config, kind, rates)
    if as_json:
        print(json.dumps(document(rows, kind, rates, source), indent=2, ensure_ascii=False))
    else:
        show(rows, kind, rates, source, params.compute.threads)


def document(rows: list[Row], device: Device, rates: Rates, source: Path) -> dict[str, Any]:
    """`jobs`, `stages`, `total`; a number that is not known is null."""
    return {
        "settings": str(source),
        "device": device,
        "machine": rates["devices"][device]["name"],
        "jobs": [asdict(row) for row in rows],
        "stages": {stage: asdict(sum_of(part)) for stage, part in by_stage(rows)},
        "total": asdict(sum_of(rows)),
    }


def show(rows: list[Row], device: Device, rates: Rates, source: Path, threads: int) -> None:
    """Print the table, its sums and its notes."""
    name = rates["devices"][device]["name"]
    count = f", {threads} threads a job" if rates["devices"][device]["per_thread"] else ""
    console = Console()
    if not console.is_terminal:  # a file or a pipe takes lines of any length
        console = Console(width=200)
    table = Table(title=f"{source} on {name}{count}", title_justify="left")
    for column in ("stage", "item", "scales with"):
        table.add_column(column, overflow="fold")
    for column in ("hours", "memory GB", "disk GB"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("rates")
    notes: dict[str, int] = {}
    for stage, part in by_stage(rows):
        for row in part:
            marks = "".join(f" [{notes.setdefault(note, len(notes) + 1)}]" for note in row.notes)
            hours = f"{number(row.hours)} {row.place}"
            cells = (hours, number(row.memory_gb), number(row.disk_gb), row.basis)
            table.add_row(stage, row.item.replace("[", r"\["), row.scales + marks.replace("[", r"\["), *cells)
        if len(part) > 1:
            _add_sum(table, stage, sum_of(part))
        table.add_section()
    _add_sum(table, "all", sum_of(rows))
    console.print(table)
    for note, mark in notes.items():
        console.print(f"[{mark}] {note}", markup=False, highlight=False)
    for line in remarks(rows, device, rates):
        console.print(line, markup=False, highlight=False)


def remarks(rows: list[Row], device: Device, rates: Rates) -> list[str]:
    """What a reader must know of the numbers."""
    found = ["Hours are of one job after another; memory is the largest job's; disk is what stays."]
    scratch = max((row.scratch_gb for row in rows), default=0.0)
    found.append(f"While a training runs, its checkpoints take up to {number(scratch)} GB more.")
    assumed = sum("assumed" in row.basis for row in rows)
    if assumed:
        name = rates["devices"][device]["name"]
        found.append(
            f"assumed: {assumed} of {len(rows)} jobs use rates that are not measured on {name} "
            "(vap/costs/rates.yaml says which); `make bench` there replaces some."
        )
    if unknown := sum_of(rows).unknown:
        found.append(f"?: something is not known of {unknown} jobs; the sums leave that out.")
    return found


def _add_sum(table: Table, stage: str, total: Sum) -> None:
    more = f", {total.unknown} not wholly known" if total.unknown else ""
    hours = [
        f"{number(value)} {place}"
        for place, value in (("GPU", total.gpu_hours), ("CPU", total.cpu_hours))
        if value
    ]
    table.add_row(
        f"sum {stage}",
        f"{total.jobs} jobs{more}",
        "",
        "\n".join(hours) or "0",
        number(total.memory_gb),
        number(total.disk_gb),
        "",
        style="bold",
    )


def number(value: float | None) -> str:
    """Two or three digits; "?" for what is not known."""
    if value is None:
        return "?"
    if value < 0.0005:
        return "0" if value == 0 else "<0.001"
    if value < 0.1:
        return f"{value:.3f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
