"""Trained weights in the official U-ViT code's format."""

from __future__ import annotations

import json
from pathlib import Path

from vap.errors import VapError
from vap.methods.base import Shapes, trained_method
from vap.models.official import write
from vap.stages.common import model_path
from vap.training.checkpoint import load_weights


def export(dataset: str, method: str, target: Path) -> None:
    """Write the averaged weights of results/models/{dataset}/{method} to `target`.

    Raises:
        VapError: there is no trained model, or the official code cannot hold it.
    """
    folder = model_path(dataset, method)
    if not (folder / "config.json").is_file():
        raise VapError(folder / "config.json", "no such file", "a trained model", "run the train stage")
    config = json.loads((folder / "config.json").read_text())
    net = trained_method(config).build(Shapes(**config["shapes"]))
    load_weights(net, folder / "model.safetensors")
    write(net, target)
