"""The folder for a GPU machine without a network, and the run that is repeated there, at toy size."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toy import settings, write_own

from benchmarks.gpu import bundle, repeat
from vap.models.autoencoder import Linear
from vap.models.linear import LinearNet
from vap.stages.common import autoencoder_path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_own()
    torch.manual_seed(0)
    Linear(LinearNet(2, 2)).save(autoencoder_path("own"))
    own = settings(sample__n=12, sample__steps=2, sample__batch_size=6)
    Path("params.yaml").write_text(yaml.safe_dump(own.model_dump(mode="json"), sort_keys=False))
    return folder


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A wheel of a package with a part that no one needs."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "diffusers-1.0-py3-none-any.whl", "w") as wheel:
        for name in ("diffusers/__init__.py", "diffusers/pipelines/big.py", "diffusers/models.py"):
            wheel.writestr(name, "x = 1\n")
        wheel.writestr(
            "diffusers-1.0.dist-info/RECORD", "diffusers/models.py,,\ndiffusers/pipelines/big.py,,\n"
        )
    return folder


def pack(*words: object) -> int:
    return bundle.main([str(word) for word in words])


def test_the_bundle_holds_code_that_runs_wheels_and_data(project: Path, wheels: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    assert pack(target, "--wheels", wheels, "--project", project, "--dataset", "own") == 0
    with zipfile.ZipFile(target / "wheels/diffusers-1.0-py3-none-any.whl") as wheel:
        assert set(wheel.namelist()) == {
            "diffusers/__init__.py",
            "diffusers/models.py",
            "diffusers-1.0.dist-info/RECORD",
        }
        assert wheel.read("diffusers-1.0.dist-info/RECORD") == b"diffusers/models.py,,\n"
    with tarfile.open(target / "data.tar.xz") as archive:
        names = set(archive.getnames())
    assert {"params.yaml", "data/latents/own.arrow", "data/prompts/own.arrow"} <= names
    assert "efficientnet-lite0.pth" in names
    said = (target / "README.txt").read_text()
    assert "repeat . out own" in said
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/gpu"],
        cwd=target / "code",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout  # skipped where there is no GPU
    assert pack(target, "--wheels", wheels) == 0  # made anew


def test_a_bundle_that_is_too_large_is_one_line(
    project: Path,
    wheels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bundle, "LIMIT_MB", 0.1)
    assert pack(tmp_path / "bundle", "--wheels", wheels) == 1
    assert "expected at most 0.1 MB" in capsys.readouterr().err


def test_an_absent_artefact_and_a_foreign_folder_are_one_line(
    project: Path, wheels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack("new", "--wheels", wheels, "--project", project, "--dataset", "other") == 1
    assert "data/latents/other.arrow: found no such file" in capsys.readouterr().err
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    assert pack("mine", "--wheels", wheels) == 1
    assert Path("mine/letter.txt").exists()


def test_runs_side_by_side_are_trained_drawn_and_packed(project: Path, tmp_path: Path) -> None:
    with tarfile.open("weights.tar", "w") as archive:
        bundle.add_features_weights(archive, project)
    with tarfile.open("weights.tar") as archive:
        archive.extractall(project, filter="data")
    out = tmp_path / "out"
    runs = ["vap", "vap_without_pcm:final_init=published,steps=3,n=4"]
    assert repeat.main([str(project), str(out), "own", *runs, "--steps", "4"]) == 0
    other = "vap_without_pcm-final_init_published-steps_3-n_4"
    with zipfile.ZipFile(out / "curves.zip") as curves:
        assert f"{other}-log.txt" in curves.namelist()
        rows = list(csv.DictReader(io.StringIO(curves.read(f"{other}-train.csv").decode())))
        assert int(rows[-1]["step"]) == 3
    with zipfile.ZipFile(out / "grids.zip") as grids:
        assert set(grids.namelist()) == {"vap-seen.jpg", "vap-unseen.jpg", f"{other}-seen.jpg"}
        assert Image.open(io.BytesIO(grids.read("vap-seen.jpg"))).size[0] > 100
    with zipfile.ZipFile(out / "features-0.zip") as features:
        found = np.load(io.BytesIO(features.read("vap-seen.npz")))
        assert found["pooled"].shape == (12, 1280)
        assert np.isfinite(found["pooled"]).all()
    with zipfile.ZipFile(out / "samples.zip") as samples:
        assert len(samples.namelist()) == 12


def test_what_a_run_left_is_packed_when_another_fails(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert repeat.main([str(project), str(out), "own", "uvit:steps=2,n=2", "uvit:steps=0,n=2"]) == 0
    with zipfile.ZipFile(out / "curves.zip") as curves:
        assert b"steps" in curves.read("uvit-steps_0-n_2-log.txt")
        assert "uvit-steps_2-n_2-train.csv" in curves.namelist()
