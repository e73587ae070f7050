"""The command itself: version, completion, an example in every help; and what `vap doctor` finds."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy import PROJECT, SMOKE
from typer.testing import CliRunner

import vap
from vap.cli import app
from vap.profiles import profile_text
from vap.workflow import doctor as module
from vap.workflow.doctor import doctor

GROUPS = [((), app), *(((group.name,), group.typer_instance) for group in app.registered_groups)]
COMMANDS = [
    (*path, info.name or info.callback.__name__.replace("_", "-"), info.epilog)  # type: ignore[union-attr]
    for path, group in GROUPS
    for info in group.registered_commands  # type: ignore[union-attr]
    if not info.hidden
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:-1]))
def test_every_help_has_an_example_of_its_command(command: tuple[str, ...]) -> None:
    *name, example = command
    assert example.startswith("Example: vap ")
    words = shlex.split(example.removeprefix("Example: "))
    assert words[1 : 1 + len(name)] == name
    shown = CliRunner().invoke(app, [*name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert "Example: vap" in shown.output


def test_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"vap {vap.__version__}\n"


def test_names_are_completed() -> None:
    environment = {**os.environ, "_VAP_COMPLETE": "complete_bash", "COMP_WORDS": "vap gen", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "vap"], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["generate"]


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # put back afterwards
    monkeypatch.chdir(tmp_path)


def write_params(text: str, **changes: Any) -> None:
    data = yaml.safe_load(text)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        data[section][name] = value
    Path("params.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")


def found(capsys: pytest.CaptureFixture[str]) -> tuple[bool, dict[str, str]]:
    """Whether nothing is broken; what was told, by what it is about: its state and words."""
    good = doctor()
    lines = [line.strip().partition(" ") for line in capsys.readouterr().out.splitlines() if line[:1] == " "]
    told = dict(f"{rest.strip()}".split(": ", 1) for _, _, rest in lines)
    states = {rest.strip().split(": ", 1)[0]: state for state, _, rest in lines}
    return good, {what: f"{states[what]} {words}" for what, words in told.items()}


def test_outside_of_a_project_nothing_is_broken(capsys: pytest.CaptureFixture[str]) -> None:
    good, told = found(capsys)
    assert good
    assert told["settings"].startswith("ok no params.yaml here")
    assert f"torch {torch.__version__.partition('+')[0]}" in told["packages"]
    assert {"vap", "CPU", "disk"} <= told.keys()


def test_the_demo_lacks_nothing_but_images(capsys: pytest.CaptureFixture[str]) -> None:
    write_params(SMOKE)
    good, told = found(capsys)
    assert good
    assert told["encode.encoder"].startswith("ok minilm, in ")
    assert told["dataset phantom-isic2018"].startswith("missing no data/raw/phantom-isic2018")
    Path("data/raw/phantom-isic2018").mkdir(parents=True)
    assert found(capsys)[1]["dataset phantom-isic2018"].startswith("ok")


def test_missing_weights_are_told_with_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(profile_text(PROJECT / "config/paper.yaml"), encoding="utf-8")
    good, told = found(capsys)
    assert good
    for key, place in {
        "encode.encoder": "microsoft/BiomedCLIP",
        "latents.path": "stabilityai/sd-vae-ft-mse",
        "evaluate.features_path": "torch-fidelity",
        "evaluate.prc_features_path": "download.pytorch.org",
        "downstream.classifier.maxvit.weights": "timm/maxvit",
    }.items():
        assert told[key].startswith("missing")
        assert place in told[key]
    Path("weights/sd-vae").mkdir(parents=True)
    assert found(capsys)[1]["latents.path"] == "ok weights/sd-vae"


def test_what_is_broken_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text("seed: many", encoding="utf-8")
    good, told = found(capsys)
    assert (good, told["settings"][:6]) == (False, "BROKEN")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_params(SMOKE, compute__device="cuda")
    good, told = found(capsys)
    assert (good, told["compute.device"]) == (False, "BROKEN cuda is not there; set it to auto")
    write_params(SMOKE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**8}))
    good, told = found(capsys)
    assert (good, told["disk"][:17]) == (False, "BROKEN 0.1 GB fre")


def test_a_library_that_does_not_fit_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.version
    monkeypatch.setattr(module, "version", lambda name: "2.0" if name == "torch" else real(name))
    good, told = found(capsys)
    assert (good, told["torch"]) == (
        False,
        "BROKEN 2.0; expected >=2.11; install it: pip install 'torch>=2.11'",
    )
