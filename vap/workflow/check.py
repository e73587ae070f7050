"""What is wrong with the settings, told before the first stage runs.

The schema (vap.params) sees every key but those that are a method's own; these, and the questions' versions
and attributes, only the module or the file that they belong to can judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vap.params import PARAMS_FILE, Params


def check(params: Params) -> None:
    """Read the settings of every method and the questions of every dataset. Imports torch.

    Raises:
        VapError: a key is unknown, missing or mistyped, a method is listed under a kind that it is not of, or
            there is no such version of the questions, or no such attribute.
    """
    from vap.captioning.questions import load_questions
    from vap.generators.base import method_of

    for name in dict.fromkeys([*params.rows, *params.ablation.without]):
        method_of(params, name)
    own = params.caption
    for dataset in params.datasets:
        load_questions(params.dataset[dataset].modality, own.questions, own.leave_out)


def absent_files(params: Params) -> Iterator[str]:
    """A line for each file or folder of weights that the settings name and that is not there (yet)."""
    named: dict[str, str | None] = {}
    if params.latents.pretrained:
        named["latents.path"] = params.latents.path
    named["latents.lpips_path"] = params.latents.lpips_path
    for key in params.evaluate.with_weights:
        named[f"evaluate.{key}_path"] = getattr(params.evaluate, f"{key}_path")
    for name in dict.fromkeys([*params.rows, *params.ablation.without]):
        train = params.method[name].train.model_dump()
        named[f"method.{name}.train.start_from"] = train.get("start_from")
    for name in params.downstream.classifiers:
        named[f"downstream.classifier.{name}.weights"] = params.downstream.classifier[name].weights
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            yield f"{PARAMS_FILE}: {key}: {path}: no such file yet; the stage that reads it will stop there"
