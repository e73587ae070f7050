"""`vap explain`: every record and file behind a cell, what has changed, and what is refused."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from downstream_toy import with_downstream
from toy import PROJECT, settings
from typer.testing import CliRunner

from vap.captioning.questions import questions_file
from vap.cli import app
from vap.common.artifacts import SCHEMAS, Kind, build_arrow, canonical, file_sha256, provenance, write_json
from vap.common.errors import VapError
from vap.common.places import floor_path, metrics_path
from vap.downstream.places import generator_data_of
from vap.generators import train
from vap.params import Params
from vap.provenance import explain as explaining
from vap.provenance.explain import ABSENT, CHANGED, MATCHES, Found, explain
from vap.results import table, table2, table3
from vap.sampling import sample

TABLE1, TABLE2, TABLE3 = (Path(f"results/tables/table{i}.csv") for i in (1, 2, 3))
RAW = Path("data/raw/own/phantom.yaml")
PREPARED, LATENTS = Path("data/prepared/own.arrow"), Path("data/latents/own.arrow")
CAPTIONS, BANK = Path("data/captions/own.parquet"), Path("data/prompts/own.arrow")
MODEL, DECODER = Path("results/models/own/vap"), Path("data/autoencoders/own")
SAMPLES, METRICS = Path("results/samples/own/vap-seen.arrow"), Path("results/metrics/own/vap-seen.json")
ABLATED = Path("results/ablation/own/vap-unseen.json")
FLOOR = floor_path("own")
SCORES = {**dict.fromkeys(table.NUMBERS, 0.125), "fid": 12.3456, "density": None}
SETTINGS = {"evaluate": {"features": "efficientnet-lite0", "prc_features": None}}


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Artefacts of one row of every table, each with the record that its stage would write."""
    monkeypatch.chdir(tmp_path)
    RAW.parent.mkdir(parents=True)
    RAW.write_text("classes: {}\n")
    write_prepared()
    questions = {"prepared": PREPARED, "questions": questions_file("dermoscopy")}
    asked = {"seed": 0, "caption": {"model": "describer-x"}, "by": "measured"}
    made = record("caption", ["own"], questions, asked, ["vap.captioning.describer_server"])
    made["inputs"]["questions"]["path"] = "dermoscopy.yaml"
    CAPTIONS.parent.mkdir()
    empty = pa.table({"id": pa.array([], pa.string())})
    pq.write_table(empty.replace_schema_metadata({"vap.provenance": canonical(made)}), CAPTIONS)
    arrow(BANK, "bank", record("encode", ["own"], {"prepared": PREPARED, "captions": CAPTIONS}))
    arrow(LATENTS, "latents", record("latents", ["own"], {"prepared": PREPARED}))
    write_json(DECODER / "config.json", {})
    (DECODER / "diffusion_pytorch_model.safetensors").write_bytes(b"decoder")
    inputs = {"latents": LATENTS, "prompts": BANK}
    made = record("train", ["own", "vap"], inputs, modules=["vap.generators.vap.method"])
    write_json(MODEL / "config.json", {"provenance": made})
    (MODEL / "model.safetensors").write_bytes(b"weights")
    inputs = {
        "config": MODEL / "config.json",
        "model": MODEL / "model.safetensors",
        "autoencoder": DECODER / "diffusion_pytorch_model.safetensors",
        "prompts": BANK,
    }
    made = record("sample", ["own", "vap", "seen"], inputs, modules=["vap.generators.vap.method"])
    arrow(SAMPLES, "samples", made)
    write_metrics(METRICS, "seen")
    for method, condition in table2.plan(params().ablation):
        condition = "seen" if condition == table2.NO_DESCRIPTION else condition
        if (path := metrics_path("own", method, condition)) != METRICS:
            write_metrics(path, condition, method=method)
    made = record("floor", ["own"], {"prepared": PREPARED})
    halves = {"fid": 3.25, "n": 4}
    write_json(FLOOR, {"dataset": "own", "train_halves": None, "train_test": halves, "provenance": made})
    write_scores("none", {"prepared": PREPARED})
    write_scores("vap", {"prepared": PREPARED, "samples": SAMPLES})
    table.run(params())
    table2.run(params())
    table3.run(params())


def params(**changes: Any) -> Params:
    network = {"model": "test_resnet", "weights": None, "image_size": 32, "steps": 1, "batch_size": 2}
    plain = settings(methods=["vap"], learns_from={"prompts": ["vap"]}, **changes)
    lists = {"classifiers": ["net"], "ratios": ["1"], "sources": ["vap"]}
    return with_downstream(plain, {**lists, "classifier": {"net": {**network, "lr": 0.1}}})


def record(
    stage: str,
    item: list[str],
    inputs: dict[str, Path],
    params: dict[str, Any] | None = None,
    modules: list[str] | None = None,
) -> Found:
    return provenance(stage, item, params or {"seed": 0}, inputs, ["numpy"], modules or [])


def arrow(path: Path, kind: Kind, made: Found) -> None:
    rows = [{}] * 2
    build_arrow(path, kind, 2, lambda _: pa.RecordBatch.from_pylist(rows, schema=SCHEMAS[kind]), made)


def write_prepared(seed: int = 3) -> None:
    made = record("prepare", ["own"], {"spec": RAW}, {"seed": seed, "prepare": {"image_size": 64}})
    arrow(PREPARED, "prepared", {**made, "listing": "5" * 64})


def write_metrics(path: Path, condition: str, **changes: Any) -> None:
    inputs = {"samples": SAMPLES, "prepared": PREPARED}
    named = {"dataset": "own", "method": "vap", "condition": condition, "features": "x", "reference": "train"}
    named |= {"prc_features": "x"}
    made = record("evaluate", ["own", "vap", condition], inputs, {"seed": 7, **SETTINGS})
    data = {**named, "n": 8, "n_reference": 9, "seed": 7, **SCORES, **changes}
    write_json(path, {**data, "provenance": made})


def write_scores(source: str, inputs: dict[str, Path], ratio: int = 1) -> None:
    named = {"dataset": "own", "classifier": "net", "ratio": ratio, "source": source}
    named |= {"modality": "chest_xray", "generator_data": generator_data_of(source)}
    counts = {"n_real": 1, "n_synthetic": 0, "n_test": 5, "seed": 0, "absent": ["=DF", "<b>|"]}
    made = record("classify", ["own", "net", str(ratio), source], inputs)
    scores = dict.fromkeys(table3.SCORES, 0.25)
    write_json(
        Path(f"results/downstream/own/net-{ratio}-{source}.json"),
        {**named, **counts, **scores, "provenance": made},
    )


def states(found: Found) -> dict[str, set[str]]:
    """Path to the states that its readers find it in."""
    told: dict[str, set[str]] = {}
    for made in found["records"].values():
        for entry in made["inputs"].values():
            told.setdefault(entry["path"], set()).add(entry["state"])
    return told


def shown(*arguments: str) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["explain", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


# ── the chain ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("chain")
def test_every_record_down_to_the_raw_files() -> None:
    found = explain(TABLE1, "1", "fid")
    assert found["value"] == "12.346"
    assert found["from"] == {
        "path": str(METRICS),
        "sha256": file_sha256(METRICS),
        "key": "fid",
        "value": 12.3456,
        "state": MATCHES,
    }
    made = {made["stage"]: home for home, made in found["records"].items()}
    homes = [METRICS, SAMPLES, MODEL / "config.json", LATENTS, BANK, CAPTIONS, PREPARED]
    assert set(made.values()) == {str(home) for home in homes} == set(found["records"])
    told = states(found)
    assert all(state == {MATCHES} for state in told.values())
    assert {str(RAW), "dermoscopy.yaml", str(MODEL / "model.safetensors")} < set(told)
    assert all(made["code"]["now"] == made["code"]["recorded"] for made in found["records"].values())
    assert found["records"][str(METRICS)]["seed"] == 7
    assert found["records"][str(METRICS)]["params"] == SETTINGS
    assert found["records"][str(METRICS)]["models"] == {"features": "efficientnet-lite0"}
    assert found["records"][str(CAPTIONS)]["models"] == {"model": "describer-x", "server": "measured"}
    assert found["records"][str(PREPARED)]["listing"] == "5" * 64
    assert found["records"][str(SAMPLES)]["inputs"]["autoencoder"]["record"] == str(LATENTS)


@pytest.mark.usefixtures("chain")
def test_a_rebuilt_artefact_is_told_by_each_of_its_readers_and_no_other() -> None:
    write_prepared(seed=4)
    found = explain(TABLE1, "1", "fid")
    told = states(found)
    assert [path for path, state in told.items() if state == {CHANGED}] == [str(PREPARED)]
    readers = {m["stage"] for m in found["records"].values() if "prepared" in m["inputs"]}
    assert readers == {"evaluate", "caption", "encode", "latents"}
    printed = shown(str(TABLE1), "1", "fid")
    assert f"CHANGED since (now {file_sha256(PREPARED)[:12]})" in printed
    assert f"CHANGED since: {PREPARED}" in printed.splitlines()[-1]
    (MODEL / "model.safetensors").unlink()
    RAW.unlink()
    told = states(explain(TABLE1, "1", "fid"))
    assert {path for path, state in told.items() if state == {ABSENT}} == {
        str(MODEL / "model.safetensors"),
        str(RAW),
    }


@pytest.mark.usefixtures("chain")
def test_other_code_other_versions_and_an_old_table_are_told() -> None:
    data = json.loads(METRICS.read_text())
    data["fid"] = 12.3465
    data["provenance"]["code"] = "0" * 64
    data["provenance"]["libraries"] |= {"numpy": "0.1", "no-such-library": "1.0"}
    write_json(METRICS, data)
    found = explain(TABLE1, "1", "fid")
    assert found["from"]["state"] == CHANGED
    assert explain(TABLE1, "1", "recall")["from"]["state"] == MATCHES
    assert set(found["records"][str(METRICS)]["other_here"]) == {"numpy", "no-such-library"}
    assert not found["records"][str(SAMPLES)]["other_here"]
    printed = shown(str(TABLE1), "1", "fid")
    assert "code 000000000000 CHANGED since (now " in printed
    assert "no-such-library 1.0 (here none)" in printed
    last = printed.splitlines()[-1]
    assert last.endswith("code CHANGED since: evaluate; the table is older than its JSON")


@pytest.mark.usefixtures("chain")
def test_the_tree_tells_what_is_shared_once_and_json_is_the_same() -> None:
    printed = shown(str(TABLE1), "own,vap", "fid")
    assert printed.startswith(f"{TABLE1}, row 1 (own, vap): fid = 12.346\n")
    assert printed.count("made by prepare own, seed 3") == 1
    assert printed.count("made by prepare own: above") == 3
    assert printed.count("params prepare: image_size=64") == 1
    assert f"made by latents own, seed 0 (its record is in {LATENTS})" in printed
    assert printed.splitlines()[-1] == "7 records, 10 files; all as recorded"
    assert json.loads(shown(str(TABLE1), "1", "fid", "--json")) == explain(TABLE1, "1", "fid")


@pytest.mark.usefixtures("chain")
def test_a_model_that_went_on_from_its_own_weights_ends_the_chain() -> None:
    weights = MODEL / "model.safetensors"
    made = record("train", ["own", "vap"], {"latents": LATENTS, "start_from": weights})
    write_json(MODEL / "config.json", {"provenance": made})
    found = explain(TABLE1, "1", "fid")
    entry = found["records"][str(MODEL / "config.json")]["inputs"]["start_from"]
    assert (entry["state"], entry["record"]) == (MATCHES, str(MODEL / "config.json"))
    assert shown(str(TABLE1), "1", "fid").count("made by train own vap: above") == 2


# ── rows and columns ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("chain")
def test_rows_of_tables_2_and_3_have_their_own_files() -> None:
    assert explain(TABLE2, "own,vap,seen", "fid")["from"]["path"] == str(METRICS)
    assert explain(TABLE2, "own,vap,VAP-Diffusion,seen", "fid")["row"] == 1
    assert explain(TABLE2, "own,vap,unseen", "fid")["from"]["path"] == str(ABLATED)
    plain = params().ablation.plain
    assert explain(TABLE2, f"own,{plain},none", "fid")["from"]["path"] == str(
        metrics_path("own", plain, "seen")
    )
    real = explain(TABLE3, "own,net,1,real", "mauc")
    assert real["from"]["path"] == "results/downstream/own/net-1-none.json"
    assert set(real["records"]) == {real["from"]["path"], str(PREPARED)}
    both = explain(TABLE3, "own,net,1,real + vap", "mauc")
    assert both["from"]["path"] == "results/downstream/own/net-1-vap.json"
    assert str(SAMPLES) in both["records"]
    told = {name: explain(TABLE3, "2", name)["from"]["state"] for name in ("seeds", "images", "absent", "f1")}
    assert told == {"seeds": MATCHES, "images": MATCHES, "absent": MATCHES, "f1": None}


@pytest.mark.usefixtures("chain")
def test_a_generator_of_the_share_has_a_chain_of_its_own() -> None:
    model = MODEL.with_name("vap_data1")
    inputs = {"latents": LATENTS, "prompts": BANK, "prepared": PREPARED}
    made = record("train", ["own", "vap_data1"], inputs, modules=["vap.generators.vap.method"])
    write_json(model / "config.json", {"provenance": made})
    samples = SAMPLES.with_name("vap_data1-seen.arrow")
    inputs = {"config": model / "config.json", "prepared": PREPARED}
    arrow(samples, "samples", record("sample", ["own", "vap_data1", "seen"], inputs))
    write_scores("vap_data1", {"prepared": PREPARED, "samples": samples})
    for source in ("none", "vap"):
        write_scores(source, {"prepared": PREPARED}, ratio=100)
    table3.run(with_downstream(params(), {"ratios": ["1", "100"], "generator_ratios": ["1"]}))
    row = "own,net,1,real + vap (trained on the share)"
    found = explain(TABLE3, row, "mauc")
    assert found["from"]["path"] == "results/downstream/own/net-1-vap_data1.json"
    assert {str(samples), str(model / "config.json"), str(BANK)} < set(found["records"])
    assert not {str(SAMPLES), str(MODEL / "config.json")} & set(found["records"])
    assert found["records"][str(model / "config.json")]["code"]["now"] == made["code"]
    for column in ("images", "generator_data", "mauc"):
        assert explain(TABLE3, row, column)["from"]["state"] == MATCHES
    whole = "own,net,100,real + vap (trained on the share)"
    assert explain(TABLE3, whole, "mauc")["from"]["path"] == "results/downstream/own/net-100-vap.json"
    told = {name: explain(TABLE3, whole, name)["from"]["state"] for name in ("images", "generator_data")}
    assert told == {"images": None, "generator_data": None}


@pytest.mark.parametrize("content", ["", "dataset,method,fid\n"])
@pytest.mark.usefixtures("chain")
def test_a_table_without_rows_is_one_line(content: str) -> None:
    TABLE1.write_text(content)
    with pytest.raises(VapError, match=f"{TABLE1}: found no row below a header; .* make the table again"):
        explain(TABLE1, "1", "fid")


@pytest.mark.parametrize(
    ("path", "column", "stage"), [(FLOOR, "floor_fid", "floor"), (METRICS, "fid", "evaluate")]
)
@pytest.mark.usefixtures("chain")
def test_a_cut_file_is_told_with_its_stage(path: Path, column: str, stage: str) -> None:
    path.write_text(path.read_text()[:20])
    with pytest.raises(VapError, match=f"{path}: found no readable JSON .*; run the {stage} stage again"):
        explain(TABLE1, "1", column)


@pytest.mark.usefixtures("chain")
def test_the_floor_has_a_chain_of_its_own() -> None:
    for file in (TABLE1, TABLE2):
        found = explain(file, "1", "floor_fid")
        assert found["from"]["path"] == str(FLOOR)
        assert (found["from"]["key"], found["from"]["state"]) == ("train_test.fid", MATCHES)
        assert set(found["records"]) == {str(FLOOR), str(PREPARED)}


@pytest.mark.usefixtures("chain")
def test_a_mean_has_the_chains_of_all_its_runs() -> None:
    other = metrics_path("own", "vap_seed4", "seen")
    write_metrics(other, "seen", method="vap_seed4", fid=14.3456)
    table.run(params(seeds=[4]))
    found = explain(TABLE1, "own,vap", "fid")
    assert (found["value"], found["state"]) == ("13.346", MATCHES)
    assert [(run["run"], run["seed"], run["path"], run["value"]) for run in found["runs"]] == [
        ("vap", 7, str(METRICS), 12.3456),
        ("vap_seed4", 4, str(other), 14.3456),
    ]
    assert {str(METRICS), str(other), str(SAMPLES), str(PREPARED)} < set(found["records"])
    assert explain(TABLE1, "1", "fid_sd")["value"] == "1.414"
    assert explain(TABLE1, "1", "fid_sd")["state"] == MATCHES
    printed = shown(str(TABLE1), "1", "fid")
    assert "mean over 2 runs, matches" in printed
    assert f"vap_seed4, seed 4: {other}, fid 14.3456" in printed
    assert "standard deviation over 2 runs" in shown(str(TABLE1), "1", "fid_sd")
    columns = TABLE1.read_text().split("\n", 1)[0].split(",")
    ours = [column for column in columns if not column.startswith("paper_")]
    told = {column: explain(TABLE1, "1", column) for column in ours}
    states = {column: found.get("from", found)["state"] for column, found in told.items()}
    assert {column for column, state in states.items() if state != MATCHES} == {"runs", "seeds"}
    write_metrics(other, "seen", method="vap_seed4", fid=15.0)
    assert explain(TABLE1, "1", "fid")["state"] == CHANGED
    assert shown(str(TABLE1), "1", "fid").splitlines()[-1].endswith("the table is older than its JSON")


@pytest.mark.usefixtures("chain")
def test_every_column_of_ours_agrees_with_its_json() -> None:
    for file in (TABLE1, TABLE2, TABLE3):
        columns = file.read_text().split("\n", 1)[0].split(",")
        ours = [column for column in columns if not column.startswith("paper_")]
        told = {column: explain(file, "1", column)["from"]["state"] for column in ours}
        other = {column for column, state in told.items() if state != MATCHES}
        # worked out by the table stage, or not printed for X-rays
        assert other <= {"row", "condition", "f1", "f1_low", "f1_high"}
        assert CHANGED not in told.values()


@pytest.mark.usefixtures("chain")
def test_a_paper_column_is_the_papers_number() -> None:
    text = TABLE3.read_text().replace("–\n", "0.5\n").replace("/\n", "0.5\n")
    TABLE3.write_text(text)
    found = explain(TABLE3, "1", "paper_f1")
    assert found["paper"] == {"table": 3, "file": "vap/results/paper3.py"}
    assert "records" not in found
    assert "the paper's printed number, Table 3" in shown(str(TABLE3), "1", "paper_f1")
    assert "the paper prints no number for this row in its Table 1" in shown(str(TABLE1), "1", "paper_fid")
    for number, _, file in explaining.TABLES.values():
        assert f"Table {number}" in (PROJECT / file).read_text()


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("results/tables/table4.csv", "1", "fid"), "one of table1.csv"),
        (("elsewhere/table1.csv", "1", "fid"), "No such file"),
        ((TABLE1, "0", "fid"), "no row 0; expected 1 to 1"),
        ((TABLE1, "2", "fid"), "no row 2"),
        ((TABLE1, "own,dit", "fid"), "no rows beginning with own,dit; expected one row, such as own,vap"),
        ((TABLE2, "own,vap", "fid"), r"rows beginning with own,vap \(1, 2"),
        ((TABLE1, "1", "FID"), "no column FID; expected one of dataset, method"),
    ],
)
def test_what_is_not_in_the_tables_is_named(arguments: tuple[Any, str, str], said: str) -> None:
    with pytest.raises(VapError, match=said) as error:
        explain(Path(arguments[0]), *arguments[1:])
    assert "\n" not in str(error.value)
    assert str(arguments[0]) in str(error.value)


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize("damage", ["absent", "foreign", "no record"])
@pytest.mark.parametrize("path", [METRICS, SAMPLES, CAPTIONS, MODEL / "config.json"])
def test_absent_and_foreign_files_are_named(path: Path, damage: str) -> None:
    if damage == "foreign":
        path.write_bytes(b"\x00 of another program")
    elif damage == "absent":
        path.unlink()
    elif path.suffix == ".json":
        data = json.loads(path.read_text())
        del data["provenance"]["inputs"]
        write_json(path, data)
    elif path == SAMPLES:
        arrow(SAMPLES, "samples", {"stage": "toy", "item": []})
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(VapError) as error:
        explain(TABLE1, "1", "fid")
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("chain")
def test_metrics_of_another_run_are_refused() -> None:
    write_metrics(METRICS, "seen", method="dit")
    with pytest.raises(VapError, match="method dit; expected vap"):
        explain(TABLE1, "1", "fid")


# ── code and commits ──────────────────────────────────────────────────────────────────────────────


def test_the_stages_that_load_modules_by_name_are_those_known_here() -> None:
    named = {}
    for file in (PROJECT / "vap").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "provenance":
                if file.name == "explain.py":
                    continue
                assert len(node.args) == 2  # the others by keyword
                for keyword in node.keywords:
                    if keyword.arg == "modules":
                        named[file.stem] = ast.unparse(keyword.value)
    own = "[f'vap.generators.{method}']"
    measured = "['vap.captioning.describer_server'] if settings.server == 'measured' else []"
    assert named == {"train": own, "sample": own, "caption": measured}


@pytest.mark.slow
@pytest.mark.usefixtures("chain", "torch_settings")
def test_the_code_of_real_runs_is_the_same_here() -> None:
    from toy import write_prepared as images

    made = settings(methods=["cbdm"], learns_from={"images": ["cbdm"]}, sample__n=2, sample__steps=2, seed=5)
    images(Path("data/prepared/own.arrow"))
    train.run(made, "own", "cbdm")
    path = sample.run(made, "own", "cbdm", "seen")
    for home in (path, Path("results/models/own/cbdm/config.json")):
        found = explaining.read_record(home)
        assert explaining.code_hash(explaining._modules(found)) == found["code"]
        assert found["params"]["seed"] == 5


def git(*arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True, env={**os.environ, **who}
    )
    return done.stdout.strip()


def lock(evaluated: str, sampled: str) -> None:
    out = "  {}:\n    cmd: vap\n    outs:\n    - path: {}\n      md5: {}\n"
    text = "schema: '2.0'\nstages:\n" + out.format("sample-prompts@own-vap", SAMPLES, sampled)
    Path("dvc.lock").write_text(text + out.format("evaluate@own-vap", METRICS, evaluated))


@pytest.mark.usefixtures("chain")
def test_the_commit_is_the_last_that_recorded_the_stage() -> None:
    def told(path: Path) -> Any:
        return explain(TABLE1, "1", "fid")["records"][str(path)]["dvc"]

    assert told(METRICS) is None
    lock("1", "1")
    assert told(METRICS) == {"stage": "evaluate@own-vap", "commit": None, "uncommitted": False}
    git("init", "-q")
    commits = []
    for evaluated, sampled in (("1", "1"), ("1", "2"), ("1", "3"), ("4", "3")):
        lock(evaluated, sampled)
        git("add", "dvc.lock")
        git("commit", "-qm", "x")
        commits.append(git("log", "-1", "--format=%h"))
    assert told(METRICS) == {"stage": "evaluate@own-vap", "commit": commits[3], "uncommitted": False}
    assert told(SAMPLES) == {"stage": "sample-prompts@own-vap", "commit": commits[2], "uncommitted": False}
    assert told(PREPARED) is None
    lock("5", "3")
    assert told(METRICS) == {"stage": "evaluate@own-vap", "commit": commits[3], "uncommitted": True}
    assert not told(SAMPLES)["uncommitted"]
    printed = shown(str(TABLE1), "1", "fid")
    assert f"evaluate@own-vap, last recorded in commit {commits[3]}, uncommitted changes" in printed
