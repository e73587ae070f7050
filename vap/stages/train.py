"""train: one method on one dataset, to its averaged weights, its configuration and its curves."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from vap.artifacts import ArrowFile, atomic, provenance, work_folder, write_json, write_safetensors
from vap.diffusion.schedule import Schedule
from vap.errors import VapError
from vap.methods.base import Shapes, load_method
from vap.params import Params
from vap.prompts.bank import PromptBank
from vap.stages.common import bank_path, latents_path, model_path, set_up_torch
from vap.training.data import LatentData
from vap.training.loop import train, write_log


def run(params: Params, dataset: str, method: str) -> Path:
    """Write results/models/{dataset}/{method}/: model.safetensors (EMA), config.json, train.csv.

    Raises:
        VapError: settings or artefacts do not fit, or the loss is no longer finite.
    """
    device = set_up_torch(params.compute)
    implementation = load_method(method, params.method)
    if implementation.kind != params.kind(method):
        raise VapError(
            f"params.yaml: learns_from.{params.kind(method)}: {method}",
            f"a method that learns from {implementation.kind}",
            f"its name under learns_from.{implementation.kind}",
            "move it there",
        )
    latents = latents_path(dataset)
    inputs = {"latents": latents}
    bank = None
    if implementation.kind == "prompts":
        inputs["prompts"] = bank_path(dataset)
        bank = PromptBank(bank_path(dataset))
    classes: list[str] = ArrowFile(latents, "latents").metadata["classes"]
    data = LatentData(latents, bank, classes)
    own = implementation.train
    record = provenance(
        "train",
        (dataset, method),
        params={
            "seed": params.seed,
            "train": params.train.model_dump(),
            "model": params.method[method].model,
            "method_train": own.model_dump(),
        },
        inputs=inputs,
        libraries=("accelerate", "numpy", "pyarrow", "safetensors", "torch"),
        modules=[f"vap.methods.{method}"],
    )
    C, side, _ = data.shape
    shapes = Shapes(
        size=side,
        channels=C,
        num_classes=len(classes),
        context_dim=bank.width if bank else None,
        context_tokens=bank.max_tokens if bank else 0,
    )
    schedule = Schedule(**params.train.schedule.model_dump())

    with work_folder(record) as work:
        trained = train(
            implementation,
            lambda: _build(implementation, shapes, method),
            lambda step, part: data.batch(
                step, params.seed, own.batch_size, own.condition_dropout, schedule.timesteps, part
            ),
            schedule,
            params.train,
            work,
            seed=params.seed,
            device=str(device),
            label=f"train {dataset} {method}",
        )
        if int(os.environ.get("RANK", "0")):
            return model_path(dataset, method)  # the first process writes
        with atomic(model_path(dataset, method)) as part:
            part.mkdir(parents=True)
            write_safetensors(part / "model.safetensors", trained.ema)
            write_log(part / "train.csv", trained.log)
            write_json(
                part / "config.json",
                {
                    "dataset": dataset,
                    "method": method,
                    "classes": classes,
                    "class_counts": data.counts.tolist(),
                    "scale": data.scale,
                    "shapes": dataclasses.asdict(shapes),
                    "model": params.method[method].model,
                    "train": own.model_dump(),
                    "schedule": params.train.schedule.model_dump(),
                    "provenance": record,
                },
            )
    return model_path(dataset, method)


def _build(implementation: Any, shapes: Shapes, method: str) -> Any:
    try:
        return implementation.build(shapes)
    except ValueError as error:
        raise VapError(
            f"params.yaml: method.{method}.model",
            str(error),
            "a network that fits the latents",
            "change the setting",
        ) from None
