"""What dvc.lock and git say of a file: which stage wrote it, and which commit recorded that."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path
from typing import Any

import yaml


class Lock:
    """Which stage of dvc.lock wrote a file, and the commit that last recorded that stage.

    Without dvc.lock, git or a commit there is that much less to tell.
    """

    def __init__(self) -> None:
        there = Path("dvc.lock")
        self.now = stages_of(there.read_text(encoding="utf-8")) if there.is_file() else {}
        self.committed = stages_of(committed()) if self.now else {}
        self.of_out = {out["path"]: stage for stage, told in self.now.items() for out in told.get("outs", [])}

    def of(self, path: str) -> dict[str, Any] | None:
        """{stage, commit, uncommitted}: `commit` is None where no commit has the stage."""
        stage = self.of_out.get(path)
        if stage is None:
            return None
        commit = None
        if stage in self.committed:
            lines = f"/^  {stage}:$/"  # a name has letters, digits, @, - and _ only
            # to the next stage's first line; the last stage has none after it
            said = git("log", "-1", "--format=%h", f"-L{lines},/^  [^ ]/:dvc.lock") or git(
                "log", "-1", "--format=%h", f"-L{lines},:dvc.lock"
            )
            commit = said.split("\n", 1)[0] if said else None
        return {
            "stage": stage,
            "commit": commit,
            "uncommitted": bool(self.committed) and self.committed.get(stage) != self.now[stage],
        }


@functools.lru_cache(maxsize=2)
def parsed(text: str) -> Any:
    """What a text of dvc.lock holds; None where it is no YAML. The last two are kept: it takes a while."""
    try:
        return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError):
        return None


def stages_of(text: str) -> dict[str, Any]:
    """The stages of a text of dvc.lock by name; none where it cannot be read."""
    data = parsed(text)
    stages = data.get("stages") if isinstance(data, dict) else None
    return dict(stages) if isinstance(stages, dict) else {}


def committed() -> str:
    """dvc.lock of the last commit; empty where there is none."""
    return git("show", "HEAD:./dvc.lock") or ""


def git(*arguments: str) -> str | None:
    """What git says; None without git, repository or answer."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
