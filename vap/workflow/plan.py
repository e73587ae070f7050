"""The plan: what decides a stage's output beside the data it reads, a small file each under data/plan/.

A file holds the stage's own settings and the hash of each module that it imports. The DVC stage `plan`
writes all of them from params.yaml and vap/; the other stages depend on theirs. A file whose content stays
the same leaves its stages fresh, so that an edit of params.yaml or of the code runs exactly what depends on
it, through either door, and dvc.yaml lists neither settings nor modules.

    data/plan/prepare/DATASET.json      caption/DATASET.json    encode.json     latents.json
    data/plan/train/RUN.json            sample/RUN.json         other/DATASET.json
    data/plan/evaluate.json             floor.json              classify/CLASSIFIER.json, classify-plus/...
    data/plan/table.json                table2.json             table3.json     figure.json     report.json
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vap.common.artifacts import atomic, write_json
from vap.common.code import STAGES, code_of
from vap.params import Params
from vap.runs import runs_of

FOLDER = Path("data/plan")
CLASSIFY = (
    "seed",
    "downstream.classifier.{classifier}",
    *(f"downstream.{key}" for key in ("test", "weight_decay", "warmup", "label_smoothing", "precision")),
    "downstream.augment",
)
# By stage: the keys of params.yaml on which its output depends. What is not here changes no output:
# `compute`, how many requests are sent at once, where a server is installed, the lists of runs.
SETTINGS: dict[str, tuple[str, ...]] = {
    "prepare": ("seed", "prepare", "dataset.{dataset}"),
    "caption": (
        "seed",
        "dataset.{dataset}.modality",
        *(
            f"caption.{key}"
            for key in (
                *("server", "model", "questions", "steps", "step2", "leave_out", "max_image_side"),
                *("max_tokens", "temperature", "vllm.model", "vllm.revision", "vllm.dtype"),
                *("vllm.max_model_len", "vllm.args"),
            )
        ),
    ),
    "encode": ("encode",),
    "latents": ("seed", "latents", "prepare.image_size"),
    "train": ("seed", "train", "method.{method}.model", "method.{method}.train"),
    "sample": ("seed", "sample", "method.{method}.sample"),
    "other": ("ablation.other.{dataset}",),
    "floor": ("seed", "evaluate"),
    "evaluate": ("seed", "evaluate"),
    "classify": CLASSIFY,
    "classify-plus": (
        *CLASSIFY,
        *(f"downstream.{key}" for key in ("synthetic", "synthetic_balance", "real_share")),
    ),
    "table": ("datasets", "methods"),
    "table2": ("datasets", "ablation"),
    "table3": (
        "datasets",
        *(f"downstream.{key}" for key in ("classifiers", "ratios", "sources", "generator_ratios")),
    ),
    "figure": ("figure", "methods", "prepare.image_size"),
    "report": (
        *("seed", "datasets", "dataset", "methods", "prepare.image_size", "evaluate"),
        *("sample", "method"),
    ),
}


@dataclass(frozen=True)
class Entry:
    """What decides some stages.

    Attributes:
        stage: a key of SETTINGS.
        name: of the file under data/plan/, without .json.
        names: what stands for {dataset}, {method} or {classifier} in the settings' keys.
        own: settings that the run's name holds, in place of params.yaml's: its seed, its share of the images.
    """

    stage: str
    name: str
    names: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modules(self) -> list[str]:
        """What is imported: the stage's module, and the one of its method, which is loaded by name."""
        if self.stage == "other":
            return []
        method = [f"vap.generators.{self.names['method']}"] if "method" in self.names else []
        return [STAGES[self.stage.removesuffix("-plus")], *method]


def entries(params: Params) -> Iterator[Entry]:
    """All files of the plan."""
    for stage in ("encode", "latents", "floor", "evaluate", "table", "table2", "table3", "figure", "report"):
        yield Entry(stage, stage)
    for dataset in params.datasets:
        for stage in ("prepare", "caption", "other"):
            yield Entry(stage, f"{stage}/{dataset}", {"dataset": dataset})
    for run in runs_of(params).values():
        share = {} if run.percent is None else {"percent": run.percent}
        for stage in ("train", "sample"):
            own = {"seed": run.seed, **share}
            yield Entry(stage, f"{stage}/{run.name}", {"method": run.method}, own)
    for classifier in params.downstream.classifiers:
        for stage in ("classify", "classify-plus"):
            yield Entry(stage, f"{stage}/{classifier}", {"classifier": classifier})


def content(entry: Entry, config: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry's file holds.

    Args:
        config: params.yaml as it is written.

    Returns:
        `settings`, dotted key to value, and `code`, the files of this package to the hash of what they do.
    """
    keys = [key.format(**entry.names) for key in SETTINGS[entry.stage]]
    settings = {key: value_of(config, key) for key in keys} | dict(entry.own)
    return {"settings": settings, "code": code_of(entry.modules)}


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key; None where a mapping on the way lacks it, as `ablation.other` may."""
    found: Any = config
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def write_plan(params: Params, config: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Write the whole plan, in place of an older one."""
    with atomic(folder) as part:
        part.mkdir(parents=True)
        for entry in sorted(entries(params), key=operator.attrgetter("name")):
            write_json(part / f"{entry.name}.json", content(entry, config))
