"""What Snakemake must know when it starts: that the settings are in order, and which stages DVC calls stale.

dvc.lock is the only record of what made the files on disk. Snakemake schedules; each of its jobs runs
its stage through DVC (vap.workflow.dvc), so that the record is right whichever tool was called.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vap.common.code import STAGES
from vap.common.errors import VapError, tell
from vap.common.yaml_files import read_yaml
from vap.params import ABSENT, PARAMS_FILE, Params, parse
from vap.workflow import owner, verify, warm
from vap.workflow.check import PARTS, absent_files
from vap.workflow.dvc import FORCED, keep, record, stale_stages
from vap.workflow.plan import value_of

MARKS = Path(".snakemake/stale")
CHECKED = Path(".snakemake/checked")  # the hash of what check_settings has found in order, a line a part
DVC_FILE = Path("dvc.yaml")
COMMANDS = [[command] for command in ("plan", *STAGES)]


def find_programs() -> None:
    """Put this Python's programs (dvc, vap) on PATH, and say what is missing.

    Raises:
        VapError: git or dvc is absent, or the project is no git checkout with DVC.
    """
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([here, os.environ.get("PATH", "")])
    for program, fix in (
        ("git", "install git"),
        ("dvc", "run `make setup`, then activate .venv"),
        ("vap", "run `make setup`, then activate .venv"),
    ):
        if shutil.which(program) is None:
            raise VapError(program, "no such program on PATH", f"{program}", fix)
    if not Path(".dvc").is_dir():
        raise VapError(".dvc", "no such folder", "the project's DVC settings", "clone the project with git")
    asked = subprocess.run(
        ["git", "rev-parse", "--git-dir"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    if "dubious ownership" in asked.stderr:
        fix = f"say once that you trust it: `git config --global --add safe.directory '{Path.cwd()}'`"
        raise VapError(".git", "a clone that another user owns, which git does not read", "your own", fix)
    if asked.returncode and Path(".git").exists():
        said = asked.stderr.removeprefix("fatal: ").strip() or f"exit status {asked.returncode}"
        raise VapError(".git", said, "a repository that git can read", "mend what git says")
    if asked.returncode:
        raise VapError(".git", "no git repository", "a clone", "clone the project, or run `git init`")


def mark(stages: Iterable[str], stale: set[str]) -> None:
    """Touch one file a stage: new when stale, as old as can be when fresh, so that Snakemake sees it."""
    MARKS.mkdir(parents=True, exist_ok=True)
    for name in stages:
        file = MARKS / name
        file.write_text(str(time.time_ns()) if name in stale else "fresh")
        if name not in stale:
            os.utime(file, (0, 0))


@functools.cache
def dvc_stages() -> Mapping[str, Any]:
    """The pipeline's stages in dvc.yaml as they are written, before their matrices are filled in.

    Stages that a user has added, with commands of their own, are DVC's business and left out.

    Raises:
        VapError: the file is absent, not readable, no YAML, or has a stage without a command.
    """
    data = read_yaml(DVC_FILE, "the pipeline's stages", "run from the project's folder")
    stages = data.get("stages") if isinstance(data, dict) else None
    fix = "correct it; `git diff dvc.yaml` shows what was changed"
    if not isinstance(stages, dict):
        found = "no such key" if stages is None else repr(stages)
        raise VapError(f"{DVC_FILE}: stages", found, "the stages by name", fix)
    own = {}
    for name, entry in stages.items():
        where = f"{DVC_FILE}: stages.{name}"
        if isinstance(entry, dict) and ("foreach" in entry or isinstance(entry.get("cmd"), list)):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("cmd"), str):
            raise VapError(where, "no command", "a stage with cmd", fix)
        if entry["cmd"].split()[:1] != ["vap"] or entry["cmd"].split()[1:2] not in COMMANDS:
            continue
        if not isinstance(entry.get("deps", []), list):
            raise VapError(f"{where}.deps", repr(entry["deps"]), "a list of files", fix)
        matrix = entry.get("matrix", {})
        if not isinstance(matrix, dict) or not all(isinstance(v, str | list) for v in matrix.values()):
            raise VapError(f"{where}.matrix", repr(matrix), "lists, or ${KEY} of one in params.yaml", fix)
        own[name] = entry
    return own


def _listed(config: Mapping[str, Any], key: str) -> Any:
    if (found := value_of(config, key)) is None:
        raise VapError(DVC_FILE, f"the name {key}", "a key of params.yaml", "correct one of them")
    return found


def stage_items(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str]]]:
    """All stages of dvc.yaml but the plan, in its order, with their matrix item: (name, key to value)."""
    for stage, entry in dvc_stages().items():
        if stage == "plan":
            continue
        matrix = {
            key: _listed(config, value.removeprefix("${").removesuffix("}"))
            if isinstance(value, str)
            else value
            for key, value in entry.get("matrix", {}).items()
        }
        for item in itertools.product(*matrix.values()):
            yield stage, dict(zip(matrix, map(str, item), strict=True))


def stage_names(config: Mapping[str, Any]) -> list[str]:
    """The names of these, "name" or "name@item-item", as DVC spells them."""
    return [stage_name(stage, item) for stage, item in stage_items(config)]


def stage_name(stage: str, item: Mapping[str, str]) -> str:
    """A stage of a matrix item as DVC spells it: "name" or "name@item-item"."""
    return "@".join(filter(None, (stage, "-".join(item.values()))))


def filled(text: str, item: Mapping[str, str]) -> str:
    """A command or path of dvc.yaml for one matrix item."""
    for key, value in item.items():
        text = text.replace(f"${{item.{key}}}", value)
    return text


def check_stage(name: str) -> None:
    """Before a stage that DVC runs does its work: its inputs are as recorded, and DVC can keep its outputs.

    Args:
        name: as DVC says it to its commands, in the variable DVC_STAGE.

    Raises:
        VapError: an input has another content, or an output would lie behind a symbolic link; or the settings
            cannot be read.
    """
    config = read_yaml(PARAMS_FILE, "the settings", ABSENT)
    for stage, item in stage_items(config):
        if stage_name(stage, item) == name:
            check_place(stage, item)
            deps = [filled(dep, item) for dep in dvc_stages()[stage].get("deps", []) if isinstance(dep, str)]
            verify.check_inputs(deps, record())


def check_places(config: Mapping[str, Any]) -> None:
    """Before the first job: `check_place` of all stages.

    Raises:
        VapError: as check_place.
    """
    for stage, item in stage_items(config):
        check_place(stage, item)


def check_place(stage: str, item: Mapping[str, str]) -> None:
    """DVC keeps no output behind a symbolic link: it would end the stage after its work, and delete that.

    Raises:
        VapError: a folder of one of the stage's outputs is such a link.
    """
    entry = dvc_stages()[stage]
    for out in itertools.chain(*(entry.get(kind) or [] for kind in ("outs", "metrics", "plots"))):
        for folder in Path(filled(next(iter(out)) if isinstance(out, dict) else str(out), item)).parents:
            if folder.is_symlink():
                raise VapError(
                    folder,
                    f"a symbolic link to {folder.readlink()}",
                    "a folder, as DVC keeps nothing behind a link",
                    "make it a folder; to save room here move the whole project there, or DVC's cache "
                    "(`dvc cache dir`); data/raw, work and logs may be links",
                )


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse settings that only Snakemake would see, and those that it would overlook.

    Raises:
        VapError: `--config` changed something, while DVC reads params.yaml alone; or params.yaml has a key
            twice, which Snakemake does not notice.
    """
    written = read_yaml(PARAMS_FILE, "the settings", ABSENT)
    if not isinstance(written, dict):
        raise VapError(PARAMS_FILE, type(written).__name__, "a mapping of settings", "`vap profile demo`")
    for key in {**written, **config}:
        if config.get(key) != written.get(key):
            raise VapError(
                f"--config {key}",
                repr(config.get(key)),
                "the value of params.yaml",
                "edit params.yaml instead",
            )


def check_settings(params: Params) -> None:
    """Refuse settings that only the methods' modules, the question files and timm can judge.

    These import torch and more, which takes seconds; so what was found in order is remembered.

    Raises:
        VapError: as vap.workflow.check.check.
    """
    found = [part.digest(params) for part in PARTS]
    known = CHECKED.read_text().split() if CHECKED.is_file() else []
    for part, digest in zip(PARTS, found, strict=True):
        if digest not in known:
            part.judge(params)
    if found != known:
        CHECKED.parent.mkdir(exist_ok=True)
        CHECKED.write_text("\n".join(found))


def set_up(config: Mapping[str, Any], *, main_process: bool) -> Params:
    """Check the settings and, in Snakemake's main process, mark the stages that DVC calls stale.

    Raises:
        VapError: params.yaml does not fit the schema, a program is missing, or DVC cannot read the project.
    """
    if main_process:
        check_config(config)  # first: of a section that stands twice the schema would miss the first half
    params = parse(dict(config))
    if main_process:
        find_programs()
        check_places(config)
        owner.take_over()
        check_settings(params)
        mark(stage_names(config), stale_stages())
        keep()
    return params


def force(jobs: Iterable[Iterable[str]]) -> None:
    """Have the jobs of this run execute stages that DVC calls up to date, as `--forcerun` and `--force` ask.

    Args:
        jobs: the inputs of the forced jobs, among which each has its mark.
    """
    marks = (Path(path) for inputs in jobs for path in inputs)
    os.environ[FORCED] = " ".join(mark.name for mark in marks if mark.parent == MARKS)


def warm_up(params: Params, *, local: bool) -> None:
    """Before the jobs of a run: say which weights are missing, and import the jobs' libraries once.

    The import is for jobs that run on this machine's CPU.
    """
    for line in absent_files(params):
        tell(line)
    if params.compute.warm_start and local and warm.worth_it(params.compute.device):
        warm.start()
