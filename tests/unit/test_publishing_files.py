"""The files by which people find, install and run the project."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from toy import PROJECT


def read(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text(encoding="utf-8"))


def test_the_catalog_finds_the_workflow() -> None:
    usage = read(".snakemake-workflow-catalog.yml")["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert (PROJECT / "config/README.md").is_file()
    text = (PROJECT / "workflow/Snakefile").read_text(encoding="utf-8")
    included = re.findall(r'include: "(.+)"', text)
    assert included
    assert [name for name in included if not (PROJECT / "workflow" / name).is_file()] == []
    assert not (PROJECT / "Snakefile").exists()  # snakemake would read it first


def test_the_environment_installs_the_lock() -> None:
    *packages, pip = read("environment.yml")["dependencies"]
    assert {re.split("[=<>]", name)[0] for name in packages} == {"python", "git", "make", "pip"}
    assert pip == {"pip": ["--require-hashes", "-r requirements.lock"]}


def test_continuous_integration_runs_what_is_run_here() -> None:
    workflow = read(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    actions = [step["uses"] for step in steps if "uses" in step]
    assert actions
    assert [name for name in actions if not re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", name)] == []
    targets = re.findall(r"^([\w-]+):.*##", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M)
    asked = re.findall(r"^make ([\w-]+)", (PROJECT / ".ci/run").read_text(encoding="utf-8"), re.M)
    assert {"check", "docs", "test"} <= set(asked) <= set(targets)


def test_the_image_copies_what_is_there() -> None:
    text = (PROJECT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    words = [line.split() for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    stages = {line[-1]: line[1] for line in words if line[0] == "FROM"}
    assert {"cpu", "cuda"} <= set(stages)
    assert re.search(r":\d+\.\d+\.\d+-", stages["cpu"])
    assert ["ARG", "DEVICE=cpu"] in words
    copied = [name for line in words if line[0] == "COPY" for name in line[1:-1]]
    assert "requirements.lock" in copied
    assert [name for name in copied if not (PROJECT / name).exists()] == []
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".venv", "results", "weights"} <= set(ignored)
    assert (PROJECT / ".containerignore").read_bytes() == (PROJECT / ".dockerignore").read_bytes()


@pytest.mark.parametrize("key", ["cff-version", "message", "title", "authors", "version"])
def test_the_citation_has_what_its_schema_asks(key: str) -> None:
    assert read("CITATION.cff")[key]


def test_the_citation_has_the_packages_version() -> None:
    from vap import __version__

    assert read("CITATION.cff")["version"] == __version__
