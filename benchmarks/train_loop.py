"""Training as a user starts it, data and all, against the bare step of the same network on one ready batch.

VAP-Diffusion of 25 million parameters (width 384, depth 12) on 16 x 16 latents, as for images of 128 pixels,
with ragged descriptions of about 35 tokens. A ratio near 1 says that the device never waits for its batches,
its log or its averaged weights; `ours_share_of_peak` is of the whole loop.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml

from benchmarks.common import TOY, Result, counted_flops, peak_flops, side_by_side, sized, synchronized
from vap.common.artifacts import ROOT, SCHEMAS, build_arrow
from vap.generators.base import Shapes, load_method
from vap.params import MethodParams, Params, parse
from vap.training.loop import make_accelerator, train

IMAGES, CLASSES, WIDTH, LONGEST = sized(10_015, 64), 7, 384, 48
SHAPE = (4, sized(16, 8), sized(16, 8))


def write_artefacts() -> None:
    """Random latents and descriptions in this folder, where the stages look for them."""
    names = [str(i) for i in range(CLASSES)]
    rng = np.random.default_rng(0)
    texts = rng.integers(24, LONGEST + 1, IMAGES + 1)
    pool = rng.standard_normal((LONGEST, WIDTH)).astype(np.float16)

    def latents(rows: range) -> pa.RecordBatch:
        made = rng.standard_normal((len(rows), 2 * int(np.prod(SHAPE)))).astype(np.float32)
        made[:, made.shape[1] // 2 :] -= 6
        found = {"id": [f"{i}" for i in rows], "label": [names[i % CLASSES] for i in rows]}
        columns = found | {"split": ["train"] * len(rows), "moments": list(made)}
        return pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["latents"])

    def bank(rows: range) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {
            "text": [f"text {i}" if i else "" for i in rows],
            "tokens": [pool[: texts[i] if i else 2].tobytes() for i in rows],
            "scales": [[] for _ in rows],
            "pooled": [np.zeros(8, np.float16)] * len(rows),
            "ids": [[f"{i - 1}"] if i else [] for i in rows],
            "labels": [[names[(i - 1) % CLASSES]] if i else [] for i in rows],
            "splits": [["train"] if i else [] for i in rows],
        }
        return pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["bank"])

    record = {"stage": "benchmark", "item": ["own"]}
    shape = {"shape": list(SHAPE), "scale": 1.0, "factor": 8, "classes": names}
    held = {"width": WIDTH, "max_tokens": LONGEST, "dtype": "fp16", "classes": names}
    build_arrow(Path("data/latents/own.arrow"), "latents", IMAGES, latents, record, metadata=shape)
    build_arrow(Path("data/prompts/own.arrow"), "bank", IMAGES + 1, bank, record, metadata=held)


def settings(gpu: bool) -> tuple[Params, Any]:
    """params.yaml of the benchmark, and its method."""
    data = yaml.safe_load((ROOT / "config/smoke.yaml").read_text(encoding="utf-8"))
    data["train"]["precision"] = "bf16" if gpu else "fp32"
    params = parse(data)
    entry = params.method["vap"].model_dump()
    sizes = {"width": 32, "depth": 2, "heads": 2} if TOY else {"width": 384, "depth": 12, "heads": 6}
    entry["model"] |= sizes | {"prototype_tokens": sized(64, 4)}
    entry["train"] |= {"batch_size": 256 if gpu else sized(8, 4), "steps": 1000, "grad_clip": 1.0}
    return params, load_method("vap", {"vap": MethodParams.model_validate(entry)})


def run() -> Result:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    params, method = settings(gpu)
    warm, timed = (60, 400) if gpu else (1, sized(4, 2))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_artefacts()
        data = method.data("own", 32)
        if data.fits(device):
            data.hold(device)
        shapes = Shapes(SHAPE[1], SHAPE[0], CLASSES, WIDTH, LONGEST)
        B, precision = method.train.batch_size, params.train.precision
        make = method.learner(lambda: method.build(shapes), data, params.train, params.compute, 0)

        starts: list[float] = []

        class Clock:
            """Stands where previews are drawn: sees every step."""

            def begin(self, done: int) -> None: ...

            def saw(self, row: object, batch_size: int) -> str:
                if gpu:
                    torch.cuda.synchronize()
                starts.append(time.perf_counter())
                return ""

            def wants_preview(self, step: int) -> bool:
                return False

        learner, _ = train(
            make,
            warm + timed,
            B,
            Path("work"),
            section="benchmark",
            seed=0,
            precision=precision,
            log_every=warm if gpu else 1,
            checkpoint_every=10**6,
            device=str(device),
            label="benchmark",
            watch=Clock(),  # type: ignore[arg-type]
        )
        between = (starts[-1] - starts[0]) / (warm + timed - (warm if gpu else 1))
        accelerator = make_accelerator(str(device), precision)
        batch = learner.batch(0, slice(0, B)).to(accelerator.device)
        steps = iter(range(1, 10**6))

        def bare() -> None:
            learner.step(batch, next(steps))

        repeats = 30 if gpu else sized(4, 2)
        (step_s,) = side_by_side([synchronized(bare, device)], repeats)
        flops = counted_flops(bare)
        peak = peak_flops(device)
    parameters = sum(p.numel() for p in method.build(shapes).parameters())
    details: dict[str, float | str] = {
        "device": str(device),
        "parameters_m": parameters / 1e6,
        "batch": B,
        "ours_steps_s": 1 / between,
        "step_tflop": flops / 1e12,
        "peak_tflops": peak / 1e12,
        "ours_share_of_peak": flops / between / peak,
        "reference_share_of_peak": flops / step_s / peak,
    }
    return Result(B / between, B / step_s, "img/s", details)
