"""DVC is run as it is; what a killed one leaves half written is mended before the next command goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vap.common.errors import VapError
from vap.workflow import dvc
from vap.workflow.dvc import DAMAGED, KEPT, LOCK, is_whole, run, run_stage

STAGES = "".join(
    f"  {n}: {{cmd: echo {n} > {n}.txt && echo {n} >> ran, deps: [from], outs: [{n}.txt]}}\n" for n in "abc"
)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with a DVC project of three stages that were run; the calls are in `ran`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "BETWEEN", 0.3)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    Path("dvc.yaml").write_text(f"stages:\n{STAGES}", encoding="utf-8")
    Path("from").touch()
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["dvc", "init", "--quiet"], check=True)
    assert run("repro") == 0
    Path("ran").unlink()
    return tmp_path


def ran() -> list[str]:
    return Path("ran").read_text().split() if Path("ran").exists() else []


def test_a_stage_alone_is_run_and_recorded(small: Path) -> None:
    before = yaml.safe_load(LOCK.read_text())["stages"]
    Path("dvc.yaml").write_text(f"stages:\n{STAGES}".replace("echo b >", "echo new >", 1), encoding="utf-8")
    assert run_stage("b") == 0
    now = yaml.safe_load(LOCK.read_text())["stages"]
    assert (now["a"], now["c"]) == (before["a"], before["c"])
    assert now["b"]["cmd"].startswith("echo new")
    assert ran() == ["b"]
    assert KEPT.read_text() == LOCK.read_text()


@pytest.mark.parametrize("size", [0, 5, 20, 150, 300, -40, -1])
def test_a_record_that_was_cut_off_is_put_back(
    small: Path, size: int, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = LOCK.read_text()
    LOCK.write_text(whole[:size])
    assert run("repro") == 0
    assert LOCK.read_text() == whole
    assert ran() == []
    assert DAMAGED.read_text() == whole[:size]
    assert "dvc.lock: was cut off" in capfd.readouterr().err


def test_a_record_that_is_being_written_is_waited_for(small: Path) -> None:
    whole = LOCK.read_text()
    LOCK.write_text(whole[:150])
    writer = subprocess.Popen(["bash", "-c", "sleep 0.5; cat > dvc.lock"], stdin=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    writer.stdin.write(whole)
    writer.stdin.close()
    assert run("status") == 0
    assert not DAMAGED.exists()
    assert writer.wait() == 0


def test_without_a_whole_copy_what_was_made_comes_from_the_cache(small: Path) -> None:
    whole = LOCK.read_text()
    KEPT.unlink()
    LOCK.write_text(whole[:50])
    assert run("repro") == 0
    assert yaml.safe_load(LOCK.read_text()) == yaml.safe_load(whole)
    assert ran() == []


def test_a_record_cut_between_two_stages_has_lost_nothing(small: Path) -> None:
    whole = LOCK.read_text()
    LOCK.write_text(whole[: whole.index("  c:\n")])
    assert run("repro") == 0
    assert LOCK.read_text() == whole
    assert ran() == []


def test_the_marks_of_a_merge_are_the_users_to_resolve(small: Path) -> None:
    text = LOCK.read_text().replace("  b:\n", "<<<<<<< HEAD\n  b:\n=======\n>>>>>>> other\n", 1)
    LOCK.write_text(text)
    with pytest.raises(VapError, match=r"dvc.lock: found the marks of a merge .* `git checkout --ours"):
        run("repro")
    assert LOCK.read_text() == text


@pytest.mark.parametrize("left", ["", '{"write": {"a.tx'])
def test_a_table_that_was_left_half_written_is_begun_anew(small: Path, left: str) -> None:
    dvc.TABLE.write_text(left, encoding="utf-8")
    refused = subprocess.run(["dvc", "status"], capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "corrupted" in refused.stderr  # else nothing is tested here
    assert run("status") == 0
    assert subprocess.run(["dvc", "status", "--quiet"], check=False).returncode == 0


def test_another_failure_of_dvc_is_its_own(small: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = LOCK.read_text()
    assert run_stage("d") != 0
    assert LOCK.read_text() == before
    assert not DAMAGED.exists()


def test_what_is_stale_is_told_by_name(small: Path) -> None:
    with pytest.raises(VapError, match=r"dvc status: found .*'plan'"):
        dvc.stale_stages()
    Path("dvc.yaml").write_text(
        f"stages:\n  plan: {{cmd: 'true', deps: [ran]}}\n{STAGES}".replace("echo b >", "echo new >", 1)
    )
    Path("ran").touch()
    assert dvc.stale_stages() == {"b"}


def test_the_record_of_the_project_is_whole() -> None:
    assert is_whole(Path(__file__).parents[2].joinpath(LOCK).read_text(encoding="utf-8"))


# ── links to nothing ────────────────────────────────────────────────────────────────────────────────

NAMES = (
    "z.jpg",
    ".#lock",
    "zä [1]*.jpg ",
    "!x#\\b",
    "a\nb",
    "deep/x.png",
    b"\xff.png".decode(errors="surrogateescape"),
)


@pytest.fixture
def two_datasets(small: Path) -> Path:
    stages = [
        f"  {n}: {{cmd: ls data/raw/{n} > {n}.txt, deps: [data/raw/{n}], outs: [{n}.txt]}}\n"
        for n in ("one", "two")
    ]
    Path("dvc.yaml").write_text(f"stages:\n  plan: {{cmd: 'true'}}\n{''.join(stages)}", encoding="utf-8")
    LOCK.unlink()
    for name in ("one/deep", "two"):
        (dvc.RAW / name).mkdir(parents=True)
        (dvc.RAW / name / "x").touch()
    assert run("repro") == 0
    return dvc.RAW / "one"


def test_a_link_to_nothing_in_one_dataset_stops_no_other(two_datasets: Path) -> None:
    (dvc.RAW / ".dvcignore").write_text("*.own\n")
    for name in NAMES:
        (two_datasets / name).symlink_to("/nowhere/at all")
    (two_datasets / "loop").symlink_to(".")
    assert dvc.stale_stages() <= {"one"}  # the loop is new to it
    (dvc.RAW / "two/y").touch()
    assert "two" in dvc.stale_stages()
    assert run_stage("two") == 0
    assert run_stage("one") == 0
    assert dvc.stale_stages() == set()
    (two_datasets / "z.jpg").unlink()
    (two_datasets / "z.jpg").symlink_to("x.txt")
    (two_datasets / "x.txt").touch()
    assert dvc.stale_stages() == {"one"}
    assert "/one/z.jpg" not in (dvc.RAW / ".dvcignore").read_text()
    for name in NAMES[1:]:
        (two_datasets / name).unlink()
    dvc.pass_over_links()
    assert (dvc.RAW / ".dvcignore").read_text() == "*.own\n"


def test_a_pattern_hides_its_link_alone(two_datasets: Path) -> None:
    for name, other in (("a*.jpg", "ab.jpg"), ("a[1].png", "a1.png"), ("x y", "xzy"), ("b\\c", "bc")):
        (two_datasets / name).symlink_to("nowhere")
        (two_datasets / other).touch()
    dvc.stale_stages()
    assert run_stage("one") == 0
    assert dvc.stale_stages() == set()
    for other in ("ab.jpg", "a1.png", "xzy", "bc"):
        (two_datasets / other).write_text("changed")
        assert dvc.stale_stages() == {"one"}, other
        assert run_stage("one") == 0


def test_a_dataset_that_is_a_link_to_nothing_is_named(two_datasets: Path) -> None:
    two_datasets.rename("elsewhere")
    two_datasets.symlink_to("nowhere")
    with pytest.raises(VapError, match=r"data/raw/one: found a broken link; expected the dataset's folder"):
        dvc.stale_stages()
