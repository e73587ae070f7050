"""A trained model as the train stage writes it: config.json and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from vap.common.errors import VapError
from vap.generators.base import Method, Shapes, checked, method_class
from vap.params import MethodParams
from vap.training.checkpoint import load_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Trained(NamedTuple):
    """What a training has made."""

    config: dict[str, Any]  # of config.json
    method: Method[Any]
    shapes: Shapes
    net: nn.Module  # with its averaged weights


def open_model(folder: Path, methods: Mapping[str, MethodParams] | None = None) -> Trained:
    """Read a trained model.

    Args:
        methods: for drawing: section `method` of params.yaml, of which the sample settings are taken.

    Raises:
        VapError: there is no trained model, or its settings or weights do not fit the method.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise VapError(file, "no such file", "a trained model", "run the train stage")
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        method, shapes = _method(config, file, methods), Shapes(**config["shapes"])
    except (ValueError, KeyError, TypeError) as error:
        raise VapError(file, f"no configuration ({error!r})", "the train stage's", "train again") from None
    net = method.build(shapes)
    load_weights(net, folder / WEIGHTS)
    return Trained(config, method, shapes, net)


def _method(config: Mapping[str, Any], file: Path, methods: Mapping[str, MethodParams] | None) -> Method[Any]:
    name = config["method"]
    cls = method_class(name)
    sample = None
    if methods is not None:
        place = f"params.yaml: method.{name}.sample"
        if name not in methods:
            raise VapError(place, "no such entry", "the method's settings", "add it")
        sample = checked(cls.sample_params, methods[name].sample.model_dump(), place)
    before = {"predicts": "noise", "linear_init": "published"}  # of models made before these keys were
    model, train = (
        checked(schema, found, f"{file}: {key}", "train again")
        for key, schema in (("model", cls.model_params), ("train", cls.train_params))
        for found in [{k: v for k, v in before.items() if k in schema.model_fields} | config[key]]
    )
    return cls(model, train, sample)
