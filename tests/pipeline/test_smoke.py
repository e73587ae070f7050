"""The whole pipeline once, with the real stages, on a few images; then parts of it again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from projects import CHECKOUT, Project, lay_out

DATASET = "phantom-isic2018"
TINY = {
    "datasets": [DATASET],
    "prepare.max_train": 24,
    "prepare.max_test": 4,
    "latents.train.steps": 4,
    "method.uvit.train.steps": 4,
    "method.vap.train.steps": 4,
    "sample.n": 12,
    "sample.steps": 2,
    "evaluate.n": 12,
    "figure.columns": 4,
}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A clean checkout where `snakemake` has been run on config/smoke.yaml, made smaller still."""
    project = lay_out(tmp_path_factory.mktemp("smoke"))
    project.env["PYTHONDONTWRITEBYTECODE"] = ""
    (project.root / "params.yaml").write_bytes((CHECKOUT / "config/smoke.yaml").read_bytes())
    project.edit_params(TINY)
    project.snakemake().ok()
    return project


def provenance(path: Path) -> dict[str, Any]:
    """What an artefact says of its making."""
    if path.suffix == ".json":
        record = json.loads(path.read_text(encoding="utf-8"))["provenance"]
    elif path.suffix == ".parquet":
        record = json.loads(pq.read_schema(path).metadata[b"vap.provenance"])
    else:
        with pa.memory_map(str(path)) as source:
            record = json.loads(pa.ipc.open_file(source).schema.metadata[b"vap.provenance"])
    assert isinstance(record, dict)
    return record


def test_the_table_has_a_row_for_each_method(smoke: Project) -> None:
    with (smoke.root / "results/tables/table1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["method"]) for row in rows] == [(DATASET, "uvit"), (DATASET, "vap")]
    assert (smoke.root / f"results/figures/{DATASET}.png").stat().st_size > 1000


def test_nothing_but_the_record_is_new_to_git(smoke: Project) -> None:
    changed = set(smoke.git("status", "--porcelain").splitlines())
    assert changed <= {" M params.yaml", "?? dvc.lock", " M dvc.lock"}, changed
    left = [
        path for path in (smoke.root / "work").rglob("*.*") if path.parent.name != "features"
    ]  # kept to be reused
    assert not left, "unfinished state was left behind"


def test_every_artefact_says_what_made_it(smoke: Project) -> None:
    """Pictures, tables and weights stand beside a file that says it."""
    made = {
        f"data/prepared/{DATASET}.arrow": "prepare",
        f"data/captions/{DATASET}.parquet": "caption",
        f"data/prompts/{DATASET}.arrow": "encode",
        f"data/latents/{DATASET}.arrow": "latents",
    }
    for method in ("uvit", "vap"):
        made[f"results/models/{DATASET}/{method}/config.json"] = "train"
        made[f"results/samples/{DATASET}/{method}-seen.arrow"] = "sample"
        made[f"results/metrics/{DATASET}/{method}-seen.json"] = "evaluate"
    assert {path for path in smoke.outs() if path.endswith((".arrow", ".parquet"))} <= made.keys()
    made[f"results/metrics/{DATASET}/real.json"] = "floor"
    lock = smoke.record()["stages"]
    for path, stage in made.items():
        record = provenance(smoke.root / path)
        assert record["stage"] == stage
        assert {"item", "params", "inputs", "code", "libraries"} <= record.keys()
        (name,) = (n for n, entry in lock.items() if path in {out["path"] for out in entry["outs"]})
        (plan,) = (dep["path"] for dep in lock[name]["deps"] if dep["path"].startswith("data/plan/"))
        settings = json.loads((smoke.root / plan).read_text(encoding="utf-8"))["settings"]
        assert settings.get("seed") == record["params"].get("seed")
        assert str(smoke.root) not in json.dumps(record), "a path of this machine"


def test_a_further_seed_is_a_run_of_its_own(smoke: Project, tmp_path: Path) -> None:
    project = smoke.copy(tmp_path)
    before, name = project.outs(), "uvit_seed1-seen"
    methods = ["uvit", "uvit_seed1", "vap"]
    lists = {"images": [], "latents": methods[:2], "prompts": ["vap"]}
    project.edit_params({"methods": methods, "learns_from": lists})
    project.dvc("repro", f"evaluate@{DATASET}-uvit_seed1").ok()
    made = project.outs()
    assert {path: made[path] for path in before if "/plan/" not in path}.items() <= before.items()
    new = {path for path in made.keys() - before.keys() if "/plan/" not in path}
    assert {Path(path).parent.name + "/" + Path(path).name for path in new} == {
        *(f"uvit_seed1/{file}" for file in ("config.json", "model.safetensors", "train.csv")),
        *(f"{DATASET}/{name}.{suffix}" for suffix in ("arrow", "png", "json")),
    }
    for path, seed in (
        (f"results/samples/{DATASET}/{name}.arrow", 1),
        (f"results/metrics/{DATASET}/{name}.json", 0),
    ):
        record = provenance(project.root / path)
        assert record["item"] == [DATASET, "uvit_seed1", "seen"]
        assert record["params"]["seed"] == seed  # what is measured with is drawn by `seed`


@pytest.mark.parametrize("stage", [f"train-prompts@{DATASET}-vap", f"sample-latents@{DATASET}-uvit"])
def test_the_same_bytes_again(smoke: Project, stage: str) -> None:
    before = smoke.record()["stages"][stage]
    files = [smoke.root / out["path"] for out in before["outs"]]
    times = [file.stat().st_mtime_ns for file in files]
    smoke.dvc("repro", "--force", "--single-item", stage).ok()
    assert all(file.stat().st_mtime_ns > time for file, time in zip(files, times, strict=True))
    assert smoke.record()["stages"][stage] == before
