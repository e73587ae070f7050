"""A damaged object of DVC's cache, or an artefact that was edited, is never used, and never deleted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vap.common.errors import VapError
from vap.workflow import dvc, verify
from vap.workflow.dvc import record, run_stage, stale_stages
from vap.workflow.verify import ASIDE, SEEN, Seen, check_inputs, look_over

STAGES = """stages:
  plan: {cmd: 'mkdir -p plan && echo 1 >plan/a && echo 2 >plan/b', deps: [from], outs: [plan]}
  score: {cmd: echo 347.7 >score.txt && echo score >>ran, deps: [from], outs: [score.txt]}
  table: {cmd: cat score.txt >table.csv && echo table >>ran, deps: [score.txt], outs: [table.csv]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with a DVC project that was run, a stage after the other."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        Path("dvc.yaml").write_text(STAGES, encoding="utf-8")
        Path("from").write_text("1")
        subprocess.run(["git", "init", "-q"], check=True)
        subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
        for stage in ("plan", "score", "table"):
            assert run_stage(stage) == 0
        Path("ran").unlink()
        SEEN.unlink()
    return folder


@pytest.fixture
def small(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; what is run is written to `ran`."""
    folder = tmp_path / "project"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(dvc, "BETWEEN", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    look_over(record())
    return folder


def ran() -> list[str]:
    return Path("ran").read_text().split() if Path("ran").exists() else []


def object_of(stage: str) -> Path:
    md5 = record()[stage]["outs"][0]["md5"]
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


def damage(path: Path, mode: int, same_time: bool = False) -> None:
    told = path.stat()
    path.chmod(0o644)
    path.write_text(path.read_text().replace("347", "9347" if not same_time else "947"))
    if same_time:
        os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o444, 0o644])
@pytest.mark.parametrize("same_time", [True, False])
def test_a_damaged_object_is_set_aside_and_the_stage_runs_again(
    small: Path, mode: int, same_time: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    damage(object_of("score"), mode, same_time)
    Path("score.txt").unlink()
    assert run_stage("score") == 0
    assert Path("score.txt").read_text() == "347.7\n"
    assert ran() == ["score"]
    assert "347.7" in object_of("score").read_text()
    kept = [file.read_text() for file in ASIDE.rglob("*") if file.is_file()]
    assert kept == ["947.7\n" if same_time else "9347.7\n"]
    assert "this object of DVC's cache is damaged" in capfd.readouterr().err


def test_a_damaged_object_of_older_settings_is_not_used_either(small: Path) -> None:
    """The record no longer names it: DVC finds it in its list of runs."""
    Path("from").write_text("new")
    Path("dvc.yaml").write_text(STAGES.replace("347.7", "12.5"))
    assert run_stage("score") == 0
    damaged = next(
        file
        for file in Path(".dvc/cache/files").rglob("*")
        if file.is_file() and file.read_text() == "347.7\n"
    )
    damage(damaged, 0o444)
    Path("from").write_text("1")
    Path("dvc.yaml").write_text(STAGES)
    Path("ran").unlink()
    assert run_stage("score") == 0
    assert Path("score.txt").read_text() == "347.7\n"
    assert ran() == ["score"]


def test_dvc_itself_does_not_use_what_was_damaged(small: Path) -> None:
    damage(object_of("score"), object_of("score").stat().st_mode & 0o777)
    Path("score.txt").unlink()
    Path("table.csv").unlink()
    subprocess.run(["dvc", "repro", "--quiet"], check=True)
    assert Path("table.csv").read_text() == "347.7\n"


@pytest.mark.parametrize("text", ["34", "9347.7\nmy note\n"])
def test_an_artefact_that_was_edited_or_cut_off_is_replaced_and_kept(
    small: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("score.txt").write_text(text)
    assert "score" in stale_stages()
    assert (ASIDE / "score.txt").read_text() == text
    assert capfd.readouterr().err.startswith("score.txt: is not what dvc.lock records")
    assert run_stage("score") == 0
    assert Path("score.txt").read_text() == "347.7\n"
    assert stale_stages() == set()
    assert ran() == []  # from the cache


def test_what_dvc_has_put_back_damaged_is_seen_before_the_next_run(small: Path) -> None:
    damage(object_of("score"), 0o444)
    Path("score.txt").unlink()
    subprocess.run(["dvc", "checkout", "--quiet"], check=True)
    assert Path("score.txt").read_text() == "9347.7\n"  # else nothing is tested here
    assert "score" in stale_stages()
    assert run_stage("score") == 0
    assert Path("score.txt").read_text() == "347.7\n"


def test_a_damaged_input_is_refused(small: Path) -> None:
    check_inputs(["score.txt"], record())
    Path("score.txt").write_text("9347.7\n")
    check_inputs(["from"], record())
    with pytest.raises(VapError, match=r"score.txt: found other content than dvc.lock records"):
        check_inputs(["score.txt"], record())
    assert (ASIDE / "score.txt").read_text() == "9347.7\n"
    assert run_stage("score") == 0
    check_inputs([""], record())


def test_the_plan_is_looked_at_file_by_file(small: Path) -> None:
    Path("plan/b").write_text("3\n")
    assert stale_stages() == set()
    assert Path("plan/b").read_text() == "2\n"
    assert (ASIDE / "plan/b").read_text() == "3\n"


def test_the_content_of_another_commit_is_dvcs_to_replace(
    small: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = Path("dvc.lock").read_text()
    Path("dvc.yaml").write_text(STAGES.replace("347.7", "12.5"))
    assert run_stage("score") == 0
    Path("dvc.yaml").write_text(STAGES)
    Path("dvc.lock").write_text(before)
    capfd.readouterr()
    assert "score" in stale_stages()
    assert capfd.readouterr().err == ""
    assert not ASIDE.exists()


def test_what_another_run_is_writing_is_left_alone(small: Path) -> None:
    Path("score.txt").write_text("half")
    verify.TABLE.write_text(json.dumps({"write": {str(small / "score.txt"): {"pid": 1, "cmd": "x"}}}))
    look_over(record())
    assert Path("score.txt").read_text() == "half"


def test_nothing_is_read_twice(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look_over(record())
    SEEN.write_text(SEEN.read_text() + '["cut o')
    monkeypatch.setattr(verify, "md5_of", lambda path: pytest.fail(f"{path} is read"))
    look_over(record())


def test_the_list_of_what_was_read_does_not_grow_without_end(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SPARE", 10)
    known = len(Seen().known) + 1
    for _ in range(60):
        os.utime("from", ns=(0, len(SEEN.read_bytes())))
        Seen().md5(Path("from"))
    assert len(SEEN.read_text().splitlines()) <= 10 + 4 * known + 1
