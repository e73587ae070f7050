"""Trained weights in the official U-ViT code's format."""

from __future__ import annotations

from pathlib import Path

from vap.methods.trained import open_model
from vap.models.official import write
from vap.stages.common import model_path


def export(dataset: str, method: str, target: Path) -> None:
    """Write the averaged weights of results/models/{dataset}/{method} to `target`.

    Raises:
        VapError: there is no trained model, or the official code cannot hold it.
    """
    net = open_model(model_path(dataset, method)).net
    write(net, target)
