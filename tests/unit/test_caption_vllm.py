"""A vLLM server that the stage starts itself, played by a small program; tests/vllm has a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from caption_toy import (
    IDS,
    OUT,
    lay_out,
)
from toy import PROJECT, settings

import vap.captioning.caption as stage
from vap.captioning import vllm
from vap.captioning.replies import KEY_VARIABLE
from vap.common.errors import VapError
from vap.params import VllmParams

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return lay_out(tmp_path, monkeypatch)


def vllm_settings(**changes: Any) -> dict[str, Any]:
    return {"caption__server": "vllm", **{f"caption__vllm__{key}": value for key, value in changes.items()}}


def test_no_vllm_program_is_one_line(project: Path) -> None:
    with pytest.raises(VapError, match=r"caption.vllm.command: no-such-vllm: found no such program"):
        stage.run(settings(**vllm_settings(command="no-such-vllm")), "own")


FAKE = """#!/bin/sh
echo "loading $*"
echo "ValueError: no such model" >&2
exit 3
"""


def test_a_vllm_that_dies_shows_its_last_words(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, SECRET)
    program = project / "vllm"
    program.write_text(FAKE)
    program.chmod(0o755)
    with pytest.raises(
        VapError, match=r"exit status 3 before it answered: ValueError: no such model"
    ) as caught:
        stage.run(settings(**vllm_settings(command=str(program), dtype="float32", args=["--x", "1"])), "own")
    assert "\n" not in str(caught.value)
    shown = capsys.readouterr().err
    assert "loading serve measured-describer --served-model-name measured-describer --host 127.0.0.1" in shown
    assert "--dtype float32 --tensor-parallel-size 1 --data-parallel-size 1 --x 1" in shown
    assert SECRET not in shown


def test_engine_options_are_recorded_and_places_are_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    own = vllm_settings(model=str(tmp_path), command="/opt/somewhere/vllm")
    record = stage._by(settings(**own).caption)
    assert record["vllm"].keys() == {"revision", "dtype", "max_model_len", "args", "config", "weights"}
    assert str(tmp_path) not in json.dumps(record)
    assert VllmParams.model_fields.keys() >= stage.ENGINE


PLAYED = """#!{python}
import os, sys
sys.path.insert(0, {here!r})
from chat_server import ChatServer, answer

port, mark = int(sys.argv[sys.argv.index("--port") + 1]), {mark!r}
with open(mark, "a") as file:
    file.write(str(os.getpid()) + "\\n")
starts = len(open(mark).readlines())

def reply(request):
    if starts <= {deaths} and len(server.requests) > 4:
        print("RuntimeError: the engine is out of luck", flush=True)
        os._exit(7)
    return answer("fine")

server = ChatServer([reply], port)
server.serve()
"""


def played(folder: Path, deaths: int) -> Path:
    """A program that answers, but dies after four answers the first `deaths` times it is started."""
    program = folder / "vllm"
    here = str(Path(__file__).parent)
    program.write_text(
        PLAYED.format(python=sys.executable, here=here, mark=str(folder / "starts"), deaths=deaths)
    )
    program.chmod(0o755)
    return program


def test_a_vllm_that_dies_half_way_is_started_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = played(project, deaths=2)
    stage.run(settings(**vllm_settings(command=str(program))), "own")
    assert [row["t_mix"] for row in pq.read_table(OUT).to_pylist()] == ["fine"] * len(IDS)
    shown = capsys.readouterr().err
    assert shown.count("vllm: died (exit status 7)") == 2
    assert "the engine is out of luck" in shown
    assert len((project / "starts").read_text().split()) == 3
    assert not alive((project / "starts").read_text().split())


def test_a_vllm_that_dies_again_and_again_ends_the_stage(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "RESTARTS", 1)
    program = played(project, deaths=99)
    with pytest.raises(VapError, match="its death after 1 restarts: RuntimeError: the engine is out of luck"):
        stage.run(settings(**vllm_settings(command=str(program))), "own")


def test_a_vllm_that_does_not_answer_is_given_up(project: Path) -> None:
    program = project / "vllm"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(VapError, match=r"no answer from /health in 1 s"):
        stage.run(settings(**vllm_settings(command=str(program), start_timeout=1.0)), "own")


def alive(pids: list[str]) -> list[str]:
    """The processes that are there half a minute long."""
    end = time.monotonic() + 30
    while there := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        if time.monotonic() > end:
            return there
        time.sleep(0.05)
    return []


@pytest.mark.parametrize(("number", "deaf"), [(signal.SIGKILL, "TERM"), (signal.SIGTERM, "INT")])
def test_a_command_does_not_outlive_the_process_that_guards_it(
    tmp_path: Path, number: int, deaf: str
) -> None:
    """The parent of the guard is killed; the command, and what it started itself, end."""
    pids = tmp_path / "pids"
    child = f"sh -c 'echo $$ >> {pids}; trap \"\" {deaf}; sleep 99 & echo $! >> {pids}; wait; wait'"
    parent = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-m', 'vap.captioning.guard', 'sh', '-c', {child!r}], "
        "stdin=subprocess.PIPE); time.sleep(99)"
    )
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen([sys.executable, "-c", parent], env=env)
    end = time.monotonic() + 30
    while not pids.exists() or len(pids.read_text().split()) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    process.wait()
    assert not alive(pids.read_text().split())


def test_a_guards_exit_status_is_the_commands() -> None:
    for words, status in ((["true"], 0), (["sh", "-c", "exit 5"], 5), (["sh", "-c", "kill -9 $$"], 137)):
        command = [sys.executable, "-m", "vap.captioning.guard", *words]
        with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE) as process:
            assert process.wait(timeout=30) == status


def test_weights_of_one_configuration_are_told_apart(tmp_path: Path) -> None:
    """Two fine-tunings of one model: a run that was stopped must not go on with the other."""
    records = []
    for name, content in (("a", b"one" * 10), ("b", b"two" * 10)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content)
        records.append(stage._by(settings(**vllm_settings(model=str(folder))).caption))
    assert records[0] != records[1]
    assert records[0]["vllm"]["config"] == records[1]["vllm"]["config"]
