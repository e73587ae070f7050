"""A job ends with the run that started it, and a killed run's lock holds nobody up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vap.workflow import owner

JOB = """
import os, pathlib, sys, time
from vap.workflow import owner
owner.find()
owner.end_with_it()
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""
RUN = """
import subprocess, sys
subprocess.run(["sh", "-c", '"$0" -c "$1" "$2"; exit 3', sys.executable, sys.argv[1], sys.argv[2]])
"""
HOLD = """
import sys
from vap.workflow import owner
owner.take_over()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def until(what: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_job_below_a_shell_ends_with_the_run_above_it() -> None:
    started = Path("started")
    run = subprocess.Popen([sys.executable, "-c", RUN, JOB, str(started)])
    until(lambda: started.exists() and started.read_text())
    job = int(started.read_text())
    time.sleep(2 * owner.LOOK)
    assert psutil.pid_exists(job)
    run.kill()
    run.wait()
    until(lambda: not psutil.pid_exists(job) or psutil.Process(job).status() == psutil.STATUS_ZOMBIE)


def test_another_process_of_the_same_number_is_not_the_owner() -> None:
    own = psutil.Process()
    assert owner._is_there(own.pid, own.create_time())
    assert not owner._is_there(own.pid, own.create_time() - 100)


def lock() -> Path:
    owner.LOCKS.mkdir(parents=True)
    file = owner.LOCKS / "0.output.lock"
    file.write_text("results/tables/table1.csv\n")
    return file


def test_the_lock_of_a_killed_run_is_taken_over(capsys: pytest.CaptureFixture[str]) -> None:
    file = lock()
    owner.take_over()
    assert not file.exists()
    assert "its lock is taken over" in capsys.readouterr().err


def test_the_lock_of_a_live_run_is_left_and_of_a_killed_one_not() -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    file = lock()
    owner.take_over()
    assert file.exists()
    other.kill()
    other.communicate()
    with contextlib.ExitStack() as held:
        for handle in owner._held:
            held.enter_context(handle)
        owner._held.clear()
    owner.take_over()
    assert not file.exists()
    assert os.listdir(owner.ALIVE.parent) == ["alive"]
