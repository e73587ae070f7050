"""Trained weights in the format of the official codes of U-ViT and DiT."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vap.common.errors import VapError, in_brief
from vap.common.places import model_path
from vap.generators.trained import open_model

SUFFIXES = (".safetensors", ".pth", ".pt")  # the first, or a torch checkpoint


def export(dataset: str, method: str, target: Path) -> None:
    """Write the averaged weights of results/models/{dataset}/{method} to `target`.

    Raises:
        VapError: there is no trained model, the official code cannot hold it or would misread it, or `target`
            has another suffix than SUFFIXES or cannot be written.
    """
    from safetensors import SafetensorError

    from vap.generators import uvit  # noqa: F401  # first: it and `official` import one another
    from vap.generators.official import write

    if target.suffix not in SUFFIXES:
        raise VapError(target, f"the suffix {target.suffix!r}", " or ".join(SUFFIXES), "name the file so")
    if target.is_dir():
        raise VapError(target, "a folder", "a file to write", "name another, or move what is there")
    trained = open_model(model_path(dataset, method))
    net = trained.net
    if getattr(trained.method.train, "predicts", "noise") != "noise":
        raise VapError(
            model_path(dataset, method),
            "a network that predicts the velocity",
            "one that predicts the noise, as the official codes read it",
            f"train it with method.{trained.method.name}.train.predicts: noise",
        )
    expected, fix = "a place that can be written", "name another"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()  # what refuses this says why, the writers less so
        write(net, target)
    except OSError as error:
        raise VapError(target, error.strerror or in_brief(error), expected, fix) from None
    except (RuntimeError, SafetensorError) as error:  # the writers', of a full disk
        raise VapError(target, in_brief(error), expected, fix) from None
