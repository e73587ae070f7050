"""Files of weights run no code, also where a library opens them after us."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from vap.autoencoders import reconstruction
from vap.common.errors import VapError
from vap.common.weights import clean_copies, read_tensors
from vap.metrics.networks import Fidelity

MARK = Path("it-ran")


class Attack:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(MARK),)


def two_faced(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A file that torch.load(weights_only=True) takes for tensors, with a zip of one pickle behind it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("weights.pth", pickle.dumps(Attack()))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_attack_is_one() -> None:
    """torch.hub runs it, so that the tests below can fail."""
    path = two_faced(Path("hub/checkpoints/x.pth"), {"a": torch.ones(2)})
    assert set(torch.load(path, weights_only=True)) == {"a"}
    before = torch.hub.get_dir()
    torch.hub.set_dir("hub")
    try:
        with pytest.raises(Exception):  # noqa: B017, PT011 - what it leaves is no state dict
            torch.hub.load_state_dict_from_url("https://host.invalid/x.pth", map_location="cpu")["a"]
    finally:
        torch.hub.set_dir(before)
    assert MARK.exists()


def test_lpips_runs_nothing_of_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in reconstruction.LPIPS_FILES:
        two_faced(Path("hub/checkpoints") / name, {"a": torch.ones(2)})

    class Net(torch.nn.Module):
        """Loads its weights as torch-fidelity's does."""

        def __init__(self, _name: str) -> None:
            super().__init__()
            self.found = [
                torch.hub.load_state_dict_from_url(f"https://host.invalid/{name}", map_location="cpu")
                for name in reconstruction.LPIPS_FILES
            ]

    monkeypatch.setattr("torch_fidelity.sample_similarity_lpips.SampleSimilarityLPIPS", Net)
    net = reconstruction._lpips("hub", torch.device("cpu"))
    assert [set(found) for found in net.found] == [{"a"}, {"a"}]  # type: ignore[union-attr]
    assert not MARK.exists()


@pytest.mark.parametrize("features", ["inception", "vgg16"])
def test_torch_fidelitys_networks_run_nothing(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def net(_features: str, path: Path) -> torch.nn.Module:
        opened.append(path)
        torch.load(path, weights_only=False)  # the worst that a library may do
        return torch.nn.Identity()

    monkeypatch.setattr(Fidelity, "_net", staticmethod(net))
    path = two_faced(Path("x.pth"), {"a": torch.ones(2)})
    Fidelity(features, path)
    assert opened[0].resolve() != path.resolve()
    assert not MARK.exists()


def test_a_pickle_is_one_line() -> None:
    for name in ("x.pth", "x.safetensors", "x.pt"):
        Path(name).write_bytes(pickle.dumps({"a": Attack()}))
        with pytest.raises(VapError, match=r"no readable weights|could run code"):
            read_tensors(Path(name), "weights", "get them again")
    assert not MARK.exists()


def test_copies_are_gone_afterwards_and_absent_files_told() -> None:
    torch.save({"a": torch.ones(2)}, "x.pth")
    with clean_copies({"deep/y.pth": Path("x.pth")}, "weights", "get them") as copies:
        assert torch.equal(torch.load(copies / "deep/y.pth", weights_only=True)["a"], torch.ones(2))
    assert not copies.exists()
    with (
        pytest.raises(VapError, match=r"gone\.pth: found no such file"),
        clean_copies({"y.pth": Path("gone.pth")}, "weights", "get them"),
    ):
        raise AssertionError("never here")


TENSORS = {"a.weight": torch.ones(2), "a.bias": torch.zeros(2)}
OTHER = {name: value + 5 for name, value in TENSORS.items()}


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in TENSORS.items()}


AS_PEOPLE_HAVE_THEM: dict[str, dict[str, Any]] = {
    "plain": TENSORS,
    "DataParallel": under("module."),
    "torch.compile": under("_orig_mod."),
    "both": under("module._orig_mod."),
    "a trainer's": {"model": TENSORS, "optimizer": {"state": {}}, "epoch": 3},
    "a trainer's with an average": {"model": OTHER, "ema": TENSORS, "step": 7, "args": {"lr": 0.1}},
    "Lightning": {"state_dict": under("model."), "pytorch-lightning_version": "2.5", "callbacks": {}},
    "an average within": {"ema": {"module": TENSORS, "decay": 0.999}},
    "an empty average": {"state_dict_ema": {}, "state_dict": TENSORS},
}


@pytest.mark.parametrize("saved", AS_PEOPLE_HAVE_THEM.values(), ids=AS_PEOPLE_HAVE_THEM)
def test_the_weights_of_a_checkpoint_are_found(
    saved: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(saved, "x.pt")
    found = read_tensors(Path("x.pt"), "weights", "get them")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert ("the weights are those under" in capsys.readouterr().err) == (saved is not TENSORS)


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (
            {"model": TENSORS, "args": argparse.Namespace(lr=1)},
            "found objects of the kind argparse.Namespace",
        ),
        (torch.nn.Linear(2, 2), "found objects of the kind torch.nn.modules.linear.Linear"),
        ([1, 2], "found a list of other things"),
        ({"epoch": 3}, "found a dict of other things"),
    ],
)
def test_what_is_no_weights_is_one_line_with_what_to_do(saved: Any, told: str) -> None:
    torch.save(saved, "x.pt")
    with pytest.raises(VapError) as caught:
        read_tensors(Path("x.pt"), "weights", "get them")
    line = str(caught.value)
    assert told in line
    assert "weights_only" not in line
    assert "\n" not in line
