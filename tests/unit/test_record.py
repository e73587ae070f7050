"""dvc.lock, a stage at a time: what DVC itself would write, to the byte. A kill leaves what DVC can read."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dvcfile import Lockfile

from vap.record import HEAD, lines_of, run, run_stage, with_stages


def _stage(number: int, **more: Any) -> dict[str, Any]:
    deps = [
        {"path": f"data/{number}/{k}.arrow", "hash": "md5", "md5": f"{k:032x}", "size": k} for k in range(3)
    ]
    return {
        "cmd": f"vap train phantom-{number} uvit",
        "deps": deps,
        "params": {"params.yaml": {"seed": 0, "train": {"lr": 4.0e-3, "betas": [0.9, 0.99], "path": None}}},
        "outs": [{"path": "results/model", "hash": "md5", "md5": "ab" * 16, "size": 12}],
        **more,
    }


def _by_dvc(text: str, stages: dict[str, Any]) -> str:
    """As DVC's Lockfile.dump_stages: the whole file through a parser that keeps comments."""
    from dvc.utils.serialize._yaml import _dump, parse_yaml_for_update

    data = parse_yaml_for_update(text, "dvc.lock")
    for name, stage in stages.items():
        data["stages"].update({name: stage})
    stream = io.StringIO()
    _dump(data, stream)
    return stream.getvalue()


FIRST = _by_dvc(HEAD + "  x:\n    cmd: y\n", {f"train@{k}-a_b": _stage(k) for k in range(4)})
LONG = {
    "caption": {
        "args": ["--limit-mm-per-prompt", '{"image": 1}'],
        "text": "word " * 40,
        "lines": "a\nb\n\n c",
    }
}


@pytest.mark.parametrize(
    "stages",
    [
        {"train@2-a_b": _stage(9)},
        {"train@0-a_b": {"cmd": "short"}},
        {"x": _stage(1)},
        {"table": _stage(5)},
        {"table": _stage(5), "train@3-a_b": _stage(7), "train@1-a_b": _stage(8), "last": _stage(6)},
        {"train@1-a_b": _stage(1, params={"params.yaml": LONG})},
        {"train@3-a_b": _stage(3)},  # nothing new
        {},
    ],
)
def test_a_stage_takes_the_place_of_its_old_self(stages: dict[str, Any]) -> None:
    found = with_stages(FIRST, stages)
    assert found == _by_dvc(FIRST, stages)
    assert found is not None
    for again in (LONG, _stage(2)):  # what was written is read again
        more = {"train@1-a_b": {"cmd": "b", "params": {"params.yaml": again}}, "z": _stage(0)}
        assert with_stages(found, more) == _by_dvc(found, more)


def test_the_first_stage_of_an_empty_record() -> None:
    assert with_stages(HEAD, {"x": {"cmd": "y"}}) == HEAD + "  x:\n    cmd: y\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "schema: '2.0'\nstages: {}\n",
        "schema: '2.0'\ndatasets: []\nstages:\n  x:\n    cmd: y\n",
        FIRST + "datasets: []\n",
        FIRST.replace("  train@1", "<<<<<<< HEAD\n  train@1"),
        FIRST.replace("  train@1", "# a note\n  train@1"),
        FIRST.removesuffix("\n"),
    ],
)
def test_a_record_of_another_form_is_left_to_dvc(text: str) -> None:
    assert with_stages(text, {"x": {"cmd": "z"}}) is None


@pytest.mark.parametrize("name", ["train@0-a_b", "train@2-a_b", "train@3-a_b", "x"])
def test_the_lines_of_a_stage_are_its_record(name: str) -> None:
    text = with_stages(FIRST, {"train@3-a_b": _stage(3, params={"params.yaml": LONG})})
    assert text is not None
    found = lines_of(text, name)
    assert found is not None
    whole, part = (yaml.safe_load(content) for content in (text, found))
    assert part == {"schema": "2.0", "stages": {name: whole["stages"][name]}}


def test_a_stage_without_record_or_in_another_form_is_looked_for_by_dvc() -> None:
    assert lines_of(FIRST, "train@9-a_b") is None
    assert lines_of(FIRST, "train") is None
    assert lines_of(FIRST + "datasets: []\n", "x") is None


def test_one_stage_reads_and_leaves_the_others(
    small: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lock = Path("dvc.lock")
    Path("dvc.yaml").write_text(
        "stages:\n" + "".join(f"  {n}: {{cmd: echo {n} > {n}.txt, outs: [{n}.txt]}}\n" for n in "abc")
    )
    assert run("repro") == 0
    made = lock.read_text()
    read: list[str] = []
    original = Lockfile.validate.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Lockfile,
        "validate",
        classmethod(lambda cls, data, name=None: read.extend(data["stages"]) or original(cls, data, name)),
    )
    caplog.clear()
    assert run_stage("b") == 0
    assert "Stage 'b' didn't change, skipping" in caplog.text  # its record was found
    assert read == ["b"]
    Path("b.txt").unlink()
    Path("dvc.yaml").write_text(Path("dvc.yaml").read_text().replace("echo b", "echo new"))
    assert run_stage("b") == 0
    assert Path("b.txt").read_text() == "new\n"
    now, before = (yaml.safe_load(text)["stages"] for text in (lock.read_text(), made))
    assert now["a"] == before["a"]
    assert now["c"] == before["c"]
    assert now["b"]["cmd"] == "echo new > b.txt"


def test_the_records_of_the_project_are_of_that_form() -> None:
    text = Path(__file__).parents[2].joinpath("dvc.lock").read_text(encoding="utf-8")
    assert with_stages(text, {}) == text


def test_dvc_writes_the_record_through_this_function() -> None:
    """The places that are replaced: if a version of DVC moves one, this fails, and stages get slow."""
    import inspect

    from dvc.dvcfile import FileMixin, ProjectFile

    assert list(inspect.signature(Lockfile.dump_stages).parameters) == ["self", "stages", "kwargs"]
    assert "self._lockfile.dump_stages(stages, **kwargs)" in inspect.getsource(ProjectFile)
    assert list(inspect.signature(Lockfile._load_yaml).parameters) == ["self", "kwargs"]
    assert "return self._load_yaml(**kwargs)" in inspect.getsource(FileMixin)


DIES_WHILE_WRITING = """
import json, os, signal, sys
from vap.record import run

def dump(data, file):
    file.write('{"write": {"a.tx')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

json.dump = dump
sys.exit(run("repro"))
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project of one stage; its table of readers and writers."""
    monkeypatch.chdir(tmp_path)
    # the import of the project's own package, from elsewhere
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  a: {cmd: echo a > a.txt, outs: [a.txt]}\n", encoding="utf-8"
    )
    subprocess.run(["dvc", "init", "--no-scm", "--quiet"], check=True)
    return tmp_path / ".dvc/tmp/rwlock"


def test_a_kill_leaves_a_table_that_dvc_can_read(small: Path) -> None:
    subprocess.run(["dvc", "status"], check=True)
    before = small.read_text(encoding="utf-8")
    killed = subprocess.run([sys.executable, "-c", DIES_WHILE_WRITING], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert small.read_text(encoding="utf-8") == before
    assert subprocess.run(["dvc", "repro", "--quiet"], check=False).returncode == 0
    assert Path("a.txt").read_text(encoding="utf-8") == "a\n"


@pytest.mark.parametrize("left", ["", '{"write": {"a.tx'])
def test_a_table_that_was_left_half_written_is_begun_anew(small: Path, left: str) -> None:
    small.parent.mkdir(exist_ok=True)
    small.write_text(left, encoding="utf-8")
    refused = subprocess.run(["dvc", "status"], capture_output=True, text=True, check=False)
    assert refused.returncode
    assert "corrupted" in refused.stderr  # else nothing is tested here
    for command in ("status", "repro"):
        done = subprocess.run([sys.executable, "-m", "vap.record", command], check=False)
        assert done.returncode == 0
    assert Path("a.txt").read_text(encoding="utf-8") == "a\n"
    assert subprocess.run(["dvc", "status", "--quiet"], check=False).returncode == 0
