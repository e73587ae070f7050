"""train: one method on one dataset, to its averaged weights, its configuration and its curves."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vap.common.artifacts import (
    ArrowFile,
    atomic,
    provenance,
    rank_and_world,
    require_place,
    work_folder,
    write_json,
    write_safetensors,
)
from vap.common.errors import VapError, tell
from vap.common.places import latents_path, model_path, prepared_path, set_up_torch, training_log_path
from vap.datasets.share import share_of
from vap.generators.base import Shapes, built, method_of
from vap.generators.trained import CONFIG, WEIGHTS
from vap.params import Params
from vap.runs import run_of
from vap.training.loop import train, write_log
from vap.training.watch import Watch

if TYPE_CHECKING:
    from torch import Tensor, nn

TEXT_MULTIPLE = 32  # tokens, where a GPU or a compiler gains by few and even lengths


def run(params: Params, dataset: str, name: str) -> Path:
    """Write results/models/{dataset}/{name}/: model.safetensors (EMA), config.json, train.csv.

    Args:
        name: of a method, or of a run of one (vap.runs).

    Raises:
        VapError: params.yaml has no such run, settings or artefacts do not fit, or the loss is no longer
            finite.
    """
    wanted = run_of(params, name)
    method, seed = wanted.method, wanted.seed
    device = set_up_torch(params.compute)
    implementation = method_of(params, method)
    require_place(model_path(dataset, name))
    own = implementation.train
    compiled = params.compute.compile_mode(device.type, own.steps) is not None
    even = TEXT_MULTIPLE if device.type == "cuda" or compiled else 1
    only = None
    if wanted.percent is not None:
        pixels = implementation.kind == "images"
        images = (
            ArrowFile(prepared_path(dataset), "prepared")
            if pixels
            else ArrowFile(latents_path(dataset), "latents")
        )
        only = share_of(images, wanted.percent, params.seed)
    data = implementation.data(dataset, even, only)
    inputs = dict(data.inputs)
    if implementation.start_from is not None:
        if not implementation.start_from.is_file():
            raise VapError(
                f"params.yaml: method.{method}.train.start_from: {implementation.start_from}",
                "no such file",
                "weights of this network, official or of this project",
                "correct the path",
            )
        inputs["start_from"] = implementation.start_from
    share = {} if wanted.percent is None else {"percent": wanted.percent}
    record = provenance(
        "train",
        (dataset, name),
        params={
            "seed": seed,
            "train": params.train.model_dump(),
            "model": params.method[method].model,
            "method_train": own.model_dump(),
            **share,
        },
        inputs=inputs,
        libraries=("accelerate", "numpy", "pyarrow", "safetensors", "torch", *implementation.libraries),
        modules=[f"vap.generators.{method}"],
    )
    C, side, _ = data.shape
    shapes = Shapes(
        size=side,
        channels=C,
        num_classes=len(data.classes),
        context_dim=data.bank.width if data.bank else None,
        context_tokens=data.bank.max_tokens if data.bank else 0,
    )
    schedule = implementation.schedule(params.train)
    config = {
        "dataset": dataset,
        "method": method,
        **({"run": name} if name != method else {}),
        **share,
        "classes": data.classes,
        "class_counts": data.counts.tolist(),
        "scale": data.scale,
        "shapes": dataclasses.asdict(shapes),
        "model": params.method[method].model,
        "train": own.model_dump(),
        "schedule": schedule.model_dump() if schedule is not None else None,
        "image_size": data.image_size,
        "provenance": record,
    }
    if data.fits(device):
        data.hold(device)

    with work_folder(record) as work:

        def draw(step: int, weights: Mapping[str, Tensor]) -> None:
            _preview(work / "preview", training_log_path(dataset, name), step, weights, config)

        def build() -> nn.Module:
            net = built(implementation, shapes)
            if implementation.start_from is not None:
                implementation.take_over(net, implementation.start_from)
            return net

        learner, log = train(
            implementation.learner(build, data, params.train, params.compute, seed),
            own.steps,
            own.batch_size,
            work,
            section=f"method.{method}.train",
            seed=seed,
            precision=params.train.precision,
            log_every=params.train.log_every,
            checkpoint_every=params.train.checkpoint_every,
            device=str(device),
            label=f"train {dataset} {name}",
            watch=Watch(training_log_path(dataset, name), device, params.compute.preview_every, draw),
        )
        if rank_and_world()[0]:
            return model_path(dataset, name)  # the first process writes
        with atomic(model_path(dataset, name)) as part:
            part.mkdir(parents=True)
            write_safetensors(part / WEIGHTS, learner.weights())
            write_log(part / "train.csv", log)
            write_json(part / CONFIG, config)
    return model_path(dataset, name)


def _preview(
    folder: Path, target: Path, step: int, weights: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Draw in a process of its own: what it imports is no part of the training's code.

    Args:
        folder: gets the weights that the drawing process reads.
        target: folder of the grids, step-NNNNNNNN.png.
    """
    with atomic(folder) as part:
        part.mkdir(parents=True)
        write_safetensors(part / WEIGHTS, weights)
        write_json(part / CONFIG, config)
    picture = target / f"step-{step:08d}.png"
    command = [sys.executable, "-m", "vap", "preview", str(folder), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise VapError(
            picture,
            said[-1] if said else f"exit status {done.returncode}",
            "a sample grid",
            "see `vap preview`",
        )
    tell(f"step {step}: {picture}")
