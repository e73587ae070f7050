"""What the initial weights of a network are worth: the loss after equally many steps from several starts.

Every start of a method sees the same batches, noise and times. The row is U-ViT's loss from the published
start of its final convolution (reference) and from the identity (ours), a mean over the seeds; the details
hold every method and start, with the error of the worst row or column of the latents over the mean error
(`uneven_error`), and the largest of the final convolution's eight outer taps over its centre.

VAP_BENCH_DATA names a folder with data/latents/isic2018.arrow and data/prompts/isic2018.arrow, as the stages
write them; without it the latents are smooth random fields, and `vap` is left out. VAP_BENCH_STARTS names
some of the methods.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import TOY, Result, sized
from vap.common.artifacts import ROOT
from vap.diffusion.loss import denoising_errors, uneven_error
from vap.diffusion.schedule import Schedule
from vap.generators.base import Shapes, load_method
from vap.params import MethodParams, parse
from vap.profiles import read_profile
from vap.prompts.bank import PromptBank
from vap.training.batch import Batch, Condition
from vap.training.data import LatentData
from vap.training.loop import make_accelerator

STEPS, BATCH, SEEDS = sized(300, 4), sized(32, 4), range(sized(3, 1))
LOGGED = sorted({STEPS // 3, 2 * STEPS // 3, STEPS})
AROUND = 10  # steps whose losses are averaged
WIDTH, DEPTH = sized(128, 32), sized(6, 2)


def shifted(net: Any) -> None:
    """The final convolution begins as a shift by one latent pixel: what the published start may drift to."""
    last = getattr(net, "uvit", net).final_layer
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.weight[:, :, 1, 0] = torch.eye(last.out_channels)


def keep(net: nn.Module) -> None:
    """The start that the method's module gives."""


def unet_of(net: Any) -> Any:
    return getattr(net, "unet", net)


def random_output(net: Any) -> None:
    """A U-Net's last convolution as torch begins it, where the published one begins as zero."""
    unet_of(net).conv_out.reset_parameters()


def zero_output(net: Any) -> None:
    for p in unet_of(net).conv_out.parameters():
        nn.init.zeros_(p)


def quiet_blocks(net: Any) -> None:
    """U-ViT's blocks begin as the identity, as DiT's do."""
    for block in [*net.in_blocks, net.mid_block, *net.out_blocks]:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)


def zero_patches(net: Any) -> None:
    """U-ViT's output begins as zero, as DiT's does."""
    nn.init.zeros_(net.decoder_pred.weight)


def small_labels(net: Any) -> None:
    """Class embeddings as small as all other weights; the published ones are N(0, 1)."""
    nn.init.normal_(net.label_emb.weight, std=0.02)


def random_head(net: Any) -> None:
    """DiT's last layer as its others, where the published one begins as zero."""
    nn.init.xavier_uniform_(net.final_layer.linear.weight)


STARTS: dict[str, dict[str, tuple[dict[str, Any], Callable[[Any], None]]]] = {
    "uvit": {
        "published": ({"final_init": "published", "linear_init": "published"}, keep),
        "identity": ({"final_init": "identity", "linear_init": "published"}, keep),
        "a shift": ({"final_init": "identity", "linear_init": "published"}, shifted),
        "identity, output zero": ({"final_init": "identity", "linear_init": "published"}, zero_patches),
        "identity, blocks identity": ({"final_init": "identity", "linear_init": "published"}, quiet_blocks),
        "identity, xavier": ({"final_init": "identity", "linear_init": "xavier"}, keep),
        "identity, small class embeddings": (
            {"final_init": "identity", "linear_init": "published"},
            small_labels,
        ),
    },
    "vap": {
        "published": ({"final_init": "published", "linear_init": "published"}, keep),
        "identity": ({"final_init": "identity", "linear_init": "published"}, keep),
        "identity, xavier": ({"final_init": "identity", "linear_init": "xavier"}, keep),
    },
    "dit": {"published (output zero)": ({}, keep), "output random": ({}, random_head)},
    "ldm": {"as here": ({}, keep), "output zero": ({}, zero_output), "output random": ({}, random_output)},
    "cbdm": {"as here": ({}, keep), "output zero": ({}, zero_output), "output random": ({}, random_output)},
}


class SmoothFields:
    """Latents that stand for real ones where there are none: low-pass noise, of another frequency a class."""

    shape, classes, bank = (4, sized(16, 8), sized(16, 8)), [str(i) for i in range(7)], None

    def batch(self, step: int, seed: int, batch_size: int, dropout: float, timesteps: int, *_: Any) -> Batch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        label = torch.randint(0, 7, (batch_size,), generator=generator)
        coarse = torch.randn(batch_size, *self.shape, generator=generator)
        x0 = F.avg_pool2d(F.pad(coarse, (2, 2, 2, 2), mode="circular"), 5, 1)
        x0 = x0 / x0.std() + (label[:, None, None, None] - 3) / 6
        t = torch.randint(1, timesteps + 1, (batch_size,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        drop = torch.rand(batch_size, generator=generator) < dropout
        other = torch.randint(0, 7, (batch_size,), generator=generator)
        return Batch(x0, Condition(label.masked_fill(drop, 7)), t, noise, other)


def method_of(name: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    """The method of small size, and the settings around it."""
    data = read_profile(ROOT / "config/smoke.yaml")
    data["train"]["schedule"] = {  # Stable Diffusion's, with which the table in docs/performance.md was made
        "kind": "scaled_linear",
        "timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    params = parse(data)
    entry = params.method[name].model_dump()
    sizes = {"width": WIDTH, "depth": DEPTH, "heads": WIDTH // 32, "prototype_tokens": 16}
    if name in ("ldm", "cbdm"):
        sizes = {"width": WIDTH // 2, "multipliers": [1, 2], "attention": [1], "image_size": 16}
    entry["model"] |= {key: value for key, value in sizes.items() if key in entry["model"]} | changes
    entry["train"] |= {
        "predicts": "noise",
        "lr": 4e-4,
        "steps": STEPS,
        "batch_size": BATCH,
        "warmup_steps": STEPS // 10,
    }
    entry["train"] |= {"betas": [0.9, 0.99], "grad_clip": 1.0, "ema_decay": 0.99}
    return load_method(name, {name: MethodParams.model_validate(entry)}), params


def trained(
    name: str, changes: dict[str, Any], change: Callable[[Any], None], seed: int, data: Any
) -> dict[str, Any]:
    """The losses of one run, the averaged error of each latent row and column, and its final taps."""
    method, params = method_of(name, changes)
    C, side, _ = data.shape
    texts = (data.bank.width, data.bank.max_tokens) if method.kind == "prompts" else (None, 0)
    shapes = Shapes(side, C, len(data.classes), *texts)
    if name == "cbdm":
        shapes = Shapes(side, 3, len(data.classes))

    def build() -> nn.Module:
        net = method.build(shapes)
        change(net)
        return net

    class Source:
        shape, classes = data.shape, data.classes

        def batch(self, *args: Any) -> Batch:
            made: Batch = data.batch(*args)
            if name == "cbdm":  # it learns from three channels
                made.x0, made.noise = made.x0[:, :3], made.noise[:, :3]
            return made

    torch.manual_seed(seed)
    learner = method.learner(build, Source(), params.train, params.compute, seed)(
        make_accelerator("cpu", "fp32")
    )
    losses = []
    for step in range(STEPS):
        row = learner.step(learner.batch(step, slice(0, BATCH)), step)
        losses.append(float(row.get("denoising_loss", row["loss"])))
    errors = _errors(method, learner.net.eval(), Source(), params)
    found: dict[str, Any] = {
        "loss": {at: float(np.mean(losses[max(at - AROUND, 0) : at])) for at in LOGGED},
        "uneven_error": float(uneven_error(errors)),
        "rows": errors.mean((0, 1, 3)).tolist(),
        "columns": errors.mean((0, 1, 2)).tolist(),
    }
    last = getattr(getattr(learner.net, "uvit", learner.net), "final_layer", None)
    if isinstance(last, nn.Conv2d):
        taps = last.weight.detach().square().sum((0, 1)).sqrt()  # (3, 3)
        centre, taps[1, 1] = float(taps[1, 1]), 0.0
        found["off_centre_tap"] = float(taps.max()) / centre
    return found


@torch.inference_mode()
def _errors(method: Any, net: nn.Module, source: Any, params: Any) -> Tensor:
    schedule = Schedule(**method.schedule(params.train).model_dump())
    parts = []
    for step in range(sized(16, 2)):
        b = source.batch(10**6 + step, 0, BATCH, 0.0, schedule.timesteps)
        parts.append(
            denoising_errors(
                lambda x, t, b=b: method.predict(net, x, t, b.condition), schedule, b.x0, b.t, b.noise
            )
        )
    return torch.cat(parts)


def run() -> Result:
    folder = os.environ.get("VAP_BENCH_DATA")
    names = os.environ.get("VAP_BENCH_STARTS", ",".join(STARTS)).split(",")
    torch.set_num_threads(1)
    details: dict[str, Any] = {"latents": "ISIC 2018" if folder else "smooth random fields", "steps": STEPS}
    means: dict[str, dict[str, float]] = {}
    for name in names:
        data: Any = SmoothFields()
        if folder is not None:
            bank = PromptBank(Path(folder) / "data/prompts/isic2018.arrow") if name == "vap" else None
            data = LatentData(Path(folder) / "data/latents/isic2018.arrow", bank)
        elif name == "vap":
            continue
        for start, (changes, change) in STARTS[name].items():
            begun = time.perf_counter()
            runs = [trained(name, changes, change, seed, data) for seed in SEEDS]
            row = {f"loss at {at}": [run["loss"][at] for run in runs] for at in LOGGED} | {
                key: [run[key] for run in runs] for key in runs[0] if key != "loss"
            }
            details[f"{name}, {start}"] = row
            means.setdefault(name, {})[start] = float(np.mean(row[f"loss at {STEPS}"]))
            if not TOY:
                short = {key: value for key, value in row.items() if key not in ("rows", "columns")}
                print(name, start, json.dumps(short), f"{time.perf_counter() - begun:.0f} s", file=sys.stderr)
    first = means.get("uvit") or next(iter(means.values()))
    ours = first.get("identity", next(iter(first.values())))
    return Result(ours, first.get("published", next(iter(first.values()))), "loss", details)
