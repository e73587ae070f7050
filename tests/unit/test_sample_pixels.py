"""Samples of the methods on pixels, and the classes that a run asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import settings, write_prepared

import vap.generators.train as training
import vap.sampling.sample as stage
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.datasets.images import decode
from vap.params import Params
from vap.sampling.sample import plan_labels


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared(Path("data/prepared/own.arrow"), side=32)


def params(method: str, **changes: Any) -> Params:
    kind = "images"
    return settings(methods=[method], learns_from={kind: [method]}, sample__n=6, sample__steps=3, **changes)


@pytest.mark.parametrize("method", ["cbdm", "stylegan"])
def test_samples_have_the_size_of_the_prepared_images_and_the_same_bytes(method: str) -> None:
    training.run(params(method), "own", method)
    file = stage.run(params(method), "own", method, "seen")
    first = file_sha256(file)
    samples = ArrowFile(file, "samples")
    images = [decode(value) for value in samples.column("image")]
    assert [image.shape for image in images] == [(32, 32, 3)] * 6  # the network's are 16
    assert len({image.tobytes() for image in images}) == 6
    assert samples.column("text") == [None] * 6
    assert "autoencoder" not in samples.metadata["provenance"]["inputs"]
    stage.run(params(method), "own", method, "seen")
    assert file_sha256(file) == first
    stage.run(params(method, seed=1), "own", method, "seen")
    assert file_sha256(file) != first


@pytest.mark.parametrize("method", ["cbdm", "stylegan"])
def test_an_image_does_not_depend_on_its_batch(method: str) -> None:
    training.run(params(method), "own", method)
    pixels = []
    for size in (6, 2):
        file = stage.run(params(method, sample__batch_size=size), "own", method, "seen")
        pixels.append(np.stack([decode(v) for v in ArrowFile(file, "samples").column("image")]).astype(int))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # rounding


def test_truncation_is_read() -> None:
    training.run(params("stylegan"), "own", "stylegan")
    found = {
        psi: file_sha256(
            stage.run(
                params("stylegan", method__stylegan__sample__truncation_psi=psi), "own", "stylegan", "seen"
            )
        )
        for psi in (1.0, 0.5)
    }
    assert found[1.0] != found[0.5]


def test_cbdms_own_sampler_is_used() -> None:
    own = {"sampler": "ddpm", "order": 1, "spacing": "uniform", "variance": "beta", "steps": 5}
    training.run(params("cbdm"), "own", "cbdm")
    shared = file_sha256(stage.run(params("cbdm"), "own", "cbdm", "seen"))
    changed = params("cbdm", method__cbdm__sample__sampler=own)
    assert file_sha256(stage.run(changed, "own", "cbdm", "seen")) != shared


def test_a_model_of_other_settings_is_one_line() -> None:
    training.run(params("cbdm"), "own", "cbdm")
    config = Path("results/models/own/cbdm/config.json")
    config.write_text(config.read_text().replace('"width": 16', '"width": 17'))
    with pytest.raises(VapError, match=r"results/models/own/cbdm/config.json: model.width"):
        stage.run(params("cbdm"), "own", "cbdm", "seen")


# ── the label prior ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "kind", "expected"),
    [
        ("empirical", "latents", [60, 30, 10, 0]),
        ("uniform", "latents", [34, 33, 33, 0]),
        ("uniform", "prompts", [34, 33, 33, 0]),
        ("paper-released", "prompts", [60, 30, 10, 0]),
        ("paper-released", "latents", [34, 33, 33, 0]),
        ("paper-released", "images", [34, 33, 33, 0]),
    ],
)
def test_label_priors(how: str, kind: Any, expected: list[int]) -> None:
    labels = plan_labels([600, 300, 100, 0], 100, how, 0, kind)
    assert np.bincount(labels, minlength=4).tolist() == expected
