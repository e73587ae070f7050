"""Training and sampling of all six methods at the paper's widths, one after another on this machine.

Rates in images a second and the most memory of each, in one table (docs/performance.md). Data are random:
only time and memory count. On a CPU the batches are small and the rate of a sampler is that of a few of its
steps, scaled to all of them; each method runs in a process of its own, so that its memory is its own.
`ours` and `reference` of the result are the rates of a training step of vap and of uvit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml

from benchmarks.common import TOY, Result, best_time, synchronized
from vap.common.artifacts import ROOT
from vap.generators.base import OneStepMethod, Request, Shapes, load_method
from vap.generators.diffusion import DiffusionMethod
from vap.generators.stylegan.training import GanBatch
from vap.params import MethodParams, Params, parse
from vap.training.batch import Batch, Condition
from vap.training.loop import Learner, make_accelerator
from vap.training.watch import memory_mb

METHODS = ("stylegan", "cbdm", "ldm", "dit", "uvit", "vap")
CLASSES, TEXT, TOKENS = 7, 768, 80  # of ISIC 2018; BiomedCLIP's width; tokens of a description, about
TIMED_STEPS = 2  # of a sampler, on a CPU


class RandomData:
    """What a learner asks of its training data."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape, self.classes = shape, [str(c) for c in range(CLASSES)]


def measured(name: str) -> dict[str, float | str]:
    """Rates and memory of one method; of this process."""
    params: Params = parse(
        yaml.safe_load((ROOT / f"config/{'smoke' if TOY else 'paper'}.yaml").read_text(encoding="utf-8"))
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpu = device.type == "cuda"
    entry = params.method[name]
    train = entry.train.model_dump() | {"batch_size": 32 if gpu else 2}
    method = load_method(name, {name: MethodParams.model_validate(entry.model_dump() | {"train": train})})
    side, channels = (32, 4)
    if method.kind == "images":
        side, channels = method.model.image_size, 3
    texts = method.kind == "prompts"
    shapes = Shapes(side, channels, CLASSES, TEXT if texts else None, 256 if texts else 0)
    B = train["batch_size"]
    data: Any = RandomData((channels, side, side))
    torch.manual_seed(0)
    accelerator = make_accelerator(device.type, "bf16" if gpu else "fp32")
    shared = params.train.model_copy(update={"precision": "bf16" if gpu else "fp32"})
    learner = method.learner(lambda: method.build(shapes), data, shared, params.compute, 0)(accelerator)
    condition = _condition(B, texts)
    batch = _batch(B, data.shape, condition, learner)
    batch = batch.to(device)
    steps = iter(range(1, 1000))  # 0 would be one with R1, of which there is one in sixteen

    train_s = best_time(synchronized(lambda: learner.step(batch, next(steps)), device), 10 if gpu else 2)
    if isinstance(method, OneStepMethod):
        regularized = best_time(synchronized(lambda: learner.step(batch, 0), device), 3 if gpu else 1)
        train_s += (regularized - train_s) / method.train.r1_interval
    train_mb = memory_mb(device)
    net = method.build(shapes).to(device).eval()
    sampled, evaluations = _sampler(method, net, shapes, condition, params, device, gpu)
    sample_s = best_time(synchronized(sampled, device), 2 if gpu else 1) * evaluations
    return {
        "method": name,
        "device": str(device),
        "parameters_m": sum(p.numel() for p in net.parameters()) / 1e6,
        "batch": B,
        "train_img_s": B / train_s,
        "sample_img_s": B / sample_s,
        "memory_mb": max(train_mb, memory_mb(device)),
    }


def _condition(B: int, texts: bool) -> Condition:
    label = torch.randint(0, CLASSES, (B,))
    if not texts:
        return Condition(label)
    return Condition(label, torch.randn(B, TOKENS, TEXT), torch.ones(B, TOKENS, dtype=torch.bool))


def _batch(B: int, shape: tuple[int, int, int], condition: Condition, learner: Learner[Any]) -> Any:
    x0 = torch.rand(B, *shape) * 2 - 1
    if hasattr(learner, "generator"):
        z = torch.randn(B, 2, learner.generator.z_dim)
        return GanBatch(x0, condition.label, z, torch.randint(0, CLASSES, (B, 2)))
    other = torch.randint(0, CLASSES, (B,))
    return Batch(x0, condition, torch.randint(1, 1001, (B,)), torch.randn_like(x0), other)


def _sampler(
    method: Any,
    net: Any,
    shapes: Shapes,
    condition: Condition,
    params: Params,
    device: torch.device,
    gpu: bool,
) -> tuple[Callable[[], Any], float]:
    """A call that draws a batch, and by what its time is to be multiplied."""
    from vap.generators.drawing import draw

    B = len(condition.label)
    null = Condition(torch.full((B,), CLASSES))
    if condition.context is not None:
        null = Condition(null.label, torch.randn(B, 2, TEXT), torch.ones(B, 2, dtype=torch.bool))
    request = Request(
        condition.to(device), null.to(device), lambda shape, _: torch.randn(B, *shape).to(device)
    )
    if not isinstance(method, DiffusionMethod):
        return lambda: _without_gradients(lambda: method.draw(net, request, "bf16" if gpu else "fp32")), 1.0
    how = method.sampling(params.sample)
    steps = how.steps if gpu else TIMED_STEPS
    fewer = how.model_copy(update={"steps": steps})
    method.sampling = lambda _: fewer  # type: ignore[method-assign]
    settings = params.sample.model_copy(update={"precision": "bf16" if gpu else "fp32"})
    schedule = method.schedule(params.train)
    assert schedule is not None
    return lambda: _without_gradients(
        lambda: draw(method, net, shapes, request, settings, schedule)
    ), how.steps / steps


@torch.inference_mode()
def _without_gradients(work: Callable[[], Any]) -> Any:
    return work()


def run() -> Result:
    rows = []
    for name in METHODS:
        start = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.methods", name]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name}: {rows[-1]} ({time.perf_counter() - start:.0f} s)", file=sys.stderr)
    details: dict[str, float | str] = {"device": rows[0]["device"]}
    for row in rows:
        details |= {
            f"{row['method']}_{key}": value for key, value in row.items() if key not in ("method", "device")
        }
    rate = {name: row["train_img_s"] for name, row in zip(METHODS, rows, strict=True)}
    return Result(rate["vap"], rate["uvit"], "img/s", details)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1])))
