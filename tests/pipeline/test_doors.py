"""Snakemake and DVC: two doors to one pipeline, used in any order, that never disagree.

The Snakefile, the rules, dvc.yaml and vap/pipeline.py are the checkout's own; only the command `vap` is
a stand-in, whose executions are counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import PROGRAMS, Project, Result, lay_out, stand_in, stop

UVIT = {"train-latents-uvit", "sample-latents-uvit", "evaluate-uvit"}
VAP = {"train-prompts-vap", "sample-prompts-vap", "evaluate-vap"}
PLUS_VAP = {"classify-plus-densenet121-100-vap", "table3"}
MEASURE_UNSEEN = {"evaluate-unseen-vap-unseen", "table2"}
UNSEEN = {"sample-unseen-vap-unseen"} | MEASURE_UNSEEN
SAMPLE_VAP = {"sample-prompts-vap", "evaluate-vap", "table", "figure", "report", "table2"} | PLUS_VAP | UNSEEN
MEASURE = {"evaluate-uvit", "evaluate-vap", "floor", "table", "report"} | MEASURE_UNSEEN
PAGES = {"table", "figure", "report"}
ALL = {"prepare", "caption", "encode", "latents", "floor"} | UVIT | VAP | PAGES
ALL |= {"classify-densenet121-100"} | PLUS_VAP | UNSEEN

TABLES = ["results/tables/table2.csv", "results/tables/table3.csv", "results/report.html"]

Door = Callable[[Project], Result]


def by_snakemake(project: Project) -> Result:
    return project.snakemake("all", *TABLES).ok()


def by_dvc(project: Project) -> Result:
    return project.dvc("repro").ok()


def refused(result: Result, *words: str) -> None:
    """It failed, and one line of it says all of `words`; nothing of it is a traceback."""
    assert result.status != 0, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, result.output


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Project:
    project = lay_out(tmp_path_factory.mktemp("plain"), programs)
    classifiers = project.params()["downstream"]["classifier"]
    project.edit_params(
        {
            "datasets": ["phantom-isic2018"],
            "methods": ["uvit", "vap"],
            "learns_from": {"images": [], "latents": ["uvit"], "prompts": ["vap"]},
            "ablation.without": [],
            "ablation.methods": ["vap"],
            "ablation.conditions": ["unseen"],
            "ablation.across": [],
            "downstream.classifiers": ["densenet121"],
            "downstream.classifier": {"densenet121": classifiers["densenet121"]},
            "downstream.ratios": ["100"],
            "downstream.sources": ["vap"],
            "compute.warm_start": False,
        }
    )
    project.commit()
    return project


@pytest.fixture(scope="module")
def template(plain: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = plain.copy(tmp_path_factory.mktemp("template"))
    by_snakemake(project)
    assert project.calls() == ALL
    project.commit()
    return project


@pytest.fixture
def fresh(plain: Project, tmp_path: Path) -> Project:
    """Nothing made yet."""
    return plain.copy(tmp_path)


@pytest.fixture
def built(template: Project, tmp_path: Path) -> Project:
    """All made, by Snakemake, and dvc.lock committed."""
    return template.copy(tmp_path)


# ── from nothing ────────────────────────────────────────────────────────────────────────────────────


def test_what_snakemake_made_neither_makes_again(built: Project) -> None:
    by_dvc(built)
    result = by_snakemake(built)
    assert "Nothing to be done" in result.output
    assert "profiles/default" in result.output  # read without being asked for
    assert built.calls() == set()
    assert built.git("status", "--porcelain") == ""


def test_what_dvc_made_is_the_same_and_snakemake_leaves_it(fresh: Project, template: Project) -> None:
    by_dvc(fresh)
    assert fresh.calls() == ALL
    assert fresh.outs() == template.outs()
    assert fresh.record() == template.record()
    assert "Nothing to be done" in by_snakemake(fresh).output
    assert fresh.calls() == set()


def test_a_part_by_snakemake_broken_then_mended_and_the_rest_by_dvc(
    fresh: Project, template: Project
) -> None:
    target = "data/prompts/phantom-isic2018.arrow"
    broken = fresh.snakemake(target, FAIL="caption@phantom-isic2018")
    assert broken.status != 0
    assert "error: caption@phantom-isic2018 is broken" in broken.output
    assert "Traceback" not in broken.output
    assert fresh.calls() == {"prepare", "caption"}
    fresh.snakemake(target).ok()
    assert fresh.calls() == {"caption", "encode"}
    by_dvc(fresh)
    assert fresh.calls() == ALL - {"prepare", "caption", "encode"}
    assert fresh.outs() == template.outs()


def test_a_stage_that_breaks_under_dvc(fresh: Project) -> None:
    broken = fresh.dvc("repro", "encode", FAIL="caption@phantom-isic2018")
    assert broken.status != 0
    assert "error: caption@phantom-isic2018 is broken" in broken.output
    assert fresh.calls() == {"prepare", "caption"}
    fresh.dvc("repro", "encode").ok()
    assert fresh.calls() == {"caption", "encode"}


# ── edits ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("method.vap.sample.guidance_scale", 3.0, SAMPLE_VAP),
        ("caption.questions", 2, {"caption", "encode"} | VAP | PAGES | PLUS_VAP | UNSEEN),
    ],
)
def test_an_edited_setting_runs_what_depends_on_it(
    built: Project, key: str, value: Any, stages: set[str]
) -> None:
    before = built.outs()
    built.edit_params({key: value})
    by_dvc(built)
    assert built.calls() == stages
    assert built.outs() != before
    built.git("checkout", "params.yaml")
    by_dvc(built)  # what was made before comes from the cache
    assert built.calls() == set()
    assert built.outs() == before


def test_further_runs_are_what_is_made_and_both_doors_know_them(built: Project) -> None:
    methods = ["uvit", "uvit_seed1", "vap", "vap_seed1"]
    built.edit_params(
        {
            "methods": methods,
            "learns_from": {"images": [], "latents": methods[:2], "prompts": [*methods[2:], "vap_data50"]},
            "downstream.ratios": ["50", "100"],
            "downstream.generator_ratios": ["50"],
        }
    )
    by_dvc(built)
    runs = {f"{verb}-latents-uvit_seed1" for verb in ("train", "sample")}
    runs |= {f"{verb}-prompts-{run}" for verb in ("train", "sample") for run in ("vap_seed1", "vap_data50")}
    runs |= {f"evaluate-{method}_seed1" for method in ("uvit", "vap")}
    runs |= {
        "classify-densenet121-50",
        "classify-plus-densenet121-50-vap",
        "classify-ratio-densenet121-50-vap",
    }
    assert built.calls() == runs | PAGES | {"table2", "table3"}
    by_snakemake(built)  # which has made the tables with other settings: a false alarm, not executed
    assert built.calls() == set()


def test_settings_of_how_and_not_what_run_nothing(built: Project) -> None:
    built.edit_params({"compute.threads": 2, "caption.concurrency": 8, "caption.timeout": 9.0})
    assert "Nothing to be done" in by_snakemake(built).output
    assert built.calls() == set()


@pytest.mark.parametrize(
    ("door", "file", "stages"),
    [
        (by_snakemake, "vap/metrics/fidelity.py", MEASURE),
        # vap.generators.vap.method is built on vap.generators.uvit.method
        (by_dvc, "vap/generators/uvit/method.py", UVIT | VAP | PAGES | PLUS_VAP | UNSEEN),
    ],
)
def test_edited_code_runs_what_uses_it(built: Project, door: Door, file: str, stages: set[str]) -> None:
    with (built.root / file).open("a", encoding="utf-8") as handle:
        handle.write("# a comment changes nothing that the code does\n")
    door(built)
    assert built.calls() == set()
    with (built.root / file).open("a", encoding="utf-8") as handle:
        handle.write("LATER = 1\n")
    door(built)
    assert built.calls() == stages


def test_an_old_commit_has_its_results_through_either_door(built: Project) -> None:
    old = built.outs()
    built.edit_params({"evaluate.n": 7})
    by_snakemake(built)
    assert built.calls() == MEASURE
    built.commit()
    new = built.outs()
    built.git("checkout", "-q", "HEAD~1")
    by_dvc(built)
    assert built.outs() == old
    built.git("checkout", "-q", "main")
    by_snakemake(built)
    assert built.outs() == new != old
    assert built.calls() == set()
    assert built.git("status", "--porcelain") == ""


@pytest.mark.parametrize("door", [by_snakemake, by_dvc])
def test_a_damaged_or_lost_file_is_put_back(built: Project, door: Door) -> None:
    before = built.outs()
    damaged = built.root / "results/metrics/phantom-isic2018/vap-seen.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"made", b"Made"))
    (built.root / "results/figures/phantom-isic2018.png").unlink()
    door(built)
    assert built.outs() == before
    assert built.calls() == set()


def test_a_clone_pulls_and_runs_nothing(built: Project, tmp_path: Path) -> None:
    built.dvc("remote", "add", "-d", "store", str(tmp_path / "store")).ok()
    built.commit()
    built.dvc("push").ok()
    (tmp_path / "elsewhere").mkdir()
    built.git("clone", "-q", str(built.root), str(tmp_path / "elsewhere/project"))
    clone = Project(tmp_path / "elsewhere/project", built.programs)
    clone.dvc("pull").ok()
    assert clone.outs() == built.outs()
    # files that seem older than their inputs are false alarms: from the cache, not executed
    clone.snakemake("data/prompts/phantom-isic2018.arrow").ok()
    by_dvc(clone)
    assert clone.calls() == set()
    assert clone.git("status", "--porcelain") == ""


# ── ends before the end ─────────────────────────────────────────────────────────────────────────────


def kill_at_evaluate(
    project: Project, *command: str, how: signal.Signals, meanwhile: Callable[[], object] = bool
) -> None:
    """Change evaluate.n and kill the run when half of an evaluate stage is written."""
    project.edit_params({"evaluate.n": 7})
    process = project.hang(*command, at="evaluate@phantom-isic2018-vap")
    try:
        meanwhile()
    finally:
        stop(process, how)
    assert "evaluate-vap" in (ran := project.calls())
    assert "table" not in ran


def finish_after_kill(project: Project, door: Door) -> None:
    door(project)
    assert {"evaluate-vap", "table"} <= project.calls() <= MEASURE


def test_snakemake_is_asked_to_stop_and_dvc_goes_on(built: Project) -> None:
    kill_at_evaluate(built, "snakemake", "--cores", "2", how=signal.SIGTERM)
    finish_after_kill(built, by_dvc)


def test_snakemake_is_killed_and_goes_on(built: Project) -> None:
    kill_at_evaluate(built, "snakemake", "--cores", "2", how=signal.SIGKILL)
    built.snakemake("--unlock").ok()
    finish_after_kill(built, by_snakemake)


def test_dvc_is_killed_and_goes_on(built: Project) -> None:
    def second_run() -> None:
        refused(built.snakemake(), "is busy", "(PID ", "wait for that one")

    kill_at_evaluate(built, "dvc", "repro", how=signal.SIGKILL, meanwhile=second_run)
    finish_after_kill(built, by_dvc)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────


def test_settings_that_only_snakemake_would_see(fresh: Project) -> None:
    refused(fresh.snakemake("--config", "seed=1"), "--config seed", "edit params.yaml")


def test_an_unknown_setting(fresh: Project) -> None:
    fresh.edit_params({"train.stepz": 5})
    refused(fresh.snakemake(), "params.yaml: train.stepz", "unknown key")


def test_a_setting_of_a_method_is_refused_before_anything_runs(fresh: Project) -> None:
    fresh.edit_params({"method.vap.model.headz": 2})
    refused(fresh.snakemake(), "params.yaml: method.vap.model.headz", "unknown key")


def test_no_other_dataset_to_draw_from(fresh: Project) -> None:
    fresh.edit_params({"ablation.across": ["other"], "ablation.other": {}})
    result = fresh.snakemake("results/tables/table2.csv")  # told before any job runs
    assert result.status != 0
    assert "params.yaml: ablation.other.phantom-isic2018: found no such key" in result.output
    assert fresh.calls() == set()


def test_a_setting_that_stands_twice(fresh: Project) -> None:
    """Snakemake itself takes the last."""
    with (fresh.root / "params.yaml").open("a") as file:
        file.write("\nseed: 1\n")
    refused(fresh.snakemake(), "params.yaml: seed: found this key twice")


def test_no_dvc_folder(fresh: Project) -> None:
    (fresh.root / ".dvc").rename(fresh.root.parent / "dvc-folder")
    refused(fresh.snakemake(), ".dvc", "clone the project with git")


def test_no_git_repository(fresh: Project) -> None:
    (fresh.root / ".git").rename(fresh.root.parent / "git-folder")
    refused(fresh.snakemake(), ".git", "no git repository")


@pytest.mark.parametrize("missing", ["dvc", "git"])
def test_a_program_is_missing(fresh: Project, tmp_path: Path, missing: str) -> None:
    """PATH has the other programs alone, and Python is started from a folder without them."""
    folder = tmp_path / "few/bin"
    folder.mkdir(parents=True)
    (folder / "python").symlink_to(sys.executable)
    (tmp_path / "few/pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    for name in {"dvc", "git", "vap", "bash"} - {missing}:
        found = next(
            place / name
            for place in (Path(sys.executable).parent, *map(Path, os.get_exec_path()))
            if (place / name).exists()
        )
        (folder / name).symlink_to(found)
    result = fresh.run(
        str(folder / "python"),
        "-m",
        "snakemake",
        "--cores",
        "1",
        PATH=str(folder),
        PYTHONPATH=os.pathsep.join([str(fresh.root), sysconfig.get_path("purelib")]),
    )
    refused(result, f"{missing}: found no such program on PATH")


# ── what people have beside it ──────────────────────────────────────────────────────────────────────


def test_a_killed_main_process_takes_its_jobs_with_it(built: Project) -> None:
    """Only Snakemake itself is killed, not its process group."""
    built.edit_params({"evaluate.n": 7})
    process = built.hang("snakemake", "--cores", "2", at="evaluate@phantom-isic2018-vap")
    process.kill()
    process.wait()
    result = by_snakemake(built)
    assert "its lock is taken over" in result.output
    assert "unlock" not in result.output
    stages = (built.root.parent / "calls").read_text().split()
    assert "table" in stages
    assert not orphans(built)


def orphans(project: Project) -> list[str]:
    """Processes that still work in the project's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "cwd").readlink() == project.root:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize(
    ("words", "stages"),
    [
        (["--forcerun", "evaluate"], {"evaluate-uvit", "evaluate-vap"}),
        (["--force", "results/tables/table1.csv"], {"table"}),
    ],
)
def test_a_forced_stage_runs_though_nothing_has_changed(
    built: Project, words: list[str], stages: set[str]
) -> None:
    before = built.outs()
    built.snakemake(*words).ok()
    assert built.calls() == stages
    assert built.outs() == before
    assert "Nothing to be done" in by_snakemake(built).output


def test_stages_and_data_of_ones_own_are_left_alone(built: Project) -> None:
    with (built.root / "dvc.yaml").open("a") as file:
        file.write(OWN)
    own = built.root / "data/raw/own/naevus"
    own.mkdir(parents=True)
    (own / "1.txt").write_text("an image")
    built.dvc("add", "data/raw/own").ok()
    assert "data/raw/own.dvc" in built.git("status", "--porcelain", "-uall")
    assert "Nothing to be done" in by_snakemake(built).output
    by_dvc(built)
    assert [(built.root / f"mine/{name}.txt").read_text() for name in "abcd"] == [f"{n}\n" for n in "abcd"]
    assert built.calls() == set()
    by_snakemake(built)
    built.edit_params({"evaluate.n": 7})
    by_snakemake(built)
    assert built.calls() == MEASURE
    assert built.run(str(PROGRAMS / "vap"), "check").status == 0
    text = (built.root / "dvc.yaml").read_text()
    assert text.endswith(OWN)


OWN = """
  mine:
    cmd: [mkdir -p mine, echo a >mine/a.txt]
    outs: [mine/a.txt]
  each:
    foreach: [b]
    do:
      cmd: echo ${item} >mine/${item}.txt
      outs: ["mine/${item}.txt"]
  table-by-size:
    matrix: {what: [{name: c}, {name: d}]}
    cmd: echo ${item.what.name} >mine/${item.what.name}.txt
    outs: ["mine/${item.what.name}.txt"]
"""
