"""docs/architecture.md: every recipe is followed as it is written, in a copy of the project."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from projects import CHECKOUT, Project, lay_out

DATASET = "phantom-isic2018"
TINY = {
    "datasets": [DATASET],
    "prepare.max_train": 24,
    "prepare.max_test": 4,
    "method.uvit.train.steps": 4,
    "method.vap.train.steps": 4,
    "sample.n": 12,
    "sample.steps": 2,
    "evaluate.n": 12,
    "compute.warm_start": False,
}


def section(title: str) -> str:
    text = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def blocks(title: str, language: str) -> list[str]:
    """The fenced blocks of a section."""
    return re.findall(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)


def laid_over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        base[key] = laid_over(base.get(key, {}), value) if isinstance(value, dict) and value else value
    return base


def follow(project: Project, title: str) -> None:
    """Put the section's YAML into params.yaml, then run its commands."""
    params = project.params()
    for text in blocks(title, "yaml"):
        params = laid_over(params, yaml.safe_load(text))
    (project.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for text in blocks(title, "sh"):
        for line in text.splitlines():
            project.run("bash", "-c", line).ok()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clean copy with the smoke profile, made smaller still, its data prepared."""
    project = lay_out(tmp_path_factory.mktemp("architecture"))
    project.run("vap", "profile", "smoke").ok()
    project.edit_params(TINY)
    project.snakemake(f"data/latents/{DATASET}.arrow", f"data/prompts/{DATASET}.arrow").ok()
    return project


@pytest.fixture
def project(base: Project, tmp_path: Path) -> Project:
    return base.copy(tmp_path)


def test_a_method_is_one_module_and_one_entry(project: Project) -> None:
    before = (project.root / "dvc.yaml").read_bytes()
    (module,) = blocks("Adding a method", "python")
    (project.root / "vap/generators/plain.py").write_text(module, encoding="utf-8")
    follow(project, "Adding a method")
    assert (project.root / f"results/metrics/{DATASET}/plain-seen.json").is_file()
    assert (project.root / "dvc.yaml").read_bytes() == before
    stages = project.record()["stages"]
    assert {f"{verb}@{DATASET}-plain" for verb in ("train-latents", "sample-latents", "evaluate")} <= set(
        stages
    )
    assert "Nothing to be done" in project.snakemake(f"results/metrics/{DATASET}/plain-seen.json").output
    assert project.dvc("repro", f"evaluate@{DATASET}-plain").ok().output.count("Running stage") == 0


def test_a_dataset_is_an_entry(project: Project) -> None:
    rng = np.random.default_rng(0)
    for label in ("naevus", "melanoma"):
        folder = project.root / "data/raw/own" / label
        folder.mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}-{i}.png")
    follow(project, "Adding a dataset")
    assert (project.root / "data/prepared/own.arrow").is_file()


def test_a_text_encoder_is_a_setting(project: Project) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    from vap.prompts.places import locate

    folder = project.root / "weights/my-encoder"
    tokenizer = AutoTokenizer.from_pretrained(locate("minilm").folder)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    before = (project.root / f"data/prompts/{DATASET}.arrow").read_bytes()
    follow(project, "Adding a text encoder")
    project.snakemake(f"data/prompts/{DATASET}.arrow").ok()
    assert (project.root / f"data/prompts/{DATASET}.arrow").read_bytes() != before


def test_a_modality_is_a_file_of_questions(project: Project) -> None:
    (questions,) = blocks("Adding a modality", "yaml")
    (project.root / "vap/captioning/questions/retina.yaml").write_text(questions, encoding="utf-8")
    project.edit_params({f"dataset.{DATASET}.modality": "retina"})
    assert "expected a server that knows it" in project.run("vap", "check").output
    project.edit_params({"caption.server": "http://127.0.0.1:9/v1"})
    assert "params.yaml is in order" in project.run("vap", "check").ok().output
    project.edit_params({f"dataset.{DATASET}.modality": "retinas"})
    assert "retina" in project.run("vap", "check").output


def test_a_metric_is_an_entry_and_a_name(project: Project) -> None:
    (entry,), (name,) = (blocks("Adding a metric", f"text {what}") for what in ("entry", "names"))
    for path, before, line in (
        ("vap/metrics/fidelity.py", '        "prd_f1_8": prd[1],\n', entry),
        ("vap/results/table.py", '    "prd_f1_8",\n', name),
    ):
        text = (project.root / path).read_text(encoding="utf-8")
        assert text.count(before) == 1
        (project.root / path).write_text(text.replace(before, before + line), encoding="utf-8")
    project.snakemake("results/tables/table1.csv").ok()
    with (project.root / "results/tables/table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(-1 <= float(row["similarity"]) <= 1 for row in rows)


def test_every_path_of_the_page_is_there() -> None:
    text = (CHECKOUT / "docs/architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:vap|docs|tests)/[\w./-]*\w)`", text))
    ours = {"vap/generators/plain.py", "vap/captioning/questions/NAME.yaml", "vap/generators/NAME.py"}
    assert len(paths) > 10
    assert {path for path in paths - ours if "NAME" not in path and not (CHECKOUT / path).exists()} == set()
