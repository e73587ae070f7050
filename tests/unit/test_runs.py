"""Runs of a method with further seeds, or on a share of the images: names, training, samples, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from downstream_toy import with_downstream
from toy import BANK, LATENTS, PREPARED, settings, write_latents, write_own

import vap.generators.train as training
import vap.sampling.sample as sampling
from vap import cli
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.datasets.share import share_of, subset_rows
from vap.generators.base import load_method
from vap.params import Params, parse
from vap.prompts.bank import PromptBank
from vap.prompts.draws import draws_of
from vap.runs import Run, method_of, run_of, runs_of
from vap.training.data import LatentData, TrainingData


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_own()


def pixels(**changes: Any) -> Params:
    """Of a method on pixels, which draws without an autoencoder."""
    return settings(
        methods=["cbdm"], learns_from={"images": ["cbdm"]}, sample__n=6, sample__steps=2, **changes
    )


def shares(plain: Params, **changes: Any) -> Params:
    """With generators for 30 and 50 % of the images, of all methods."""
    lists = {"ratios": ["30", "50", "100"], "generator_ratios": ["30", "50"], "sources": plain.methods}
    return with_downstream(plain, {**lists, **changes})


# ── names ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_runs_are_those_that_params_yaml_names() -> None:
    assert list(runs_of(settings())) == ["uvit", "vap", "vap_without_pcm"]
    params = settings(seeds=[3, 12])
    runs = [f"{method}{more}" for method in ("uvit", "vap") for more in ("", "_seed3", "_seed12")]
    assert list(runs_of(params)) == [*runs, "vap_without_pcm"]
    assert (params.rows, params.seeds_of("vap")) == (["uvit", "vap"], [3, 12])
    assert run_of(params, "vap_seed12") == Run("vap_seed12", "vap", 12)
    assert run_of(params, "vap") == Run("vap", "vap", 0)
    assert params.kind("vap_seed12") == "prompts"


def test_a_generator_for_each_ratio() -> None:
    params = shares(settings())
    assert list(runs_of(params))[3:] == [f"{m}_data{r}" for m in ("uvit", "vap") for r in (30, 50)]
    assert run_of(params, "vap_data30") == Run("vap_data30", "vap", 0, 30)


def test_a_runs_method_is_in_its_name() -> None:
    assert method_of("vap_seed12") == method_of("vap_data1") == "vap"
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
        known = "uvit, uvit_seed1, vap, vap_seed1, vap_without_pcm"
        assert f"method: found {name!r}; expected one of {known};" in line


LISTS = {"latents": ["uvit"], "prompts": ["vap", "vap_seed1"]}


@pytest.mark.parametrize(
    ("methods", "learns_from", "words"),
    [
        (["uvit", "vap_seed1"], LISTS, "methods names 'vap_seed1' without 'vap' itself"),
        (["uvit", "vap", "vap_seed0"], LISTS, "'vap_seed0': N of METHOD_seedN is another than seed"),
        (["uvit", "vap", "vap_seed01"], LISTS, "'vap_seed01': N of METHOD_seedN is another than seed"),
        (["uvit", "vap", "vap_seed1", "vap_seed1"], LISTS, "methods names one twice"),
        (["uvit", "vap", "gan_seed1"], LISTS, "methods names 'gan', which has no entry under method"),
        (["uvit", "vap", "vap_data10"], LISTS, "'vap_data10', a run for Table 3: its place is learns_from"),
        (["uvit", "vap"], LISTS, "learns_from must name each of methods once"),
        (
            ["uvit", "vap", "vap_seed1"],
            {"latents": ["uvit", "vap_seed1"], "prompts": ["vap"]},
            "learns_from names 'vap_seed1' elsewhere than 'vap'",
        ),
    ],
)
def test_a_wrong_list_is_one_line(methods: list[str], learns_from: dict[str, list[str]], words: str) -> None:
    with pytest.raises(VapError) as caught:
        settings(methods=methods, learns_from={kind: list(names) for kind, names in learns_from.items()})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"generator_ratios": ["20"]}, "generator_ratios names '20': it holds some of ratios, all below 100"),
        ({"generator_ratios": ["30", "100"]}, "generator_ratios names '100'"),
        ({"generator_ratios": "30"}, "downstream.generator_ratios: found '30'"),
    ],
)
def test_ratios_of_generators_that_do_not_fit_are_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(VapError) as caught:
        shares(settings(), **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_generator_of_a_share_is_asked_for_by_name() -> None:
    data = shares(settings()).model_dump()
    data["learns_from"]["prompts"].remove("vap_data30")
    with pytest.raises(VapError, match=r"and, for downstream\.generator_ratios, \['uvit_data30', "):
        parse(data)


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


def data_of(method: str, percent: int | None) -> TrainingData:
    only = None if percent is None else share_of(ArrowFile(PREPARED, "prepared"), percent, 0)
    return load_method(method, settings().method).data("own", 1, only)


@pytest.mark.parametrize("method", ["uvit", "vap", "cbdm", "stylegan"])
def test_a_share_is_that_of_the_classifiers_and_nothing_else_is_drawn(method: str) -> None:
    prepared = ArrowFile(PREPARED, "prepared")
    ids = prepared.column("id")
    wanted = [ids[row] for row in subset_rows(prepared, 30, 0)]
    assert len(wanted) == 4  # 6 and 5 images: 1.8 and 1.5, halves up
    data = data_of(method, 30)
    assert [data.file.column("id")[row] for row in data.rows] == wanted
    labels = prepared.column("label")
    assert data.counts.tolist() == [
        sum(labels[ids.index(image)] == label for image in wanted) for label in data.classes
    ]
    asked: list[int] = []
    read = data.file.array if isinstance(data, LatentData) else data.file.value

    def told(column: str, row: int) -> Any:
        asked.append(row)
        return read(column, row)

    data.file.array = data.file.value = told  # type: ignore[method-assign]
    for step in range(5):
        data.batch(step, 0, 4, 0.0, 1000)
    assert {data.file.column("id")[row] for row in asked} == set(wanted)
    if data.bank is not None:
        assert data.prompts.tolist() == [data.bank.row_of[image] for image in wanted]


def test_all_images_by_name_train_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = training.run(settings(), "own", "vap")
    monkeypatch.setattr(training, "share_of", lambda file, _, seed: share_of(file, 100, seed))
    run = training.run(shares(settings()), "own", "vap_data50")
    for file in ("model.safetensors", "train.csv"):
        assert (run / file).read_bytes() == (own / file).read_bytes()


def test_latents_that_lack_an_image_of_the_share_are_one_line() -> None:
    write_latents(LATENTS, train=3)
    with pytest.raises(VapError, match=rf"{LATENTS}: found \d of the 4 training images of a share"):
        data_of("uvit", 30)


def test_a_run_on_a_share_says_so() -> None:
    run = training.run(shares(settings()), "own", "vap_data30")
    config = json.loads((run / "config.json").read_text())
    assert (config["method"], config["run"], config["percent"]) == ("vap", "vap_data30", 30)
    assert config["class_counts"] == [2, 2]
    record = config["provenance"]
    assert record["params"]["percent"] == 30
    assert record["params"]["seed"] == 0
    own = json.loads((training.run(settings(), "own", "vap") / "config.json").read_text())
    assert "percent" not in own.keys() | own["provenance"]["params"].keys()


def test_every_artefact_draws_the_same_share() -> None:
    files = [ArrowFile(PREPARED, "prepared"), ArrowFile(LATENTS, "latents"), PromptBank(BANK).file]
    assert [share_of(file, 30, 0) for file in files] == [share_of(files[0], 30, 0)] * 3
    assert share_of(files[0], None, 0) is None


def test_samples_of_a_share_have_its_classes() -> None:
    rows = [f"i{i:02d}" for i in range(11)]
    params = shares(pixels(sample__labels="empirical"))
    training.run(params, "own", "cbdm_data50")
    file = ArrowFile(sampling.run(params, "own", "cbdm_data50", "seen"), "samples")
    share = share_of(ArrowFile(PREPARED, "prepared"), 50, 0)
    assert set(share) < set(rows)
    assert sorted(share.values()) == ["mole"] * 3 + ["scar"] * 3  # 5 scars: 2.5, halves up
    assert sorted(file.column("label")) == ["mole"] * 3 + ["scar"] * 3


def test_descriptions_of_a_share_are_those_of_its_images() -> None:
    bank, share = PromptBank(BANK), share_of(ArrowFile(PREPARED, "prepared"), 30, 0)
    draws = draws_of("seen", bank, ["mole", "scar"], share=share)
    rng = np.random.default_rng(0)
    for label in ("mole", "scar"):
        wanted = {bank.row_of[image] for image, own in share.items() if own == label}
        found = {draws.draw(label, rng) for _ in range(60)}
        assert found == wanted < set(bank.rows(label).tolist())
        assert {draws.text(row) for row in found} == {bank.text(row) for row in wanted}
    with pytest.raises(VapError, match="condition shuffled: found a model of a share"):
        draws_of("shuffled", bank, ["mole", "scar"], share=share)
    with pytest.raises(VapError, match="no description of an image of class 'wart' of the share"):
        draws.draw("wart", rng)
