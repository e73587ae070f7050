"""Every method can learn: on 64 phantom images of one class, its samples come near these.

The images are chest radiographs of 16 pixels: other images of their class are at a twentieth of noise's
distance, so that what is left to measure is the network's own error. The methods on latents share one
autoencoder of few latents, trained long on the same images (its reconstructions are at 14).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import PROJECT, write, write_bank_of

import vap.autoencoders.latents as latents_stage
import vap.generators.train as train_stage
import vap.sampling.sample as sample_stage
from vap.common.artifacts import ArrowFile
from vap.datasets.images import decode, encode
from vap.datasets.phantom import list_samples, load_spec, render
from vap.metrics.features import features_of, load_extractor, weights_file
from vap.metrics.fidelity import frechet_distance
from vap.params import Params, parse

DATASET, LABEL = "phantom-chestxray14", "Atelectasis"
N = 64
SIDE = 16  # pixels, the smallest phantom
KINDS = {"stylegan": "images", "cbdm": "images", "vap": "prompts"}
AUTOENCODER = {"steps": 2000, "lr": 3.0e-3, "patch": 4, "channels": [128]}
AUTOENCODER |= {"latent_channels": 1, "kl_weight": 1.0e-5}
TRANSFORMER = {"width": 128, "depth": 4, "heads": 4, "patch": 1}
UVIT = TRANSFORMER | {"linear_init": "published"}
MODEL: dict[str, dict[str, Any]] = {
    "stylegan": {"image_size": SIDE},
    "cbdm": {"image_size": SIDE},
    "ldm": {"width": 64, "head_channels": 16},
    "dit": TRANSFORMER,
    "uvit": UVIT,
    "vap": UVIT,
}
DIFFUSION = {"batch_size": 32, "lr": 1.5e-3, "weight_decay": 0.0, "condition_dropout": 0.0}
DIFFUSION |= {"predicts": "noise"}  # and, below, the authors' schedule: what the bars were measured with
SCHEDULE = {"kind": "scaled_linear", "timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
TRAIN: dict[str, dict[str, Any]] = {
    "stylegan": {"steps": 3000},
    "cbdm": DIFFUSION | {"steps": 1500, "lr": 1.0e-3},
    "ldm": DIFFUSION | {"steps": 300, "lr": 1.0e-3},
    "dit": DIFFUSION | {"steps": 1200},
    "uvit": DIFFUSION | {"steps": 2500},
    "vap": DIFFUSION | {"steps": 1200},
}


def params(method: str) -> Params:
    """The demo's, with one dataset and one method."""
    data = yaml.safe_load((PROJECT / "config/demo.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = ["own"], {"own": data["dataset"][DATASET]}
    data["methods"], data["learns_from"] = [method], {KINDS.get(method, "latents"): [method]}
    data["downstream"]["sources"] = []
    data["compute"] |= {"device": "cpu", "threads": 1}
    data["prepare"]["image_size"] = SIDE
    data["latents"]["autoencoder"] = "train"
    data["latents"]["train"] |= AUTOENCODER
    data["train"]["schedule"] = SCHEDULE
    data["sample"] |= {"n": N, "batch_size": N, "steps": 50, "spacing": "logsnr"}
    own = data["method"][method]
    own["model"] |= MODEL[method]
    own["train"] |= TRAIN[method]
    if "guidance_scale" in own["sample"]:
        own["sample"]["guidance_scale"] = 1.0
    return parse(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, their descriptions and, once a method asks for them, their latents."""
    root = tmp_path_factory.mktemp("overfit")
    spec = load_spec(PROJECT / "data/raw" / DATASET / "phantom.yaml")
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
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)  # where what is half written is kept
        write(Path("data/prepared/own.arrow"), "prepared", rows, classes=[LABEL])
        write_bank_of(Path("data/prompts/own.arrow"), [row["id"] for row in rows], LABEL)
    return root


@pytest.fixture(autouse=True)
def project(folder: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(folder)


def distance(samples: Path) -> float:
    """Fréchet distance of the samples to the training images, in EfficientNet-Lite0's features."""
    extractor = load_extractor("efficientnet-lite0", weights_file("efficientnet-lite0", None))
    found = []
    for path, kind in ((samples, "samples"), (Path("data/prepared/own.arrow"), "prepared")):
        images = [decode(value) for value in ArrowFile(path, kind).column("image")]  # type: ignore[arg-type]
        found.append(features_of(images, extractor, 32)["pooled"])
    return frechet_distance(*found)


@pytest.mark.parametrize("method", list(TRAIN))
@pytest.mark.slow
def test_a_method_overfits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = params(method)
    if method not in ("stylegan", "cbdm") and not Path("data/latents/own.arrow").exists():
        latents_stage.run(settings, "own")
    with monkeypatch.context() as patched:
        patched.setattr(train_stage, "train", untrained)
        train_stage.run(settings, "own", method)
    before = distance(sample_stage.run(settings, "own", method, "seen"))
    train_stage.run(settings, "own", method)
    after = distance(sample_stage.run(settings, "own", method, "seen"))
    print(f"{method}: {before:.1f} before, {after:.1f} after")
    assert after < before / 3


def untrained(learner_of: Any, *_: Any, **options: Any) -> Any:
    """As the training loop, without a step."""
    from vap.training.loop import make_accelerator

    torch.manual_seed(options["seed"])
    return learner_of(make_accelerator("cpu", "fp32")), [{"step": 0, "loss": 0.0}]
