"""What the pipeline will cost, job by job: hours, memory and disk, from the settings alone.

Arithmetic of the networks (vap/costs/count.py) over the rates of vap/costs/rates.yaml, which says of each
where it was measured; what `make bench` has measured on this machine goes before it. What cannot be known is
None here, "?" in the listing, and a note says why.

    jobs = jobs_of(config)                              # every stage of dvc.yaml with its items
    rows = estimate(params, config, "cuda", load_rates(Path("benchmarks/out")))
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vap.common.errors import VapError
from vap.costs.count import method_sizes
from vap.costs.model import Device, Job, Model, Rates, Row, fid_flops, pair_flops, sampling, training
from vap.costs.rules import RULES
from vap.params import Params
from vap.workflow import snakemake as pipeline

COSTS = Path(__file__).with_name("rates.yaml")
ROOT = Path(__file__).resolve().parents[2]


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────


def jobs_of(config: Mapping[str, Any]) -> list[Job]:
    """All jobs in the order of dvc.yaml; as many as pipeline.stage_names."""
    jobs = []
    for stage, item in pipeline.stage_items(config):
        command = pipeline.filled(str(pipeline.dvc_stages()[stage]["cmd"]), item)
        jobs.append(Job(stage, "-".join(item.values()), tuple(command.split()[1:])))
    return jobs


# ── rates ───────────────────────────────────────────────────────────────────────────────────────────


def load_rates(benchmarks_out: Path | None = None) -> Rates:
    """vap/costs/rates.yaml, with what the benchmarks have measured on this machine."""
    rates: Rates = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    return rates if benchmarks_out is None else merged(rates, measured(benchmarks_out))


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`, mapping by mapping."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def measured(benchmarks_out: Path) -> Rates:
    """What benchmarks/out/*.json say, in the layout of rates.yaml; of files that are not there, nothing.

    A rate of a CPU is divided by its cores, which torch used. The rates of `methods` are images a second of
    config/paper.yaml's networks: their FLOPs are counted here.

    Raises:
        VapError: a file is no benchmark's.
    """
    found: Rates = {"devices": {}}

    def put(value: float, source: str, *keys: str) -> None:
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = {"rate": value, "from": f"measured: {source}"}

    for name, what in (("train_step", "train"), ("sample_50", "sample")):
        if data := _result(benchmarks_out / f"{name}.json", "device", "machine", "ours_tflops"):
            kind, threads = _device(data)
            precision = "bf16" if kind == "cuda" else "fp32"
            rate = data["ours_tflops"] / threads
            put(rate, f"{name}.json", "devices", kind, what, "transformer", precision)
    if data := _result(benchmarks_out / "methods.json", "device", "machine"):
        kind, threads = _device(data)
        precision = "bf16" if kind == "cuda" else "fp32"
        for key, work in _paper_work(data).items():
            rate = data[key] * work / 1e12 / threads
            method, what = key.removesuffix("_img_s").rsplit("_", 1)
            put(rate, "methods.json", "devices", kind, what, method, precision)
    if data := _result(benchmarks_out / "metrics.json", "machine", "images", "ours_fid_s", "ours_kid_prc_s"):
        n, d, threads = data["images"], 2048, _cores(data)
        for key, flops, seconds in (
            ("fid", fid_flops(n, n, d), data["ours_fid_s"]),
            ("pairs", pair_flops(n, n, d), data["ours_kid_prc_s"]),
        ):
            put(flops / seconds / threads / 1e12, "metrics.json", "devices", "cpu", "metrics", key)
    if data := _result(benchmarks_out / "prepare.json", "machine"):
        rows = [_prepare_row(key, data) for key in data if re.fullmatch(r"\d+_images_.*(?<!bare)_img_s", key)]
        rows.sort(key=lambda row: row.pop("images"))  # of two runs of one kind the longer
        best = {(row["side"], row["storage"]): row for row in rows}
        if best:
            found["prepare"] = {"rates": list(best.values())}
    return found


def _result(path: Path, *keys: str) -> dict[str, Any]:
    """A benchmark's file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VapError(path, f"no JSON ({error})", "a benchmark's numbers", "run `make bench`") from None
    if missing := [key for key in keys if key not in data]:
        raise VapError(path, f"no {missing[0]}", "a benchmark's numbers", "run `make bench`")
    return data


def _cores(data: Mapping[str, Any]) -> int:
    found = re.search(r"(\d+) cores?", str(data["machine"]))
    return int(found[1]) if found else 1


def _device(data: Mapping[str, Any]) -> tuple[Device, int]:
    """The device, and by how many threads its rate is divided."""
    return ("cuda", 1) if str(data["device"]).startswith("cuda") else ("cpu", _cores(data))


def _prepare_row(key: str, data: Mapping[str, Any]) -> dict[str, Any]:
    images, side, storage = re.fullmatch(r"(\d+)_images_(\d+)_px_(.+)_img_s", key).groups()  # type: ignore[union-attr]
    row = {"side": int(side), "storage": storage, "rate": data[key], "from": "measured: prepare.json"}
    return {**row, "peak_mb": data[key.replace("_img_s", "_peak_mb")], "images": int(images)}


def _paper_work(data: Mapping[str, Any]) -> dict[str, float]:
    """FLOPs of an image for each rate METHOD_train_img_s and METHOD_sample_img_s of the benchmark."""
    from vap.profiles import load_profile

    params = load_profile(ROOT / "config/paper.yaml")
    work = {}
    for name in params.rows:
        sizes = method_sizes(params, name, (4, 32), 7, 768, 80)
        if f"{name}_train_img_s" in data:
            work[f"{name}_train_img_s"] = training(params, name, sizes, 32).flops / 32
        if f"{name}_sample_img_s" in data:
            device: Device = "cuda" if str(data["device"]).startswith("cuda") else "cpu"
            work[f"{name}_sample_img_s"] = sampling(params, name, sizes, 32, device)[0].flops / 32
    return work


def estimate(params: Params, config: Mapping[str, Any], device: Device, rates: Rates) -> list[Row]:
    """A row for every job of dvc.yaml; one whose command has no rule is not known, and says so.

    Args:
        config: params.yaml as it is written, for the matrices.
    """
    model, rows = Model(params, device, rates), []
    for job in jobs_of(config):
        model.used = set()
        rule = RULES.get(job.words[0])
        if rule is None:
            note = f"no cost rule for `vap {job.words[0]}`"
            rows.append(Row(job.stage, job.item, "?", "CPU", None, None, None, "unknown", notes=(note,)))
        else:
            rows.append(rule(model, job))
    return rows


# ── sums ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Sum:
    """Of some rows. `unknown`: jobs with an hour that is not known, which the sums leave out.

    Memory is that of the largest job. The jobs run one after another.
    """

    jobs: int
    gpu_hours: float
    cpu_hours: float
    memory_gb: float
    disk_gb: float
    unknown: int


def sum_of(rows: list[Row]) -> Sum:
    def hours(place: str) -> float:
        return sum(row.hours or 0.0 for row in rows if row.place == place)

    return Sum(
        jobs=len(rows),
        gpu_hours=hours("GPU"),
        cpu_hours=hours("CPU"),
        memory_gb=max((row.memory_gb or 0.0 for row in rows), default=0.0),
        disk_gb=sum(row.disk_gb or 0.0 for row in rows),
        unknown=sum(None in (row.hours, row.memory_gb, row.disk_gb) for row in rows),
    )


def by_stage(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Stages in the order of their first row."""
    for stage in dict.fromkeys(row.stage for row in rows):
        yield stage, [row for row in rows if row.stage == stage]
