"""Runs of a method with further seeds: their names, what they train and draw, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import PROJECT, settings, write_latents, write_prepared

import vap.stages.sample as sampling
import vap.stages.train as training
from vap import cli
from vap.artifacts import ArrowFile, file_sha256
from vap.errors import VapError
from vap.params import Params
from vap.runs import Run, method_of, run_of, runs_of

LATENTS, PREPARED = Path("data/latents/own.arrow"), Path("data/prepared/own.arrow")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_latents(LATENTS)
    write_prepared(PREPARED)


def pixels(**changes: Any) -> Params:
    """Of a method on pixels, which draws without an autoencoder."""
    return settings(
        methods=["cbdm"], learns_from={"images": ["cbdm"]}, sample__n=6, sample__steps=2, **changes
    )


# ── names ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_runs_are_the_methods_and_each_with_each_seed() -> None:
    plain = ["uvit", "vap", "vap_without_pcm"]
    assert list(runs_of(settings())) == plain
    params = settings(seeds=[3, 12])
    runs = [f"{method}_seed{seed}" for method in ("uvit", "vap") for seed in (3, 12)]
    assert list(runs_of(params)) == [*plain, *runs]
    assert run_of(params, "vap_seed12") == Run("vap_seed12", "vap", 12, "seed")
    assert run_of(params, "vap_seed12").item == "vap-12"
    assert run_of(params, "vap") == Run("vap", "vap", 0)
    assert run_of(params, "vap").item == "vap"


def test_a_runs_method_is_in_its_name() -> None:
    assert method_of("vap_seed12") == "vap"
    assert {method_of(name) for name in ("vap", "vap_without_pcm")} == {"vap", "vap_without_pcm"}


@pytest.mark.parametrize("name", ["uvit_seed2", "uvit_seed", "vap_without_pcm_seed1", "dit_seed1", "gan"])
def test_other_names_are_one_line_with_those_that_are_known(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(settings(seeds=[1]).model_dump()), encoding="utf-8")
    for verb in (["train"], ["sample", "seen"], ["evaluate", "seen"]):
        command = ["vap", verb[0], "own", name, *verb[1:]]
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises(SystemExit):
            cli.main()
        (line,) = capsys.readouterr().err.splitlines()
        known = "uvit, vap, vap_without_pcm, uvit_seed1, vap_seed1"
        assert f"method: found {name!r}; expected one of {known};" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "seeds must be further ones, each once: [1, 1] beside seed 0"),
        ({"seeds": [2, 0]}, "seeds must be further ones, each once: [2, 0] beside seed 0"),
        ({"seeds": [-1]}, "seeds.0: found -1"),
        ({"seeds": ["1"]}, "seeds.0: found '1'"),
        ({"seeds": 1}, "seeds: found 1"),
        ({"methods": ["uvit", "vap_seed1"]}, "methods names 'vap_seed1', which would be the name of a run"),
    ],
)
def test_a_wrong_list_is_one_line(changes: dict[str, Any], words: str) -> None:
    if "methods" in changes:
        entry = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))["method"]["vap"]
        changes |= {
            "learns_from": {"latents": ["uvit"], "prompts": ["vap_seed1"]},
            "method__vap_seed1": entry,
        }
    with pytest.raises(VapError) as caught:
        settings(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# ── training and samples ────────────────────────────────────────────────────────────────────────────


def test_a_run_has_the_weights_of_a_training_with_its_seed() -> None:
    own = training.run(settings(), "own", "uvit")
    run = training.run(settings(seeds=[5]), "own", "uvit_seed5")
    assert run == Path("results/models/own/uvit_seed5")
    weights, config = file_sha256(run / "model.safetensors"), json.loads((run / "config.json").read_text())
    curves = (run / "train.csv").read_bytes()
    assert weights != file_sha256(own / "model.safetensors")
    assert (config["method"], config["run"], config["provenance"]["item"]) == (
        "uvit",
        "uvit_seed5",
        ["own", "uvit_seed5"],
    )
    assert config["provenance"]["params"]["seed"] == 5
    assert "run" not in json.loads((own / "config.json").read_text())
    training.run(settings(seed=5), "own", "uvit")
    assert file_sha256(own / "model.safetensors") == weights
    assert (own / "train.csv").read_bytes() == curves


def test_a_runs_samples_are_those_of_its_seed() -> None:
    training.run(pixels(seeds=[5]), "own", "cbdm_seed5")
    run = sampling.run(pixels(seeds=[5]), "own", "cbdm_seed5", "seen")
    assert run == Path("results/samples/own/cbdm_seed5-seen.arrow")
    assert run.with_suffix(".png").is_file()
    training.run(pixels(seed=5), "own", "cbdm")
    own = sampling.run(pixels(seed=5), "own", "cbdm", "seen")
    found = [ArrowFile(path, "samples") for path in (run, own)]
    for column in ("label", "image"):
        assert found[0].column(column) == found[1].column(column)
    assert found[0].metadata["provenance"]["params"]["seed"] == 5
    other = sampling.run(pixels(), "own", "cbdm", "seen")  # the same weights, another noise
    assert ArrowFile(other, "samples").column("image") != found[0].column("image")
