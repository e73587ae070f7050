"""classify: train a classifier on a share of the real images, alone or with synthetic ones, and score it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vap.common.artifacts import ArrowFile, provenance, require_place, work_folder, write_json
from vap.common.errors import VapError
from vap.common.places import prepared_path, samples_path, set_up_torch
from vap.common.progress import Progress
from vap.datasets.share import real_rows, subset_rows
from vap.downstream.data import ImagePool, synthetic_rows
from vap.downstream.places import REAL_ALONE, curves_folder, generator_data_of, scores_path
from vap.downstream.scores import measure
from vap.params import DownstreamParams, Params
from vap.runs import share_run

LIBRARIES = ("accelerate", "numpy", "pillow", "pyarrow", "safetensors", "timm", "torch")
ONLY_SYNTHETIC = (
    "synthetic",
    "synthetic_balance",
    "real_share",
)  # keys that real alone ignores


def run(params: Params, dataset: str, classifier: str, ratio: str, source: str) -> Path:
    """Write results/downstream/{dataset}/{classifier}-{ratio}-{source}.json.

    The classifier is trained for as many steps for every ratio and source, and scored
    on all images of the split downstream.test.

    Args:
        classifier: a name under downstream.classifier.
        ratio: percent of the real training images, as text.
        source: "none" for real images alone, or the method whose samples (seen) are added: METHOD, trained on
            all real images, or its run METHOD_dataR, trained on those of this ratio R alone.

    Raises:
        VapError: an argument is not in params.yaml, an input is absent, foreign or damaged, the classifier
            or its weights do not fit, or training fails.
    """
    params.check_sources()
    settings = params.downstream
    _check(settings, classifier, ratio, source)
    require_place(scores_path(dataset, classifier, ratio, source))
    device = set_up_torch(params.compute)
    import torch

    from vap.downstream.classifier import Classifier
    from vap.downstream.fit import fit, predict
    from vap.training.watch import Watch

    own = settings.classifier[classifier]
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    classes: list[str] = prepared.metadata["classes"]
    inputs = {"prepared": prepared.path}
    real, test = subset_rows(prepared, int(ratio), params.seed), real_rows(prepared, settings.test)
    parts: list[tuple[ArrowFile, Sequence[int]]] = [(prepared, real)]
    if source != REAL_ALONE:
        samples = ArrowFile(samples_path(dataset, source, "seen"), "samples")
        rows = synthetic_rows(samples, settings.synthetic, settings.synthetic_balance, classes)
        parts.append((samples, rows))
        inputs["samples"] = samples.path
    pool = ImagePool(parts, classes, own.image_size)
    tested = ImagePool([(prepared, test)], classes, own.image_size, hold=0)

    torch.manual_seed(params.seed)
    net = Classifier(
        classifier, own, len(classes)
    )  # says what is wrong with the weights before they are hashed
    if own.weights is not None:
        inputs["weights"] = Path(own.weights)
    record = provenance(
        "classify",
        (dataset, classifier, ratio, source),
        params={"seed": params.seed, "downstream": _used(settings, classifier, source)},
        inputs=inputs,
        libraries=LIBRARIES,
    )
    label = f"classify {dataset} {classifier} {ratio} % {source}"
    with work_folder(record) as work:
        fit(
            net,
            pool,
            len(real),
            own,
            settings,
            work,
            section=f"downstream.classifier.{classifier}",
            seed=params.seed,
            device=device,
            label=label,
            watch=Watch(curves_folder(dataset, classifier, ratio, source), device),
        )
        with Progress(f"{label}, test", len(tested), "img") as progress:
            probabilities = predict(net, tested, own.batch_size, device, progress)
        scores = measure(probabilities, tested.labels, classes, params.seed)
        path = scores_path(dataset, classifier, ratio, source)
        counts = {
            "real": _count(pool.labels[: len(real)], classes),
            "synthetic": _count(pool.labels[len(real) :], classes),
            "test": _count(tested.labels, classes),
        }
        result = {
            "dataset": dataset,
            "modality": prepared.metadata["modality"],
            "classifier": classifier,
            "ratio": int(ratio),
            "source": source,
            "generator_data": generator_data_of(source),
            "n_real": len(real),
            "n_synthetic": len(pool) - len(real),
            "n_test": len(tested),
            "seed": params.seed,
            **scores,
            "counts": counts,
            "provenance": record,
        }
        write_json(path, result)
    return path


def _check(settings: DownstreamParams, classifier: str, ratio: str, source: str) -> None:
    """Raise a VapError where an argument is not listed in params.yaml."""
    sources = [REAL_ALONE, *settings.sources]
    if ratio in settings.generator_ratios:
        sources += [share_run(source, int(ratio)) for source in settings.sources]
    for kind, value, listed in (
        ("classifier", classifier, settings.classifiers),
        ("ratio", ratio, settings.ratios),
        ("source", source, sources),
    ):
        if value not in listed:
            fix = f"name one, or add it to downstream.{kind}s in params.yaml"
            raise VapError(kind, repr(value), f"one of {', '.join(listed)}", fix)


def _used(settings: DownstreamParams, classifier: str, source: str) -> dict[str, Any]:
    """What the result depends on: not the other classifiers, nor how images are added where none is."""
    lists = {"classifiers", "ratios", "sources", "classifier"}
    lists.add("generator_ratios")
    ignored = ONLY_SYNTHETIC if source == REAL_ALONE else ()
    used = settings.model_dump(exclude={*lists, *ignored})
    return {**used, "classifier": settings.classifier[classifier].model_dump()}


def _count(labels: Any, classes: Sequence[str]) -> dict[str, int]:
    found = Counter(int(k) for k in labels)
    return {label: found[k] for k, label in enumerate(classes)}
