"""dvc.yaml is the record; the Snakefile, the code and params.yaml must agree with it."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from projects import CHECKOUT, Project, lay_out

from vap import pipeline
from vap.cli import app
from vap.closure import closure, module_file
from vap.params import Params
from vap.runs import method_of

MARK = ".snakemake/stale/"
TARGETS = {"all", "results/tables/table2.csv", "results/tables/table3.csv"}
RUNS = "config/demo.yaml with further runs"  # what no profile asks for
RATIO = {
    "downstream.sources": ["stylegan", "cbdm", "uvit", "vap"],
    "downstream.generator_data": ["full", "ratio"],
    "downstream.generator_ratios": ["1", "10"],
    "downstream.generators": {
        "images": ["cbdm"],
        "adversary": ["stylegan"],
        "latents": ["uvit"],
        "prompts": ["vap"],
    },
}
PARAMS_FILES = ["params.yaml", *sorted(f"config/{p.name}" for p in CHECKOUT.glob("config/*.yaml"))]
ALL_PARAMS = [*PARAMS_FILES, RUNS]

# Keys of params.yaml that no stage tracks, and why.
UNTRACKED = {
    "compute": "how a stage runs, not what it makes",
    "caption.concurrency": "how many requests at once changes no answer",
    "caption.max_failed": "how many images may fail changes no answer",
    "caption.timeout": "how long to wait for an answer does not change it",
    "caption.vllm.command": "where vLLM is installed changes no answer",
    "caption.vllm.data_parallel_size": "how many copies of the model answer does not change an answer",
    "caption.vllm.env": "telemetry, paths and the like",
    "caption.vllm.start_timeout": "how long to wait for the server changes no answer",
    "caption.vllm.tensor_parallel_size": "how many GPUs share the model changes last digits at most",
    "downstream.generator_ratios": "follows from ratios and generator_data: the graph itself",
    "downstream.generators": "follows from sources, learns_from and generator_data: the graph itself",
    "learns_from": "decides which of two stages a method has: the graph itself",
}
# What a stage's code reads but does not track, and why; `compute` aside.
ONLY_SHOWN = {("evaluate", "sample.n"): "told in an error message"}
# What is read for one kind of stage of a command alone.
ONLY_FOR = {"ablation.other": ("sample-across",)}
# What is in the command's run name in place of a setting.
NAMED = {"seed": "-seed"}


# ── the two graphs ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """A stage as either tool sees it: paths, and keys of params.yaml."""

    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[str]
    command: str = ""  # DVC's alone


Graph = dict[str, Stage]


def dvc_graph(root: Path) -> Graph:
    """The stages of dvc.yaml; a folder among the deps is replaced by the other stages' outs in it."""
    from dvc.dependency import ParamsDependency
    from dvc.repo import Repo

    with contextlib.chdir(root), Repo() as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}
    outs = {out.def_path for stage in stages.values() for out in stage.outs}
    graph = {}
    for name, stage in stages.items():
        own = {out.def_path for out in stage.outs}
        deps: set[str] = set()
        params: set[str] = set()
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                params.update(dep.params)
                continue
            inside = {out for out in outs - own if out.startswith(f"{dep.def_path}/")}
            deps |= inside or {dep.def_path}
        graph[name] = Stage(frozenset(deps), frozenset(own), frozenset(params), stage.cmd)
    return graph


def snakemake_graph(root: Path, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """The jobs of `snakemake --forceall`, by the DVC stage that each runs."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import (
        ConfigSettings,
        DAGSettings,
        OutputSettings,
        Quietness,
        ResourceSettings,
    )

    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(sys.path))  # Snakemake adds the project to it
    monkeypatch.setattr(pipeline, "stale_stages", set)
    pipeline.dvc_stages.cache_clear()
    graph = {}
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(ResourceSettings(cores=1), ConfigSettings(), snakefile=root / "Snakefile")
        inner = workflow.dag(DAGSettings(forceall=True, targets=TARGETS)).workflow_api._workflow
        inner._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        inner._build_dag()
        for job in inner.dag.jobs:
            if job.rule.name == "all":
                continue
            (name,) = re.findall(r"^vap stage (\S+)", job.shellcmd)
            marks = [path for path in job.input if path.startswith(MARK)]
            assert marks == [MARK + name], f"{name} waits for the mark of another stage: {marks}"
            assert name not in graph, f"two jobs run {name}"
            graph[name] = Stage(
                frozenset({str(path) for path in job.input} - set(marks)),
                frozenset(map(str, job.output)),
                frozenset(job.params.settings),
            )
    pipeline.dvc_stages.cache_clear()
    return graph


def differences(dvc: Graph, snakemake: Graph) -> list[str]:
    """A line for all that one graph has and the other lacks."""
    both = (("dvc.yaml", dvc, snakemake), ("the Snakefile", snakemake, dvc))
    lines = []
    for where, one, other in both:
        lines += [f"{name}: only in {where}" for name in one.keys() - other.keys()]
        for name in one.keys() & other.keys():
            for kind in ("deps", "outs", "params"):
                missing = getattr(one[name], kind) - getattr(other[name], kind)
                lines += [f"{name}: {kind}: {what}: only in {where}" for what in missing]
    return sorted(lines)


def with_params(project: Project, file: str) -> None:
    """Put a params file in force, with a stand-in for each raw folder that is not in the repository."""
    (project.root / "params.yaml").write_bytes((CHECKOUT / file.partition(" ")[0]).read_bytes())
    if file == RUNS:
        project.edit_params({"seeds": [1, 27], **RATIO})
    for dataset in project.params()["datasets"]:
        (project.root / "data/raw" / dataset).mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return lay_out(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def graph_of(project: Project) -> Callable[[str], Graph]:
    """DVC's, of a params file."""

    @cache
    def graph_of(file: str) -> Graph:
        with_params(project, file)
        return dvc_graph(project.root)

    return graph_of


@pytest.fixture(scope="module")
def graph(graph_of: Callable[[str], Graph]) -> Graph:
    """DVC's, of params.yaml as it is."""
    return graph_of("params.yaml")


@pytest.mark.parametrize("file", ALL_PARAMS)
def test_both_tools_have_one_graph(project: Project, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_params(project, file)
    dvc = dvc_graph(project.root)
    assert differences(dvc, snakemake_graph(project.root, monkeypatch)) == []
    assert set(pipeline.stage_names(project.params())) == dvc.keys()  # the marks that are made


def test_what_keeps_the_two_tools_from_disturbing_each_other(project: Project) -> None:
    from dvc.repo import Repo

    with contextlib.chdir(project.root), Repo() as repo:
        outs = [out for stage in repo.index.stages for out in stage.outs]
        kinds = repo.config["cache"]["type"]
    assert all(out.use_cache and not out.persist for out in outs)
    assert not {"hardlink", "symlink"} & set(kinds)  # those make outputs read-only
    ignored = (project.root / ".dvcignore").read_text(encoding="utf-8").split()
    assert {"__pycache__/", ".snakemake_timestamp"} <= set(ignored)
    rules = "".join(
        path.read_text(encoding="utf-8")
        for path in [project.root / "Snakefile", *project.root.glob("workflow/rules/*.smk")]
    )
    assert not re.search(r"\b(protected|temp|pipe|touch|cache)\(", rules)


def drop(stage: str, kind: str, entry: str) -> Callable[[dict[str, Any]], None]:
    return lambda stages: stages[stage][kind].remove(entry)


def rename(stages: dict[str, Any]) -> None:
    stages["encoding"] = stages.pop("encode")


def add_matrix_item(stages: dict[str, Any]) -> None:
    stages["sample-latents"]["matrix"]["method"] = "${methods}"


@pytest.mark.parametrize(
    ("drift", "told"),
    [
        (
            drop("encode", "deps", "data/prepared/${item.dataset}.arrow"),
            r"encode@\S+: deps: data/prepared/\S+: only in the Snakefile",
        ),
        (
            drop("figure", "deps", "results/samples/${item.dataset}"),
            r"figure@\S+: deps: results/samples/\S+: only in the Snakefile",
        ),
        (
            drop("prepare", "deps", "vap/datasets"),
            r"prepare@\S+: deps: vap/datasets: only in the Snakefile",
        ),
        (
            drop("table", "outs", "results/tables/table1.md"),
            r"table: outs: results/tables/table1.md: only in the Snakefile",
        ),
        (
            drop("sample-prompts", "params", "method.${item.method}.sample"),
            r"sample-prompts@\S+: params: method.vap.sample: only in the Snakefile",
        ),
        (rename, r"encoding@\S+: only in dvc.yaml"),
        (add_matrix_item, r"sample-latents@\S+-vap: only in dvc.yaml"),
    ],
    ids=["data", "folder", "code", "out", "params", "name", "matrix"],
)
def test_a_drift_is_told(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    snakemake_now: Graph,
    drift: Callable[[dict[str, Any]], None],
    told: str,
) -> None:
    with_params(project, "params.yaml")
    file = project.root / "dvc.yaml"
    before = file.read_text(encoding="utf-8")
    record = yaml.safe_load(before)
    drift(record["stages"])
    try:
        file.write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
        lines = differences(dvc_graph(project.root), snakemake_now)
    finally:
        file.write_text(before, encoding="utf-8")
    assert any(re.fullmatch(told, line) for line in lines), lines


@pytest.fixture(scope="module")
def snakemake_now(project: Project) -> Iterator[Graph]:
    """Snakemake's, of params.yaml as it is."""
    with pytest.MonkeyPatch.context() as patch:
        with_params(project, "params.yaml")
        yield snakemake_graph(project.root, patch)


# ── commands and code ───────────────────────────────────────────────────────────────────────────────


def test_the_commands_are_those_of_vap(graph_of: Callable[[str], Graph]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, stage in graph_of(RUNS).items():
        program, verb, *arguments = stage.command.split()
        assert (program, verb in commands) == ("vap", True), name
        commands[verb].make_context(verb, arguments)  # parsed, not run


def needed(command: str) -> frozenset[str]:
    """The package's files that a stage uses: imported, named in a string, or loaded as its method."""
    verb, _, name = [*command.split()[1:], "", ""][:3]
    return files_of(verb, method_of(name))


@cache
def files_of(verb: str, method: str) -> frozenset[str]:
    modules = {f"vap.stages.{verb}"}
    while True:
        files = set(closure(modules))
        found = modules | {name for file in files for name in modules_in_strings(file)}
        if "vap/methods/base.py" in files:  # whoever imports it loads a method by name
            found.add(f"vap.methods.{method}")
        if found == modules:
            break
        modules = found
    if "vap/captioning/questions.py" in files:
        files |= set(QUESTIONS)
    return frozenset(files)


@cache
def modules_in_strings(file: str) -> set[str]:
    """E.g. of a subprocess: python -m vap.captioning.describer_server."""
    tree = ast.parse((CHECKOUT / file).read_text(encoding="utf-8"))
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return {text for text in texts if re.fullmatch(r"vap(\.\w+)+", text) and module_file(text)}


def covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")


DATA_FILES = sorted(
    path.relative_to(CHECKOUT).as_posix()
    for path in (CHECKOUT / "vap").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)
QUESTIONS = [file for file in DATA_FILES if file.startswith("vap/captioning/questions/")]


def code_deps(stage: Stage) -> set[str]:
    return {dep for dep in stage.deps if dep.startswith("vap/")}


ABLATIONS = {
    "ablation": ["vap_without_pcm"],
    "unseen": ["vap", "vap_without_pcm"],
    "across": ["vap", "vap_without_pcm"],
}


@cache
def methods_of(kind: str) -> list[str]:
    """The methods that any params file lists under learns_from.KIND."""
    files = [yaml.safe_load((CHECKOUT / file).read_text(encoding="utf-8")) for file in PARAMS_FILES]
    return sorted({method for data in files for method in data["learns_from"].get(kind, [])})


def kindred(name: str, command: str) -> list[str]:
    """A stage's command, and for train-KIND and sample-KIND that of every method of the kind.

    The methods of a kind share one entry of dvc.yaml, which names their own files by ${item.method}; what
    else it declares serves some of them.
    """
    kind = name.partition("@")[0].partition("-")[2]
    kind = kind.removesuffix("-seed").removesuffix("-ratio")
    before, after = command.split()[:3], command.split()[4:]
    methods = ABLATIONS.get(kind) or methods_of(kind)
    return [command, *(" ".join([*before, method, *after]) for method in methods)]


@pytest.mark.parametrize("file", ALL_PARAMS)
def test_all_code_of_a_stage_is_declared(graph_of: Callable[[str], Graph], file: str) -> None:
    undeclared = {
        f"{name.partition('@')[0]}: {file}"
        for name, stage in graph_of(file).items()
        for file in needed(stage.command)
        if not any(covers(dep, file) for dep in code_deps(stage))
    }
    assert sorted(undeclared) == []


@pytest.mark.parametrize("file", ALL_PARAMS)
def test_all_declared_code_is_used(graph_of: Callable[[str], Graph], file: str) -> None:
    unused = {
        f"{name.partition('@')[0]}: {dep}"
        for name, stage in graph_of(file).items()
        for dep in code_deps(stage)
        if not any(covers(dep, file) for command in kindred(name, stage.command) for file in needed(command))
    }
    assert sorted(unused) == []


def test_the_describer_and_the_methods_are_found_though_not_imported() -> None:
    assert "vap/captioning/measured.py" in needed("vap caption phantom-isic2018")
    assert "vap/methods/vap.py" in needed("vap sample phantom-isic2018 vap seen")
    assert "vap/methods/vap.py" not in needed("vap sample phantom-isic2018 uvit seen")
    assert "vap/methods/vap.py" not in needed("vap evaluate phantom-isic2018 vap seen")


def test_the_questions_are_the_only_data_that_a_stage_reads() -> None:
    """A further data file needs a line in `needed`, as the questions have one."""
    assert QUESTIONS
    assert set(DATA_FILES) - set(QUESTIONS) == {"vap/costs.yaml"}  # `vap cost` is no stage


# ── settings ────────────────────────────────────────────────────────────────────────────────────────


def leaves(section: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(section, dict):
        for key, value in section.items():
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix(".")


def under(key: str, keys: set[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in keys)


@pytest.mark.parametrize("file", PARAMS_FILES)
def test_every_setting_is_tracked(project: Project, file: str) -> None:
    with_params(project, file)
    tracked = {key for stage in dvc_graph(project.root).values() for key in stage.params}
    params = project.params()
    listed = {name: params["method"][name] for name in params["methods"]}  # others may stand ready there
    keys = set(leaves({**params, "method": listed}))
    assert sorted(key for key in keys if not under(key, tracked | UNTRACKED.keys())) == []
    assert sorted(key for key in tracked if under(key, set(UNTRACKED))) == []
    for key in UNTRACKED:
        assert any(under(leaf, {key}) for leaf in keys), f"{key} is no longer a setting"


def read(verb: str) -> set[str]:
    """Sections, or section.key, of `params` that a stage's module reads."""
    tree = ast.parse((CHECKOUT / f"vap/stages/{verb}.py").read_text(encoding="utf-8"))
    found: dict[ast.AST, str] = {}
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "run_of":
            found[node] = "seed"
        chain: list[str] = []
        part: ast.AST = node
        while isinstance(part, ast.Attribute):
            chain.insert(0, part.attr)
            part = part.value
        if chain and isinstance(part, ast.Name) and part.id == "params":
            found[node] = ".".join(key for key in chain if not key.startswith("model_"))
            inner.add(node.value)  # type: ignore[attr-defined]
    whole = {key for node, key in found.items() if node not in inner}
    return {key for key in whole if key.split(".")[0] in Params.model_fields}


@pytest.mark.parametrize("file", ["params.yaml", RUNS])
def test_a_stage_tracks_what_its_code_reads(graph_of: Callable[[str], Graph], file: str) -> None:
    for name, stage in graph_of(file).items():
        verb = stage.command.split()[1]
        keys = {key for key in read(verb) if not under(key, {"compute"})}
        keys -= {key for where, key in ONLY_SHOWN if where == verb}
        kind = name.partition("@")[0]
        keys -= {key for key, kinds in ONLY_FOR.items() if kind not in kinds}
        if verb in ("train", "sample"):
            keys -= {key for key, suffix in NAMED.items() if kind.endswith(suffix)}
        for key in keys:  # `caption` is read through its keys, `prepare.image_size` is one
            assert under(key, set(stage.params)) or (
                "." not in key and any(under(known, {key}) for known in stage.params)
            ), f"{name} reads {key} and does not track it"
        for known in stage.params:
            assert under(known, keys) or known in keys or known.split(".")[0] in keys, (
                f"{name} tracks {known} and does not read it"
            )
