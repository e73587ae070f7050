"""Every method can learn: on 64 phantom images of one class, its samples come near these."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy import PROJECT, write, write_bank_of

import vap.stages.latents as latents_stage
import vap.stages.sample as sample_stage
import vap.stages.train as train_stage
from vap.artifacts import ArrowFile
from vap.datasets.images import decode, encode
from vap.datasets.phantom import list_samples, load_spec, render
from vap.metrics.features import features_of, load_extractor, weights_file
from vap.metrics.fidelity import frechet_distance
from vap.params import Params, parse

N = 64
SIDE = 16  # pixels: small enough that the autoencoder keeps all that a distance sees
LABEL = "NV"
STEPS = {"stylegan": 400, "cbdm": 600, "ldm": 500, "dit": 1200, "uvit": 1000, "vap": 1000}
KINDS = {"stylegan": "adversary", "cbdm": "images", "vap": "prompts"}


def params(method: str, **changes: Any) -> Params:
    """The demo's, with one dataset and one method."""
    data = yaml.safe_load((PROJECT / "config/demo.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = ["own"], {"own": data["dataset"]["phantom-isic2018"]}
    data["methods"], data["learns_from"] = [method], {KINDS.get(method, "latents"): [method]}
    data["downstream"]["sources"] = []
    data["compute"] |= {"device": "cpu", "threads": 1}
    data["prepare"]["image_size"] = SIDE
    data["latents"]["train"] |= {"steps": 1500, "patch": 2}
    data["method"][method]["train"]["steps"] = STEPS[method]
    data["sample"] |= {"n": N, "batch_size": N}
    for key, value in changes.items():
        section, name = key.split("__")
        data[section][name] = value
    return parse(data)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(PROJECT / "data/raw/phantom-isic2018/phantom.yaml")
    chosen = [s for s in list_samples(spec, 0) if s.label == LABEL][:N]
    rows = [
        {
            "id": sample.id,
            "label": LABEL,
            "split": "train",
            "group": sample.id,
            "sha256": f"{i:064x}",
            "image": encode(render(spec.modality, sample, SIDE)),
            "attributes": None,
        }
        for i, sample in enumerate(chosen)
    ]
    write(Path("data/prepared/own.arrow"), "prepared", rows, classes=[LABEL])
    write_bank_of(Path("data/prompts/own.arrow"), [row["id"] for row in rows], LABEL)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def distance(samples: Path) -> float:
    """Fréchet distance of the samples to the training images, in EfficientNet-Lite0's features."""
    extractor = load_extractor("efficientnet-lite0", weights_file("efficientnet-lite0", None))
    found = []
    for path, kind in ((samples, "samples"), (Path("data/prepared/own.arrow"), "prepared")):
        images = [decode(value) for value in ArrowFile(path, kind).column("image")]  # type: ignore[arg-type]
        found.append(features_of(images, extractor, 32)["pooled"])
    return frechet_distance(*found)


@pytest.mark.parametrize("method", list(STEPS))
@pytest.mark.slow
def test_a_method_overfits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if method not in ("stylegan", "cbdm"):
        latents_stage.run(params(method), "own")
    with monkeypatch.context() as patched:
        patched.setattr(train_stage, "train", untrained)
        train_stage.run(params(method), "own", method)
    before = distance(sample_stage.run(params(method), "own", method, "seen"))
    train_stage.run(params(method), "own", method)
    after = distance(sample_stage.run(params(method), "own", method, "seen"))
    print(f"{method}: {before:.1f} before, {after:.1f} after")
    assert after < before / 3
    assert np.isfinite(before)


def untrained(learner_of: Any, *_: Any, **options: Any) -> Any:
    """As the training loop, without a step."""
    from vap.training.engine import Trained, make_accelerator

    torch.manual_seed(options["seed"])
    return Trained(learner_of(make_accelerator("cpu", "fp32")).averaged(), [{"step": 0, "loss": 0.0}])
