"""What the pipeline will cost, job by job: hours, memory and disk, from the settings alone.

Arithmetic of the networks (vap/costs_count.py) over the rates of vap/costs.yaml, which says of each where it
was measured; what `make bench` has measured on this machine goes before it. What cannot be known is None here,
"?" in the listing, and a note says why.

    jobs = jobs_of(config)                              # every stage of dvc.yaml with its items
    rows = estimate(params, config, "cuda", load_rates(Path("benchmarks/out")))
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vap import pipeline
from vap.costs_count import (
    Images,
    Sizes,
    Work,
    autoencoder,
    images_of,
    method_sizes,
    sampling_pass,
    training_pass,
)
from vap.errors import VapError
from vap.params import Params

Device = Literal["cpu", "cuda"]
Rates = dict[str, Any]

COSTS = Path(__file__).with_name("costs.yaml")
ROOT = Path(__file__).resolve().parent.parent
FAMILY = {"stylegan": "stylegan", "cbdm": "convolution", "ldm": "convolution"}  # others are transformers
STATE = 20  # bytes a parameter in training: weights, gradient, two moments, average, each in float32
CHECKPOINT = 16  # of these in a checkpoint
KEPT = 2  # checkpoints, while one is written
NULL_TOKENS = 2  # of the empty description
RECONSTRUCTED = 256  # images that the latents stage measures its autoencoder on, at most
GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class Job:
    """A stage with its matrix item; `words` are its command's, after `vap`."""

    stage: str
    item: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What one job takes.

    Attributes:
        scales: what its cost grows with, in words.
        place: "GPU" or "CPU", whose hours they are.
        hours: of the job alone; None: not known.
        memory_gb: at its largest, of the device that computes.
        disk_gb: that stays; scratch_gb: more while it runs.
        basis: "measured", "assumed" or "measured + assumed", of the rates.
    """

    stage: str
    item: str
    scales: str
    place: str
    hours: float | None
    memory_gb: float | None
    disk_gb: float | None
    basis: str
    scratch_gb: float = 0.0
    notes: tuple[str, ...] = ()


# ── jobs ────────────────────────────────────────────────────────────────────────────────────────────


def jobs_of(config: Mapping[str, Any]) -> list[Job]:
    """All jobs in the order of dvc.yaml; as many as pipeline.stage_names."""
    jobs = []
    for stage, entry in pipeline.record().items():
        matrix: Mapping[str, Any] = entry.get("matrix", {})
        values = [_listed(config, value) for value in matrix.values()]
        for item in itertools.product(*values):
            command = str(entry["cmd"])
            for key, value in zip(matrix, item, strict=True):
                command = command.replace(f"${{item.{key}}}", value)
            jobs.append(Job(stage, "-".join(item), tuple(command.split()[1:])))
    return jobs


def _listed(config: Mapping[str, Any], value: Any) -> list[str]:
    if not isinstance(value, str):
        return [str(item) for item in value]
    key = value.removeprefix("${").removesuffix("}")
    return list(pipeline.settings(config, key)[key])


# ── rates ───────────────────────────────────────────────────────────────────────────────────────────


def load_rates(benchmarks_out: Path | None = None) -> Rates:
    """vap/costs.yaml, with what the benchmarks have measured on this machine."""
    rates: Rates = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    return rates if benchmarks_out is None else merged(rates, measured(benchmarks_out))


def merged(base: Any, over: Any) -> Any:
    """`over` laid over `base`, mapping by mapping."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    return {**base, **{key: merged(base.get(key), value) for key, value in over.items()}}


def measured(benchmarks_out: Path) -> Rates:
    """What benchmarks/out/*.json say, in the layout of vap/costs.yaml; of files that are not there, nothing.

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
    from vap.params import parse

    source = ROOT / "config/paper.yaml"
    params = parse(yaml.safe_load(source.read_text(encoding="utf-8")), source)
    work = {}
    for name in params.methods:
        sizes = method_sizes(params, name, (4, 32), 7, 768, 80)
        if f"{name}_train_img_s" in data:
            work[f"{name}_train_img_s"] = _training(params, name, sizes, 32).flops / 32
        if f"{name}_sample_img_s" in data:
            device: Device = "cuda" if str(data["device"]).startswith("cuda") else "cpu"
            work[f"{name}_sample_img_s"] = _sampling(params, name, sizes, 32, device)[0].flops / 32
    return work


# ── the arithmetic ──────────────────────────────────────────────────────────────────────────────────


def fid_flops(n: int, m: int, d: int) -> float:
    """Of a Fréchet distance: two covariances, and about 12 d³ of eigenvalues."""
    return 2.0 * (n + m) * d**2 + 12.0 * d**3


def pair_flops(n: int, m: int, d: int) -> float:
    """Of the inner products of all pairs, within either set and between them."""
    return float(d) * (n + m) ** 2


def _training(params: Params, method: str, sizes: Sizes, batch: int) -> Work:
    """A training step of `batch` images: three times the forward pass; a GAN's step is counted whole."""
    work = training_pass(method, params.method[method], params.train, sizes, batch)
    return work if params.kind(method) == "adversary" else work * 3


def _sampling(params: Params, method: str, sizes: Sizes, batch: int, device: Device) -> tuple[Work, int, int]:
    """All evaluations for `batch` samples, without decoder; the sampler's steps, and the passes of a step."""
    entry = params.method[method]
    if params.kind(method) == "adversary":
        return sampling_pass(method, entry, sizes, batch, 0), 1, 1
    own = entry.sample.model_dump().get("sampler")
    steps = params.sample.steps if own is None else int(own["steps"])
    once = sampling_pass(method, entry, sizes, batch, sizes.tokens)
    if entry.sample.guidance_scale in (0.0, 1.0):
        return once * steps, steps, 1
    # a GPU takes both halves together, the null prompt padded to the description
    tokens = sizes.tokens if device == "cuda" else min(NULL_TOKENS, sizes.tokens)
    other = sampling_pass(method, entry, sizes, batch, tokens)
    both = Work(
        once.flops + other.flops,
        once.kernels + other.kernels,
        once.activations,
        once.largest * (2 if device == "cuda" else 1),
        once.parameters,
    )
    return both * steps, steps, 2


class Model:
    """Rates, settings and counts, and what a rule asks of them."""

    def __init__(self, params: Params, device: Device, rates: Rates) -> None:
        self.params, self.device, self.rates = params, device, rates
        self.own = rates["devices"][device]
        self._images: dict[str, Images] = {}
        self.used: set[str] = set()  # where the rates of the job at hand come from

    @property
    def place(self) -> str:
        return "GPU" if self.device == "cuda" else "CPU"

    @property
    def basis(self) -> str:
        return " + ".join(sorted(self.used, reverse=True)) or "known"

    def rate(self, entry: Mapping[str, Any]) -> float:
        """A rate, remembered by its source."""
        self.used.add(str(entry["from"]).partition(":")[0])
        return float(entry["rate"])

    def threads(self, device: Device) -> int:
        return self.params.compute.threads if self.rates["devices"][device]["per_thread"] else 1

    def seconds(
        self, work: Work, what: str, precision: str, family: str, device: Device | None = None
    ) -> float:
        """Time of network passes on the device.

        Args:
            what: "train" or "sample".
            family: a method's name, or "transformer" or "convolution".
        """
        device = device or self.device
        own = self.rates["devices"][device]
        rates = own[what].get(family) or own[what][FAMILY.get(family, "transformer")]
        key = "fp32" if precision == "fp32" else "bf16"
        fallback = own[what][FAMILY.get(family, "transformer")] if key not in rates else rates
        flops_s = self.rate(fallback[key]) * 1e12 * self.threads(device)
        return work.flops / flops_s + work.kernels * self.rate(own["kernel_s"])

    def algebra(self, flops: float, key: str) -> float:
        return flops / (self.rate(self.own["metrics"][key]) * 1e12 * self.threads(self.device))

    def start(self) -> float:
        return self.rate(self.rates["start_s"])

    def images(self, dataset: str) -> Images:
        if dataset not in self._images:
            self._images[dataset] = images_of(self.params, dataset, self.rates["images"])
        return self._images[dataset]

    def stored(self, n: int | None, side: int | None = None, storage: str | None = None) -> float | None:
        """Bytes of n images."""
        side = side or self.params.prepare.image_size
        share = self.rates["prepare"]["stored"][storage or self.params.prepare.storage]
        return None if n is None else n * side**2 * 3 * share

    def text(self) -> tuple[int, int, tuple[str, ...]]:
        """Width and number of a description's token states, and a note where the width is not known."""
        known = self.rates["encode"]["encoders"].get(self.params.encode.encoder)
        tokens = min(self.rates["encode"]["description_tokens"], self.params.encode.max_tokens)
        if known is None:
            return (
                768,
                tokens,
                (f"encoder {self.params.encode.encoder} is not known: 768 numbers a token assumed",),
            )
        return known["width"], tokens, ()

    def sizes(self, dataset: str, method: str) -> Sizes:
        coder = autoencoder(self.params.latents.model_dump_json(), self.params.prepare.image_size)
        width, tokens, _ = self.text()
        classes = self.images(dataset).classes or 8
        return method_sizes(self.params, method, (coder.channels, coder.side), classes, width, tokens)


def _rules() -> dict[str, Callable[[Model, Job], Row]]:
    from vap import costs_rules

    return costs_rules.RULES


def estimate(params: Params, config: Mapping[str, Any], device: Device, rates: Rates) -> list[Row]:
    """A row for every job of dvc.yaml; one whose command has no rule is not known, and says so.

    Args:
        config: params.yaml as it is written, for the matrices.
    """
    model, rules, rows = Model(params, device, rates), _rules(), []
    for job in jobs_of(config):
        model.used = set()
        rule = rules.get(job.words[0])
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
