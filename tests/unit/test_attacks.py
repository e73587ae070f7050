"""No pickle and no code of a folder is run, whichever option names it; names from outside reach no shell."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import said_by

from vap.autoencoders import autoencoder
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.common.weights import read_tensors
from vap.downstream.classifier import Classifier
from vap.metrics.networks import Fidelity, Timm
from vap.params import ClassifierParams
from vap.prompts.bank import PromptBank
from vap.prompts.encoders import load_encoder
from vap.sampling.pipeline import VAPDiffusion

MARK = Path("it-ran")


class Attack:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(MARK),)


def raw() -> bytes:
    return pickle.dumps({"a": Attack()})


def torch_zip() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2), "b": Attack()}, buffer)
    return buffer.getvalue()


def legacy_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(raw())
            tar.addfile(info, io.BytesIO(raw()))
    return buffer.getvalue()


def appended() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    return buffer.getvalue() + raw()


def two_faced() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("weights.pth", raw())
    return buffer.getvalue()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Attack()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


ATTACKS = [raw, torch_zip, legacy_tar, appended, two_faced, objects]
NAMES = ("x.pth", "x.bin", "x.ckpt", "x.npy", "x.h5", "x.keras", "x.safetensors", "x")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def runs_nothing(work: Callable[[], object]) -> None:
    """`work` is done or ends in one line; no code of the file has run."""
    said = said_by(work)
    assert "weights_only" not in said
    assert not MARK.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_attack_is_one(attack: Callable[[], bytes]) -> None:
    """Where a reader unpickles it, it runs: the tests below can fail."""
    data = attack()
    if attack is objects:
        np.load(io.BytesIO(data), allow_pickle=True)
    elif attack is torch_zip:
        torch.load(io.BytesIO(data), weights_only=False)
    elif attack is two_faced:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickle.loads(archive.read("weights.pth"))
    else:
        pickle.loads(data[data.index(raw()) :])
    assert MARK.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_weights(attack: Callable[[], bytes], name: str) -> None:
    Path(name).write_bytes(attack())
    runs_nothing(lambda: read_tensors(Path(name), "weights", "get them again"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_networks_of_libraries(attack: Callable[[], bytes]) -> None:
    """Features of torch-fidelity and timm, and a classifier of timm."""
    path = Path("x.pth")
    path.write_bytes(attack())
    settings = ClassifierParams(
        model="resnet10t", weights=str(path), image_size=32, steps=1, batch_size=2, lr=0.1
    )
    runs_nothing(lambda: Fidelity("vgg16", path))
    runs_nothing(lambda: Timm("resnet10t", path))
    runs_nothing(lambda: Classifier("x", settings, 2))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"])
def test_an_autoencoder(attack: Callable[[], bytes], name: str) -> None:
    for kind in ("AutoencoderKL", "AutoencoderTiny", "LinearAutoencoder"):
        folder = Path(kind)
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"_class_name": kind, "patch": 2, "latent_channels": 2})
        )
        (folder / name).write_bytes(attack())
        runs_nothing(lambda folder=folder: autoencoder.load(folder))


def bert(folder: Path, **more: Any) -> Path:
    folder.mkdir()
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 5, **small, **more}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    return folder


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_text_encoder(attack: Callable[[], bytes], name: str) -> None:
    folder = bert(Path("encoder"))
    (folder / name).write_bytes(attack())
    runs_nothing(lambda: load_encoder(str(folder), 8))


def test_a_text_encoders_own_code_is_not_run_and_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bert(
        Path("encoder"), model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}
    )
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(MARK.resolve())!r})\nclass Own: pass\n")
    (folder / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    with pytest.raises(VapError, match="no loadable text encoder"):
        load_encoder(str(folder), 8)
    assert not MARK.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_artefacts_and_bundles(attack: Callable[[], bytes]) -> None:
    for kind in ("prepared", "bank", "latents", "samples"):
        path = Path(f"{kind}.arrow")
        path.write_bytes(attack())
        runs_nothing(lambda path=path, kind=kind: ArrowFile(path, kind))
    runs_nothing(lambda: PromptBank(Path("bank.arrow")))
    bundle = Path("bundle")
    bundle.mkdir()
    (bundle / "model.safetensors").write_bytes(attack())
    files = {"model.safetensors": file_sha256(bundle / "model.safetensors")}
    config = {"bundle": {"format": 1, "files": files}, "method": "uvit"}
    (bundle / "config.json").write_text(json.dumps(config))
    runs_nothing(lambda: VAPDiffusion.from_pretrained(bundle))
    (bundle / "config.json").write_bytes(attack())
    runs_nothing(lambda: VAPDiffusion.from_pretrained(bundle))


def test_a_bundle_names_no_file_outside_of_it(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (tmp_path / "secret").write_text("x")
    (bundle / "model.safetensors").write_bytes(b"")
    for name in ("../secret", str(tmp_path / "secret")):
        files = {"model.safetensors": file_sha256(bundle / "model.safetensors"), name: "0" * 64}
        config = {"bundle": {"format": 1, "files": files}, "method": "uvit"}
        (bundle / "config.json").write_text(json.dumps(config))
        with pytest.raises(VapError, match="files within the bundle") as caught:
            VAPDiffusion.from_pretrained(bundle)
        assert "sha256 2d711642b726" not in str(caught.value)  # of x
