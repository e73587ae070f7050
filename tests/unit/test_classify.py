"""The classify stage: what it writes, what it depends on, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from downstream_toy import CLASSES, PREPARED, SAMPLES, params, write_prepared, write_samples

from vap.common.artifacts import file_sha256
from vap.common.errors import VapError
from vap.downstream import classify as stage
from vap.downstream import fit as fitting
from vap.downstream.places import scores_path

ALONE, PLUS = ("own", "net", "50", "none"), ("own", "net", "50", "vap")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_prepared()
    write_samples()


def run(item: tuple[str, str, str, str], **changes: Any) -> dict[str, Any]:
    path = stage.run(params(**changes), *item)
    assert path == scores_path(*item)
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_what_is_written_of_real_images_alone() -> None:
    found = run(ALONE, network__steps=25)
    assert (found["dataset"], found["classifier"], found["ratio"], found["source"]) == (
        "own",
        "net",
        50,
        "none",
    )
    assert (found["n_real"], found["n_synthetic"], found["n_test"]) == (12, 0, 10)
    assert found["counts"] == {
        "real": {"dark": 6, "light": 6},
        "synthetic": {"dark": 0, "light": 0},
        "test": {"dark": 5, "light": 5},
    }
    assert (found["mauc"], found["f1"], found["balanced_accuracy"]) == (1, 1, 1)
    assert (found["absent"], found["modality"], found["seed"]) == ([], "dermoscopy", 0)
    record = found["provenance"]
    assert record["item"] == list(ALONE)
    assert record["inputs"].keys() == {"prepared"}
    assert found["generator_data"] is None
    assert (
        not {"synthetic", "real_share", "generator_data", "sources"} & record["params"]["downstream"].keys()
    )
    assert not list(Path("work/classify").iterdir())


def test_synthetic_images_are_added_to_the_same_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[Any] = []
    original = stage.ImagePool
    monkeypatch.setattr(stage, "ImagePool", lambda *a, **k: pools.append(original(*a, **k)) or pools[-1])
    found, alone = run(PLUS), run(ALONE)
    assert (found["n_real"], found["n_synthetic"], found["generator_data"]) == (12, 9, "full")
    assert found["counts"]["synthetic"] == {"dark": 6, "light": 3}
    assert found["counts"]["real"] == alone["counts"]["real"]
    assert found["provenance"]["inputs"]["samples"]["sha256"] == file_sha256(SAMPLES)
    assert pools[0]._places[:12] != pools[2]._places[:12]  # two readers of the file ...
    rows = [[row for _, row in pools[i]._places[:12]] for i in (0, 2)]
    assert rows[0] == rows[1]  # ... and the same rows of it
    assert "samples" not in alone["provenance"]["inputs"]


def with_shares(**changes: Any) -> dict[str, Any]:
    return {"generator_ratios": ["1", "50"], **changes}


def test_a_generator_of_the_share_is_a_source_of_its_own() -> None:
    of_share = SAMPLES.with_name("vap_data50-seen.arrow")
    SAMPLES.rename(of_share)
    found = run(("own", "net", "50", "vap_data50"), **with_shares())
    assert (found["source"], found["generator_data"]) == ("vap_data50", "ratio")
    assert (found["n_real"], found["n_synthetic"]) == (12, 9)
    assert found["provenance"]["inputs"]["samples"]["sha256"] == file_sha256(of_share)


def test_which_generators_there_are_is_no_part_of_a_result() -> None:
    assert run(PLUS, **with_shares()) == run(PLUS)


def test_real_images_alone_need_no_samples() -> None:
    SAMPLES.unlink()
    run(ALONE)
    with pytest.raises(VapError, match=rf"{SAMPLES}: found no such file"):
        run(PLUS)


def test_the_same_bytes_twice_and_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_EVERY", 2)
    path = scores_path(*PLUS)
    run(PLUS)
    first = path.read_bytes()
    path.unlink()
    run(PLUS)
    assert path.read_bytes() == first
    path.unlink()

    original, seen = fitting.step_generator, []

    def dies(seed: int, step: int) -> torch.Generator:
        seen.append(step)
        if seen == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return original(seed, step)

    monkeypatch.setattr(fitting, "step_generator", dies)
    with pytest.raises(KeyboardInterrupt):
        run(PLUS)
    assert not path.exists()
    assert len([name for name in os.listdir("work/classify") if not name.endswith(".lock")]) == 1
    run(PLUS)
    assert seen == [0, 1, 2, 3, 2, 3, 4, 5]
    assert path.read_bytes() == first


def test_a_class_without_a_test_image_is_named() -> None:
    write_prepared(classes=[*CLASSES, "blue"])
    found = run(ALONE)
    assert found["absent"] == ["blue"]
    assert found["auc"].keys() == set(CLASSES)
    assert found["counts"]["test"]["blue"] == 0
    assert all(0 <= found[name] <= 1 for name in ("mauc", "mauc_low", "mauc_high", "f1", "f1_low", "f1_high"))


def test_other_classifiers_and_sources_are_no_part_of_a_result() -> None:
    alone = run(ALONE)
    again = run(ALONE, ratios=["50"], sources=[], synthetic=3, real_share=0.5)
    assert again == alone
    assert run(PLUS, real_share=0.5)["provenance"] != run(PLUS)["provenance"]


@pytest.mark.parametrize(
    ("item", "changes", "words"),
    [
        (("own", "net2", "50", "none"), {}, "classifier: found 'net2'; expected one of net;"),
        (("own", "net", "5", "none"), {}, "ratio: found '5'; expected one of 1, 50, 100;"),
        (("own", "net", "50", "uvit"), {}, "source: found 'uvit'; expected one of none, vap;"),
        (("own", "net", "50", "vap_data50"), {}, "source: found 'vap_data50'; expected one of none, vap;"),
        (
            ("own", "net", "50", "vap_data1"),
            {"generator_ratios": ["1", "50"]},
            "source: found 'vap_data1'; expected one of none, vap, vap_data50;",
        ),
        (PLUS, {"sources": ["gan"]}, "downstream.sources: found 'gan'; expected some of methods: "),
        (PLUS, {"synthetic": 20}, f"{SAMPLES}: found 9 images; expected 20 or more"),
        (ALONE, {"test": "val"}, f"{PREPARED}: found no image of split val"),
        (ALONE, {"network__weights": "absent.pth"}, "absent.pth: found no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(item: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(VapError) as caught:
        run(item, **changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratios": [1]}, "downstream.ratios.0: found 1"),
        ({"ratios": ["0.5"]}, "downstream.ratios.0: found '0.5'"),
        ({"ratios": ["101"]}, "downstream.ratios.0: found '101'"),
        ({"ratios": ["1", "1"]}, "downstream.ratios names one twice"),
        ({"sources": ["none"]}, "'none' is the name of real images alone"),
        ({"classifiers": ["other"]}, "classifiers names 'other', which has no entry under classifier"),
        ({"real_share": 1.0}, "downstream.real_share: found 1.0"),
    ],
)
def test_a_wrong_setting_is_one_line(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(VapError) as caught:
        params(**changes)
    assert words in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["densenet121", "maxvit_rmlp_pico_rw_256"])
def test_the_papers_networks_go_through_and_give_the_same_bytes(model: str) -> None:
    texts = []
    for _ in range(2):
        run(PLUS, network__model=model, network__image_size=64, network__steps=3)
        texts.append(scores_path(*PLUS).read_bytes())
    assert texts[0] == texts[1]
