"""Every method on a GPU: its network, its training, its samples, against the CPU."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from toy import settings, write_own

import vap.generators.train as training
import vap.sampling.sample as sampling
from vap.autoencoders.autoencoder import Linear
from vap.autoencoders.linear import LinearNet
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import Stopped
from vap.common.places import autoencoder_path
from vap.datasets.images import decode
from vap.generators.base import load_method
from vap.params import PARAMS_FILE, Params
from vap.training import data as training_data
from vap.training.data import LatentData
from vap.training.image_data import ImageData

METHODS = ["uvit", "vap", "vap_without_pcm", "dit", "ldm", "cbdm", "stylegan"]


@pytest.fixture(autouse=True)
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None, fresh_accelerate: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_own()
    torch.manual_seed(0)
    Linear(LinearNet(2, 2)).save(autoencoder_path("own"))


@pytest.fixture
def whole_float32() -> Iterator[None]:
    """Convolutions in float32, not in TF32, which PyTorch allows them by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def params(method: str, **changes: Any) -> Params:
    kind = load_method(method, settings().method).kind
    plain = {"compute__device": "cuda", "compute__compile": False, "sample__n": 6, "sample__steps": 5}
    smoke = settings()
    listed = method in [*smoke.methods, *smoke.ablation.without]
    only = {} if listed else {"methods": [method], "learns_from": {kind: [method]}}
    return settings(**(only | plain | changes))


def trained(method: str, **changes: Any) -> dict[str, torch.Tensor]:
    shutil.rmtree("work", ignore_errors=True)
    AcceleratorState._reset_state(reset_partial_state=True)  # it holds one precision and device a process
    return load_file(training.run(params(method, **changes), "own", method) / "model.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of two networks' tensors; of those that are more than rounding."""
    assert a.keys() == b.keys()
    found = [float((a[n] - b[n]).norm() / b[n].norm()) for n in a if b[n].norm() > 1e-3 * b[n].numel() ** 0.5]
    return max(found)


def losses(method: str) -> np.ndarray:
    curve = np.genfromtxt(f"results/models/own/{method}/train.csv", delimiter=",", names=True)
    name = "loss" if "loss" in curve.dtype.names else "d_loss"
    return np.atleast_1d(curve[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("whole_float32")
def test_training_in_float32_is_that_of_the_cpu(method: str) -> None:
    changes = {"train__precision": "fp32"}
    plain = trained(method, compute__device="cpu", **changes)
    expected = losses(method)
    found = trained(method, **changes)
    np.testing.assert_allclose(losses(method), expected, rtol=2e-3)
    assert difference(found, plain) < 0.02  # AdamW divides by the gradient's size: rounding grows


@pytest.mark.parametrize("method", METHODS)
def test_training_in_bf16_follows_the_cpus_loss(method: str) -> None:
    trained(method, compute__device="cpu", train__precision="fp32")
    expected = losses(method)
    weights = trained(method, train__precision="bf16")
    np.testing.assert_allclose(losses(method), expected, rtol=0.05, atol=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_training_gives_the_same_bytes_also_after_an_interruption(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__precision": "bf16", "compute__deterministic": True}
    trained(method, **changes)
    folder = Path(f"results/models/own/{method}")
    whole = file_sha256(folder)
    trained(method, **changes)
    assert file_sha256(folder) == whole
    shutil.rmtree("work", ignore_errors=True)
    shutil.rmtree(folder)
    asked = []
    with monkeypatch.context() as patch:
        for data in (LatentData, ImageData):

            def examples(self: Any, *args: Any, original: Any = data.examples) -> Any:
                asked.append(args)
                if len(asked) == 6:
                    raise Stopped("enough")
                return original(self, *args)

            patch.setattr(data, "examples", examples)
        with pytest.raises(Stopped):
            training.run(params(method, **changes), "own", method)
    training.run(params(method, **changes), "own", method)
    assert file_sha256(folder) == whole


@pytest.mark.parametrize("method", METHODS)
def test_samples_are_those_of_the_cpu(method: str) -> None:
    trained(method, compute__device="cpu")
    found = []
    for device in ("cpu", "cuda"):
        own = params(method, compute__device=device, sample__precision="fp32")
        file = ArrowFile(sampling.run(own, "own", method, "seen"), "samples")
        found.append(np.stack([decode(file.value("image", row)) for row in range(len(file))]).astype(int))
    assert np.abs(found[0] - found[1]).mean() < 1.0  # of 255
    own = params(method, sample__precision="bf16")
    file = ArrowFile(sampling.run(own, "own", method, "seen"), "samples")
    half = np.stack([decode(file.value("image", row)) for row in range(len(file))]).astype(int)
    assert np.abs(half - found[0]).mean() < 8.0


@pytest.mark.parametrize("method", ["uvit", "vap", "cbdm"])
def test_held_data_and_streamed_data_train_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"train__precision": "bf16", "compute__deterministic": True}
    held = trained(method, **changes)
    monkeypatch.setattr(training_data.TrainingData, "fits", lambda *_: False)
    streamed = trained(method, **changes)
    assert difference(held, streamed) < 1e-3


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("method", ["vap"])
def test_a_compiled_network_trains_and_draws_what_the_plain_one_does(method: str, graphs: bool) -> None:
    plain = trained(method, train__precision="bf16")
    expected = losses(method)
    changes = {"train__precision": "bf16", "compute__compile": True, "compute__cuda_graphs": graphs}
    compiled = trained(method, **changes)
    np.testing.assert_allclose(losses(method), expected, rtol=0.05)
    assert difference(compiled, plain) < 0.1
    sampling.run(params(method, sample__precision="bf16", **changes), "own", method, "seen")


def test_two_processes_on_one_gpu_train_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess
    import sys

    import yaml

    one = trained("vap", train__precision="fp32")
    expected = losses("vap")
    both = params("vap", train__precision="fp32", compute__processes=2)
    shutil.rmtree("work", ignore_errors=True)
    PARAMS_FILE.write_text(yaml.safe_dump(both.model_dump(mode="json"), sort_keys=False))
    paths = [str(Path(training.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    done = subprocess.run(
        [sys.executable, "-m", "vap", "train", "own", "vap"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(losses("vap"), expected, rtol=1e-3)
    assert difference(load_file("results/models/own/vap/model.safetensors"), one) < 0.02
    assert json.loads(Path("results/models/own/vap/config.json").read_text())["method"] == "vap"
