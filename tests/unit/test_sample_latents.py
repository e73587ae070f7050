"""Samples of the methods on latents: each has its own sampler where it is given one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import settings, write_own

import vap.generators.train as training
import vap.sampling.sample as stage
from vap.autoencoders.autoencoder import Linear
from vap.autoencoders.linear import LinearNet
from vap.common.artifacts import file_sha256
from vap.common.errors import VapError
from vap.common.places import autoencoder_path
from vap.params import Params

ANCESTRAL = {"sampler": "ddpm", "order": 1, "spacing": "uniform", "steps": 4}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_own()
    torch.manual_seed(0)
    Linear(LinearNet(2, 2)).save(autoencoder_path("own"))


def params(method: str, variance: str | None = None, **changes: Any) -> Params:
    own = {"variance": variance, **ANCESTRAL} if variance is not None else None
    changes[f"method__{method}__sample__sampler"] = own
    return settings(
        methods=[method], learns_from={"latents": [method]}, sample__n=6, sample__steps=3, **changes
    )


def test_a_predicted_variance_is_drawn_with() -> None:
    learned = {"method__dit__model__learn_sigma": True}
    training.run(params("dit", **learned), "own", "dit")
    found = {
        variance: file_sha256(stage.run(params("dit", variance, **learned), "own", "dit", "seen"))
        for variance in (None, "posterior", "beta", "learned")
    }
    assert len(set(found.values())) == 4
    again = stage.run(params("dit", "learned", **learned), "own", "dit", "seen")
    assert file_sha256(again) == found["learned"]


@pytest.mark.parametrize("method", ["uvit", "ldm", "dit"])
def test_a_variance_that_is_not_predicted_is_one_line(method: str) -> None:
    training.run(params(method), "own", method)
    with pytest.raises(VapError, match=rf"of method {method}: found learned; expected posterior or beta"):
        stage.run(params(method, "learned"), "own", method, "seen")


def test_the_shared_sampler_reads_its_variance() -> None:
    training.run(params("uvit"), "own", "uvit")
    found = {
        file_sha256(
            stage.run(
                params("uvit", sample__sampler="ddpm", sample__variance=variance), "own", "uvit", "seen"
            )
        )
        for variance in ("posterior", "beta")
    }
    assert len(found) == 2
