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
from safetensors.torch import load_file
from toy import settings, write_own

from benchmarks.gpu import bundle, repeat
from vap.autoencoders.autoencoder import Linear
from vap.autoencoders.linear import LinearNet
from vap.common.artifacts import write_safetensors
from vap.common.places import autoencoder_path


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
    with tarfile.open(target / "code.tar.xz") as archive:
        archive.extractall(target, filter="data")
    with tarfile.open(target / "data.tar.xz") as archive:
        names = set(archive.getnames())
        archive.extract("real.npz", tmp_path, filter="data")
    real = bundle.read_real(tmp_path / "real.npz")
    assert {split: tuple(x.shape) for split, x in real.items()} == {"train": (11, 1280), "test": (3, 1280)}
    assert {"params.yaml", "data/latents/own.arrow", "data/prompts/own.arrow"} <= names
    assert {"efficientnet-lite0.pth", "real.npz"} <= names
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


def repeated(project: Path, out: Path, *words: str) -> int:
    return repeat.main([str(project), str(out), "own", *words])


def test_runs_side_by_side_are_trained_drawn_measured_and_packed(project: Path, tmp_path: Path) -> None:
    weights = bundle.features_weights()
    (project / "efficientnet-lite0.pth").write_bytes(weights)
    (project / "real.npz").write_bytes(bundle.real_features(Path("data/prepared/own.arrow"), weights))
    out = tmp_path / "out"
    runs = ["vap", "vap_without_pcm:final_init=published,steps=3,n=4"]
    assert repeated(project, out, *runs, "--steps", "4") == 0
    other = "vap_without_pcm-final_init_published-steps_3-n_4"
    with zipfile.ZipFile(out / "runs-0.zip") as archive:
        names = set(archive.namelist())
        rows = list(csv.DictReader(io.StringIO(archive.read(f"{other}-train.csv").decode())))
        assert int(rows[-1]["step"]) == 3
        assert Image.open(io.BytesIO(archive.read("vap-seen.jpg"))).size[0] > 100
    assert {"vap-seen.jpg", "vap-unseen.jpg", f"{other}-seen.jpg", f"{other}-log.txt"} <= names
    assert {f"vap-seen-{i:04d}.jpg" for i in range(12)} <= names
    with zipfile.ZipFile(out / "features-0.zip") as features:
        found = np.load(io.BytesIO(features.read("vap-seen.npz")))
        assert found["pooled"].shape == (12, 1280)
        assert np.isfinite(found["pooled"]).all()
    with (out / "results.csv").open() as file:
        results = {(row["run"], row["condition"]): row for row in csv.DictReader(file)}
    assert set(results) == {("real, test", ""), ("vap", "seen"), ("vap", "unseen"), (other, "seen")}
    assert float(results["vap", "unseen"]["fid_train"]) > 0
    assert float(results["vap", "seen"]["uneven_error"]) > 0
    (piece,) = out.glob("*-weights-*.safetensors")
    repeat.join([piece], tmp_path / "model.safetensors")
    joined = load_file(tmp_path / "model.safetensors")
    trained = load_file("runs/vap/results/models/own/vap/model.safetensors")
    assert joined.keys() == trained.keys()
    assert all(torch.equal(joined[name], trained[name].bfloat16().float()) for name in trained)


def test_weights_come_in_pieces_of_a_files_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "FILE_MB", 0.01)
    weights = {f"layer{i}": torch.full((1000,), float(i)) for i in range(10)} | {"count": torch.tensor(7)}
    pieces = repeat.pieces_of(weights)
    assert [len(piece) for piece in pieces] == [4, 4, 3]
    paths = [tmp_path / f"{i}.safetensors" for i in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        write_safetensors(path, piece)
        assert path.stat().st_size < 0.01e6
    repeat.join(paths, tmp_path / "whole.safetensors")
    whole = load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(whole[name], value) for name, value in weights.items())


def test_what_a_run_left_is_packed_when_another_fails(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert repeated(project, out, "uvit:steps=2,n=2", "uvit:steps=0,n=2") == 1
    with zipfile.ZipFile(out / "runs-0.zip") as archive:
        assert b"steps" in archive.read("uvit-steps_0-n_2-log.txt")
        assert "uvit-steps_2-n_2-train.csv" in archive.namelist()
    with (out / "results.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["uvit-steps_2-n_2"]


def test_a_training_that_would_outlast_its_time_begins_anew_with_fewer_steps(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeat, "DRAWING", 0.9)  # 12 s to train, and much for a busy machine to be late
    out = tmp_path / "out"
    assert repeated(project, out, "uvit:steps=1000000,n=2", "--minutes", "2") == 0
    assert "begins anew with" in capsys.readouterr().out
    with (out / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 1 <= int(row["steps"]) < 1000000


def test_a_run_that_has_no_time_is_stopped(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert repeated(project, out, "uvit:n=2", "--minutes", "0.01") == 1
    with zipfile.ZipFile(out / "runs-0.zip") as archive:
        assert archive.namelist() == ["uvit-n_2-log.txt"]


def test_what_has_no_room_is_left_out(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repeat, "TOTAL_MB", 0.001)
    out = tmp_path / "out"
    assert repeated(project, out, "vap:n=2", "--steps", "2") == 0
    said = capsys.readouterr().out
    assert "no room for vap-n_2-seen.jpg" in said
    assert "no room for the weights of vap-n_2" in said
    assert not list(out.glob("*.safetensors"))


def test_files_of_before_are_one_line(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert repeated(project, tmp_path, "uvit") == 1
    assert "expected an empty folder" in capsys.readouterr().err
