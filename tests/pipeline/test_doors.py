"""Snakemake and DVC: two doors to one pipeline, used in any order, that never disagree.

The Snakefile, the rules, dvc.yaml and vap/pipeline.py are the checkout's own; only the command `vap` is
a stand-in, whose executions are counted.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import Project, Result, lay_out, stand_in, stop

UVIT = {"train-latents-uvit", "sample-latents-uvit", "evaluate-uvit"}
VAP = {"train-prompts-vap", "sample-prompts-vap", "evaluate-vap"}
MEASURE = {"evaluate-uvit", "evaluate-vap", "table"}
PAGES = {"table", "figure"}
ALL = {"prepare", "caption", "encode", "latents"} | UVIT | VAP | PAGES
TABLE = "results/tables/table1.csv"

Door = Callable[[Project], Result]


def by_snakemake(project: Project) -> Result:
    return project.snakemake().ok()


def by_dvc(project: Project) -> Result:
    return project.dvc("repro").ok()


DOORS = (by_snakemake, by_dvc)


def other(door: Door) -> Door:
    return by_dvc if door is by_snakemake else by_snakemake


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture
def fresh(tmp_path: Path, programs: Path) -> Project:
    """Nothing made yet."""
    project = lay_out(tmp_path, programs)
    project.edit_params({"datasets": ["phantom-isic2018"]})
    project.commit()
    return project


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Project:
    project = lay_out(tmp_path_factory.mktemp("template"), programs)
    project.edit_params({"datasets": ["phantom-isic2018"]})
    by_snakemake(project)
    assert project.calls() == ALL
    project.commit()
    return project


@pytest.fixture
def built(template: Project, tmp_path: Path) -> Project:
    """All made, by Snakemake, and dvc.lock committed."""
    return template.copy(tmp_path)


# ── from nothing ────────────────────────────────────────────────────────────────────────────────────


def test_what_snakemake_made_neither_makes_again(built: Project) -> None:
    by_dvc(built)
    assert "Nothing to be done" in by_snakemake(built).output
    assert built.calls() == set()
    assert built.git("status", "--porcelain") == ""


def test_what_dvc_made_is_the_same_and_snakemake_leaves_it(fresh: Project, template: Project) -> None:
    by_dvc(fresh)
    assert fresh.calls() == ALL
    assert fresh.outs() == template.outs()
    assert (fresh.root / "dvc.lock").read_text() == (template.root / "dvc.lock").read_text()
    assert "Nothing to be done" in by_snakemake(fresh).output
    assert fresh.calls() == set()


def test_part_by_one_door_and_the_rest_by_the_other(fresh: Project, template: Project) -> None:
    fresh.snakemake("data/prompts/phantom-isic2018.arrow").ok()
    assert fresh.calls() == {"prepare", "caption", "encode"}
    fresh.dvc("repro", "evaluate@phantom-isic2018-uvit").ok()
    assert fresh.calls() == {"latents", *UVIT}
    by_snakemake(fresh)
    assert fresh.calls() == VAP | PAGES
    by_dvc(fresh)
    assert fresh.calls() == set()
    assert fresh.outs() == template.outs()


# ── edits ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("door", "key", "value", "stages"),
    [
        (by_snakemake, "evaluate.n", 7, MEASURE),
        (by_dvc, "evaluate.n", 7, MEASURE),
        (
            by_snakemake,
            "method.vap.sample.guidance_scale",
            3.0,
            {"sample-prompts-vap", "evaluate-vap"} | PAGES,
        ),
        (by_dvc, "caption.questions", 2, {"caption", "encode"} | VAP | PAGES),
        (by_dvc, "compute.threads", 2, set()),
        (by_dvc, "caption.concurrency", 8, set()),
    ],
)
def test_an_edited_setting_runs_what_depends_on_it(
    built: Project, door: Door, key: str, value: Any, stages: set[str]
) -> None:
    before = built.outs()
    built.edit_params({key: value})
    door(built)
    assert built.calls() == stages
    assert (built.outs() != before) == bool(stages)
    built.git("checkout", "params.yaml")  # put back, all comes from the cache, through the other door
    other(door)(built)
    assert built.calls() == set()
    assert built.outs() == before


@pytest.mark.parametrize(
    ("door", "file", "stages"),
    [
        # inside a folder that is declared: Snakemake sees the folder alone, the marks see the file
        (by_snakemake, "vap/metrics/fidelity.py", MEASURE),
        # vap.methods.vap is built on vap.methods.uvit
        (by_dvc, "vap/methods/uvit.py", UVIT | VAP | PAGES),
        (by_dvc, "vap/captioning/questions/dermoscopy.yaml", {"caption", "encode"} | VAP | PAGES),
        (by_dvc, "vap/cli.py", set()),
    ],
)
def test_edited_code_runs_what_declares_it(built: Project, door: Door, file: str, stages: set[str]) -> None:
    before = built.outs()
    built.append(file, "# a comment\n")
    door(built)
    assert built.calls() == stages
    built.git("checkout", "vap")
    other(door)(built)
    assert built.calls() == set()
    assert built.outs() == before


def test_an_old_commit_has_its_results(built: Project) -> None:
    old = built.outs()
    built.edit_params({"evaluate.n": 7})
    by_dvc(built)
    built.commit()
    new = built.outs()
    built.calls()
    built.git("checkout", "-q", "HEAD~1")
    by_snakemake(built)
    assert built.outs() == old
    built.git("checkout", "-q", "main")
    by_dvc(built)
    assert built.outs() == new != old
    assert built.calls() == set()
    assert built.git("status", "--porcelain") == ""


@pytest.mark.parametrize("door", DOORS)
def test_a_damaged_or_lost_file_is_put_back(built: Project, door: Door) -> None:
    before = built.outs()
    damaged = built.root / "results/metrics/phantom-isic2018/vap-seen.json"
    damaged.write_bytes(damaged.read_bytes().replace(b"0", b"1"))
    (built.root / "results/figures/phantom-isic2018.png").unlink()
    (built.root / "data/latents/phantom-isic2018.arrow").unlink()
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
    by_snakemake(clone)
    by_dvc(clone)
    assert clone.calls() == set()
    assert clone.git("status", "--porcelain") == ""


# ── failures ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("door", "arguments"),
    [(Project.snakemake, ("data/prompts/phantom-isic2018.arrow",)), (Project.dvc, ("repro",))],
)
def test_a_broken_stage_stops_what_is_below_it(
    fresh: Project, door: Callable[..., Result], arguments: tuple[str, ...]
) -> None:
    result = door(fresh, *arguments, FAIL="caption@phantom-isic2018")
    assert result.status != 0
    assert "error: caption@phantom-isic2018 is broken" in result.output
    assert "Traceback" not in result.output
    assert fresh.calls() == {"prepare", "caption"}
    door(fresh, *arguments).ok()  # mended, it goes on
    assert {"caption", "encode"} <= (ran := fresh.calls())
    assert "prepare" not in ran


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", [("snakemake", "--cores", "2"), ("dvc", "repro")])
def test_a_killed_run_goes_on(built: Project, command: tuple[str, ...], how: signal.Signals) -> None:
    before = built.outs()
    built.edit_params({"sample.n": 7})
    process = built.hang(*command, at="sample-prompts@phantom-isic2018-vap")
    if command[0] == "dvc" and how is signal.SIGTERM:
        refused = built.snakemake()  # one run at a time
        assert refused.status != 0
        assert "is busy" in refused.output
        assert f"(PID {process.pid})" in refused.output
        assert "Traceback" not in refused.output
    stop(process, how)
    done = built.calls()
    assert not done & PAGES
    if command[0] == "snakemake" and how is signal.SIGKILL:
        locked = built.snakemake()
        assert locked.status != 0
        assert "--unlock" in locked.output
        built.snakemake("--unlock").ok()
    by_snakemake(built)
    assert built.calls() >= {"sample-prompts-vap", "evaluate-vap"} | PAGES
    by_dvc(built)
    assert built.calls() == set()
    assert built.outs().keys() == before.keys()


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────


def refused(result: Result, *words: str) -> None:
    """It failed, and one line of it says all of `words`; nothing of it is a traceback."""
    assert result.status != 0, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.output.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, result.output


def test_settings_that_only_snakemake_would_see(fresh: Project) -> None:
    refused(fresh.snakemake("--config", "seed=1"), "--config seed", "edit params.yaml")


def test_an_unknown_setting(fresh: Project) -> None:
    fresh.edit_params({"train.stepz": 5})
    refused(fresh.snakemake(), "params.yaml: train.stepz", "unknown key")


def test_no_dvc_folder(fresh: Project) -> None:
    (fresh.root / ".dvc").rename(fresh.root.parent / "dvc-folder")
    refused(fresh.snakemake(), ".dvc", "clone the project with git")


def test_no_git_repository(fresh: Project) -> None:
    (fresh.root / ".git").rename(fresh.root.parent / "git-folder")
    refused(fresh.snakemake(), ".git", "no git repository")


@pytest.mark.parametrize("missing", ["dvc", "git", "vap"])
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
