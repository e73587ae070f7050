"""The warm process: a fork of it behaves as the command itself would."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vap.workflow.warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm process is for Linux")
CLI = """
import os, pathlib, signal, sys, time
from vap.workflow.warm import hand_over
HERE = []
def main_here():
    kind, *rest = sys.argv[1:]
    if kind == "say":
        print("out", os.getcwd(), os.environ.get("WORD"), "torch" in sys.modules)
        print("err", *rest, file=sys.stderr)
        print(sys.stdin.read(), end="")
    elif kind == "exit":
        sys.exit(int(rest[0]))
    elif kind == "raise":
        raise RuntimeError("this went wrong")
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif kind == "wait":
        if rest[1:]:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        pathlib.Path(rest[0]).write_text(str(os.getpid()))
        time.sleep(60)
def main():
    status = hand_over(sys.argv[1:])
    if status is None:
        HERE.append(1)
        print("cold")
        main_here()
    sys.exit(status)
if __name__ == "__main__":
    main()
"""
OWNER = """
import os, sys, vap.workflow.warm
process = vap.workflow.warm.start()
print(os.environ[vap.workflow.warm.VARIABLE], process.pid, flush=True)
sys.stdin.read()
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def _until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package named vap with the real warm.py and commands for these tests."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "vap/workflow").mkdir(parents=True)
    (folder / "vap/__init__.py").touch()
    (folder / "vap/workflow/__init__.py").touch()
    (folder / "vap/cli.py").write_text(CLI)
    shutil.copy(vap.workflow.warm.__file__, folder / "vap/workflow/warm.py")
    return folder


@pytest.fixture(scope="module")
def warm(package: Path) -> Iterator[tuple[dict[str, str], int, subprocess.Popen[str]]]:
    """The environment in which commands find a warm process, its id, and the process that owns it."""
    environment = {name: value for name, value in os.environ.items() if name != vap.workflow.warm.VARIABLE}
    environment |= {
        f"{library}_NUM_THREADS": "1" for library in vap.workflow.warm.THREADS
    }  # as in a job of Snakemake
    environment["PYTHONPATH"] = str(package)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    place, process = owner.stdout.readline().split()
    _until(lambda: Path(place).exists(), 120)
    yield {**environment, vap.workflow.warm.VARIABLE: place}, int(process), owner
    owner.kill()
    owner.communicate()


@pytest.fixture
def run(warm: tuple[dict[str, str], int, object], tmp_path: Path) -> Run:
    def call(*arguments: str, text: str = "", **changes: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vap.cli", *arguments]
        environment = {**warm[0], **changes}
        return subprocess.run(
            command, env=environment, input=text, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return call


def test_a_command_is_run_with_its_own_files_folder_and_environment(run: Run, tmp_path: Path) -> None:
    result = run("say", "a", "b c", text="read\n", WORD="seen")
    assert result.returncode == 0
    assert result.stdout == f"out {tmp_path} seen True\nread\n"
    assert result.stderr == "err a b c\n"


@pytest.mark.parametrize(
    ("arguments", "status"), [(("exit", "0"), 0), (("exit", "2"), 2), (("raise",), 1), (("die",), 139)]
)
def test_the_exit_status_is_the_commands(run: Run, arguments: tuple[str, ...], status: int) -> None:
    result = run(*arguments)
    assert result.returncode == status
    assert ("this went wrong" in result.stderr) == (arguments == ("raise",))


def test_the_code_is_read_when_the_command_starts(run: Run, package: Path) -> None:
    assert run("exit", "0").returncode == 0
    file = package / "vap/cli.py"
    file.write_text(CLI.replace("sys.exit(int(rest[0]))", "sys.exit(77)"))
    try:
        assert run("exit", "0").returncode == 77
    finally:
        file.write_text(CLI)


@pytest.mark.parametrize(
    "changes",
    [{"OMP_NUM_THREADS": "7"}, {"PYTHONHASHSEED": "3"}, {vap.workflow.warm.VARIABLE: "/nowhere/socket"}],
)
def test_other_settings_than_the_warm_process_has_start_cold(run: Run, changes: dict[str, str]) -> None:
    result = run("say", **changes)
    assert result.returncode == 0
    assert result.stdout.startswith("cold\n")
    assert "False" in result.stdout


@pytest.mark.parametrize("catches", [True, False])
def test_sigterm_reaches_the_work(
    warm: tuple[dict[str, str], int, object], tmp_path: Path, catches: bool
) -> None:
    started = tmp_path / "started"
    arguments = ["wait", str(started), *(["catch"] if catches else [])]
    command = subprocess.Popen([sys.executable, "-m", "vap.cli", *arguments], env=warm[0])
    _until(lambda: started.exists() and bool(started.read_text()))
    command.send_signal(signal.SIGTERM)
    assert command.wait(timeout=30) == 143
    assert not _alive(int(started.read_text()))


def test_a_killed_command_takes_its_work_with_it(
    warm: tuple[dict[str, str], int, object], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    command = subprocess.Popen([sys.executable, "-m", "vap.cli", "wait", str(started)], env=warm[0])
    _until(lambda: started.exists() and bool(started.read_text()))
    command.kill()
    command.wait()
    _until(lambda: not _alive(int(started.read_text())), 10)


def test_nonsense_at_the_door_harms_no_one(run: Run, warm: tuple[dict[str, str], int, object]) -> None:
    import socket

    for message in (b"", b"abc", b"\0\0\0\2{}", b"\0\0\0\5hello"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.connect(warm[0][vap.workflow.warm.VARIABLE])
            line.sendall(message)
    assert run("exit", "5").returncode == 5


def test_it_ends_with_its_owner_and_after_its_jobs(
    warm: tuple[dict[str, str], int, subprocess.Popen[str]], tmp_path: Path
) -> None:
    environment, process, owner = warm
    started = tmp_path / "started"
    arguments = ["wait", str(started), "catch"]
    command = subprocess.Popen([sys.executable, "-m", "vap.cli", *arguments], env=environment)
    _until(lambda: started.exists() and bool(started.read_text()))
    owner.kill()
    owner.wait()
    time.sleep(0.5)
    assert _alive(process)  # a job goes on
    command.terminate()
    assert command.wait(timeout=30) == 143
    _until(lambda: not _alive(process), 10)
    assert not Path(environment[vap.workflow.warm.VARIABLE]).parent.exists()


SNAKEFILE = """
import vap.workflow.warm

onstart:
    vap.workflow.warm.start()

rule all:
    output: "said"
    shell: "until [ -e $VAP_WARM ]; do sleep 0.1; done; python -m vap.cli say </dev/null >{output}"
"""


def test_a_job_of_snakemake_starts_warm(package: Path, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment |= {"PYTHONPATH": str(package), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=180)
    assert (tmp_path / "said").read_text().startswith("out ")
