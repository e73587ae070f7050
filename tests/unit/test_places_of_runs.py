"""Folders and users as people have them: links, clones of another user, users without a name or a home."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from vap.common.errors import VapError
from vap.workflow import snakemake as pipeline

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_text((CHECKOUT / name).read_text(encoding="utf-8"))
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    pipeline.dvc_stages.cache_clear()
    yield tmp_path
    pipeline.dvc_stages.cache_clear()


def link(name: str) -> None:
    elsewhere = Path("..", f"scratch-{name.replace('/', '-')}")
    elsewhere.mkdir()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(elsewhere.resolve())


@pytest.mark.parametrize("name", ["results", "data", "data/prepared", "results/models/phantom-isic2018"])
def test_a_folder_of_artefacts_that_is_a_link_is_refused(project: Path, name: str) -> None:
    link(name)
    with pytest.raises(VapError, match=f"{name}: found a symbolic link to .*scratch"):
        pipeline.check_places(yaml.safe_load(Path("params.yaml").read_text()))
    done = subprocess.run(  # as DVC runs a stage
        [sys.executable, "-m", "vap", "prepare" if name.startswith("data") else "train", "phantom-isic2018"],
        env={"DVC_STAGE": "prepare@phantom-isic2018", "PYTHONPATH": str(CHECKOUT), "HOME": str(project)}
        | ({} if name.startswith("data") else {"DVC_STAGE": "train-prompts@phantom-isic2018-vap"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: {name}: found a symbolic link" in done.stderr


@pytest.mark.parametrize("name", [".dvc/cache", "data/raw", "work", "logs"])
def test_other_folders_may_be_links(project: Path, name: str) -> None:
    link(name)
    pipeline.check_places(yaml.safe_load(Path("params.yaml").read_text()))


def test_a_clone_of_another_user(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    with pytest.raises(VapError, match=r"another user owns.*`git config --global --add safe.directory '/"):
        pipeline.find_programs()


def test_a_repository_that_git_cannot_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".git").write_text("gitdir: /nowhere\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    with pytest.raises(VapError, match=r"\.git: found not a git repository: /nowhere"):
        pipeline.find_programs()


NAMELESS = """
import os, pwd
def unknown(uid): raise KeyError(uid)
pwd.getpwuid = unknown
import getpass, pathlib
from vap.cli import name_user
name_user()
print(getpass.getuser(), pathlib.Path.home())
"""


def test_a_user_without_a_name_and_a_home(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS],
        env={"PYTHONPATH": str(CHECKOUT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("user"), done.stderr
    assert done.stdout.endswith(f"{tmp_path}\n")
