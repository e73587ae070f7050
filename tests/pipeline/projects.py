"""Copies of this checkout for the tests to run: a git repository with DVC, in a folder of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
PARTS = (
    ".dvc/.gitignore",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "config",
    "data/raw",
    "dvc.yaml",
    "environment.yml",
    "params.yaml",
    "profiles",
    "vap",
    "workflow",
)
PROGRAMS = Path(sys.executable).parent
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Result:
    """What a program said and how it ended."""

    status: int
    output: str  # both streams, without colours

    def ok(self) -> Result:
        assert self.status == 0, self.output
        return self


@dataclass
class Project:
    """A copy of the checkout.

    Attributes:
        root: its folder.
        programs: folder to search for programs first, where a stand-in for `vap` may be.
    """

    root: Path
    programs: Path | None = None
    env: dict[str, str] = field(default_factory=dict)

    # ── programs ────────────────────────────────────────────────────────────────────────────────

    def environment(self, **more: str) -> dict[str, str]:
        path = [str(p) for p in (self.programs, PROGRAMS) if p] + [os.environ["PATH"]]
        own = self.root.parent
        return {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": str(self.root),  # the copy's vap, not the installed one
            "CALLS": str(own / "calls"),
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(own / "dvc-state"),
            "XDG_CACHE_HOME": str(own / "user-cache"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
            **self.env,
            **more,
        }

    def run(self, *command: str, **env: str) -> Result:
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(**env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        return Result(done.returncode, ANSI.sub("", done.stdout))

    def git(self, *words: str) -> str:
        return self.run("git", *words).ok().output

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")

    def dvc(self, *words: str, **env: str) -> Result:
        return self.run("dvc", *words, **env)

    def snakemake(self, *words: str, **env: str) -> Result:
        return self.run("snakemake", "--cores", "2", *words, **env)

    # ── what was executed ───────────────────────────────────────────────────────────────────────

    def calls(self) -> set[str]:
        """The stages executed since this was last asked; each at most once."""
        log = self.root.parent / "calls"
        names = log.read_text(encoding="utf-8").split() if log.exists() else []
        log.unlink(missing_ok=True)
        names = [name.replace("@phantom-isic2018", "") for name in names]
        assert len(names) == len(set(names)), f"executed twice: {sorted(names)}"
        return set(names)

    def hang(self, *command: str, at: str) -> subprocess.Popen[str]:
        """A program that runs until the stage `at` hangs."""
        flag = self.root.parent / "hanging"
        flag.unlink(missing_ok=True)
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment(HANG=at),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while not flag.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)
        return process

    # ── files ───────────────────────────────────────────────────────────────────────────────────

    def params(self) -> dict[str, Any]:
        data: dict[str, Any] = yaml.safe_load((self.root / "params.yaml").read_text("utf-8"))
        return data

    def edit_params(self, changes: Mapping[str, Any]) -> None:
        """Set dotted keys of params.yaml."""
        data = self.params()
        for key, value in changes.items():
            *parents, last = key.split(".")
            section = data
            for part in parents:
                section = section[part]
            section[last] = value
        (self.root / "params.yaml").write_text(yaml.safe_dump(data, sort_keys=False), "utf-8")

    def record(self) -> Any:
        """What dvc.lock says."""
        return yaml.safe_load((self.root / "dvc.lock").read_text("utf-8"))

    def outs(self) -> dict[str, bytes]:
        """Path to content of all that the pipeline has made."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for top in ("data", "results")
            for path in sorted((self.root / top).rglob("*"))
            if path.is_file()
            and path.name != ".snakemake_timestamp"
            and "raw" not in path.relative_to(self.root).parts
        }

    def copy(self, folder: Path) -> Project:
        """This project as it is, elsewhere."""
        shutil.copytree(self.root, folder / "project", symlinks=True)
        return Project(folder / "project", self.programs, self.env)


def lay_out(folder: Path, programs: Path | None = None) -> Project:
    """The checkout's working tree as a new repository at folder/project."""
    project = Project(folder / "project", programs)
    for part in PARTS:
        source, target = CHECKOUT / part, project.root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    project.git("init", "-q", "-b", "main")
    project.commit()
    return project


def stand_in(folder: Path) -> Path:
    """A folder with an executable `vap` that is the stand-in."""
    folder.mkdir(parents=True)
    program = folder / "vap"
    source = Path(__file__).with_name("stand_in.py").read_text(encoding="utf-8")
    program.write_text(f"#!{sys.executable} -I\n{source}", encoding="utf-8")
    program.chmod(0o755)
    return folder


def stop(process: subprocess.Popen[str], how: signal.Signals) -> str:
    """Send `how` to the whole process group, as a terminal or a batch system does; its last words."""
    os.killpg(process.pid, how)
    words = ANSI.sub("", process.communicate(timeout=60)[0])
    gone = time.monotonic() + 30
    while time.monotonic() < gone:  # dvc refuses, rightly, while another that holds its lock is there
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    return words
