"""dvc.yaml, the Snakefile, the plan, the code and params.yaml must agree."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import subprocess
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

from vap.cli import app
from vap.common.code import SILENT, STAGES, closure, imports, module_file, what_it_does
from vap.params import Params
from vap.profiles import profile_text
from vap.workflow import plan
from vap.workflow import snakemake as pipeline

MARK = ".snakemake/stale/"
PLAN = "data/plan/"
TARGETS = {"all", "results/tables/table2.csv", "results/tables/table3.csv", "results/report.html"}
RUNS = "config/demo.yaml with further runs"  # what no profile asks for
FURTHER = {
    "methods": ["stylegan", "cbdm", "ldm", "dit", "uvit", "uvit_seed1", "vap", "vap_seed1", "vap_seed27"],
    "learns_from": {
        "images": ["stylegan", "cbdm", "stylegan_data1", "stylegan_data10"],
        "latents": ["ldm", "dit", "uvit", "uvit_seed1", "uvit_data1", "uvit_data10"],
        "prompts": ["vap", "vap_seed1", "vap_seed27", "vap_data1", "vap_data10"],
    },
    "downstream.sources": ["stylegan", "uvit", "vap"],
    "downstream.generator_ratios": ["1", "10"],
}
PARAMS_FILES = ["params.yaml", *sorted(f"config/{p.name}" for p in CHECKOUT.glob("config/*.yaml"))]
ALL_PARAMS = [*PARAMS_FILES, RUNS]

# Keys of params.yaml that are in no plan, and why.
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
    "learns_from": "decides which of three stages a method has: the graph itself",
}
# What a stage's code reads and the plan does not hold for it, and why; `compute` aside.
ONLY_SHOWN = {("evaluate", "sample.n"): "told in an error message"}
# What a stage's code reads for some of its entries alone.
ELSEWHERE = {("sample", "ablation.other"): "the plan other/DATASET.json, of sample-across alone"}


# ── the two graphs ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """A stage as either tool sees it."""

    deps: frozenset[str]
    outs: frozenset[str]
    command: str = ""  # DVC's alone
    plans: frozenset[str] = frozenset()  # DVC's alone: its files under data/plan/, without folder and .json


Graph = dict[str, Stage]


def dvc_graph(root: Path) -> Graph:
    """The stages of dvc.yaml; a folder among the deps is replaced by the other stages' outs in it."""
    from dvc.repo import Repo

    with contextlib.chdir(root), Repo() as repo:
        stages = {stage.addressing: stage for stage in repo.index.stages}
    outs = {out.def_path for stage in stages.values() for out in stage.outs}
    graph = {}
    for name, stage in stages.items():
        own = {out.def_path for out in stage.outs}
        deps: set[str] = set()
        plans: set[str] = set()
        for dep in stage.deps:
            inside = {out for out in outs - own if out.startswith(f"{dep.def_path}/")}
            if dep.def_path.startswith(PLAN):
                plans.add(dep.def_path.removeprefix(PLAN).removesuffix(".json"))
            else:
                deps |= inside or {dep.def_path}
        if (
            name != "plan"
        ):  # the mark of every stage stands for its plan: the plan is made when Snakemake starts
            graph[name] = Stage(frozenset(deps), frozenset(own), stage.cmd, frozenset(plans))
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
    monkeypatch.setattr(pipeline, "keep", bool)
    pipeline.dvc_stages.cache_clear()
    graph = {}
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            ResourceSettings(cores=1), ConfigSettings(), snakefile=root / "workflow/Snakefile"
        )
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
            for kind in ("deps", "outs"):
                missing = getattr(one[name], kind) - getattr(other[name], kind)
                lines += [f"{name}: {kind}: {what}: only in {where}" for what in missing]
    return sorted(lines)


def text_of(file: str) -> str:
    """A params file, whole."""
    path = CHECKOUT / file.partition(" ")[0]
    return path.read_text(encoding="utf-8") if path.name == "params.yaml" else profile_text(path)


def with_params(project: Project, file: str) -> None:
    """Put a params file in force, with a stand-in for each raw folder that is not in the repository."""
    (project.root / "params.yaml").write_text(text_of(file), encoding="utf-8")
    if file == RUNS:
        project.edit_params(FURTHER)
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
        for path in [project.root / "workflow/Snakefile", *project.root.glob("workflow/rules/*.smk")]
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
            drop("table", "outs", "results/tables/table1.md"),
            r"table: outs: results/tables/table1.md: only in the Snakefile",
        ),
        (rename, r"encoding@\S+: only in dvc.yaml"),
        (add_matrix_item, r"sample-latents@\S+-vap: only in dvc.yaml"),
    ],
    ids=["data", "folder", "out", "name", "matrix"],
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


# ── the plan ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("file", ALL_PARAMS)
def test_a_stage_depends_on_the_plan_of_its_command(graph_of: Callable[[str], Graph], file: str) -> None:
    """And of what its command names: its dataset, its run or its classifier."""
    for name, stage in graph_of(file).items():
        verb, *words = stage.command.split()[1:]
        plans = {path.partition("/")[0].removesuffix("-plus"): path for path in stage.plans}
        assert set(plans) - {"other"} == {verb}, name
        assert ("other" in plans) == name.startswith("sample-across"), name
        for path in stage.plans:
            assert path.partition("/")[2] in ("", *words), name
        assert path.startswith("classify-plus") == (verb == "classify" and words[-1] != "none"), name


@pytest.mark.parametrize("file", ALL_PARAMS)
def test_the_plan_has_what_stages_depend_on_and_nothing_else(
    project: Project, graph_of: Callable[[str], Graph], file: str, tmp_path: Path
) -> None:
    stages = graph_of(file).values()
    with_params(project, file)
    config = project.params()
    plan.write_plan(Params.model_validate(config), config, tmp_path / "plan")
    found = {path.relative_to(tmp_path / "plan").as_posix() for path in (tmp_path / "plan").rglob("*.json")}
    wanted = {f"{name}.json" for stage in stages for name in stage.plans}
    unused = {name for name in found - wanted if not name.startswith(("other/", "classify-plus/"))}
    assert (wanted - found, unused) == (set(), set())


def entry(name: str) -> plan.Entry:
    params = Params.model_validate(yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8")))
    return next(found for found in plan.entries(params) if found.name == name)


def code(name: str) -> set[str]:
    return set(closure(entry(name).modules))


def test_code_is_found_that_is_loaded_by_name_or_is_no_python() -> None:
    assert "vap/captioning/measured.py" in code("caption/phantom-isic2018")  # a process of its own
    assert {f for f in code("caption/phantom-isic2018") if f.endswith("questions/dermoscopy.yaml")}
    assert "vap/generators/vap/method.py" in code("sample/vap")
    assert "vap/generators/vap/method.py" not in code("sample/uvit")
    assert "vap/generators/uvit/method.py" in code("train/vap")  # it is built on it
    assert not {f for f in code("evaluate") if f.startswith("vap/generators/")}


def test_every_file_that_is_no_python_belongs_to_the_module_of_its_name() -> None:
    """A stage that reads a further one would not run again when it changes."""
    files = {
        path.relative_to(CHECKOUT).as_posix()
        for path in (CHECKOUT / "vap").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    known = {f for f in files if (CHECKOUT / f).parent.with_suffix(".py").is_file()}
    assert {f for f in files - known if not f.endswith("costs/rates.yaml")} == set()  # `vap cost` is no stage


def test_modules_that_a_stage_loads_are_in_its_plan(tmp_path: Path) -> None:
    """Seen in a process that imports the stage and its method."""
    for name in ("train/vap", "sample/stylegan", "evaluate", "classify-plus/maxvit", "figure"):
        modules = entry(name).modules
        program = f"import sys, json, {', '.join(modules)}\nprint(json.dumps([m.__file__ for n, m in "
        program += "sys.modules.items() if n.split('.')[0] == 'vap' and m.__file__]))"
        said = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=CHECKOUT
        )
        loaded = {Path(file).relative_to(CHECKOUT).as_posix() for file in json.loads(said.stdout)}
        silent = {f for f in loaded if not "".join(what_it_does((CHECKOUT / f).read_text("utf-8")))}
        assert loaded - silent - SILENT <= code(name), name


def test_no_room_depends_on_one_that_depends_on_it() -> None:
    """The packages of vap/, and its modules beside them, have an order: arrows point one way."""
    arrows: dict[str, set[str]] = {}
    for file in sorted((CHECKOUT / "vap").rglob("*.py")):
        room = room_of(file.relative_to(CHECKOUT).as_posix())
        found = {room_of(target.relative_to(CHECKOUT).as_posix()) for target in imports(file)}
        arrows.setdefault(room, set()).update(found - {room, "__init__"})
    order: list[str] = []
    while arrows:
        free = sorted(room for room, others in arrows.items() if not others - set(order))
        assert free, f"circles among {sorted(arrows)}"
        order += free
        arrows = {room: others for room, others in arrows.items() if room not in order}
    assert order.index("common") < order.index("datasets") < order.index("generators") < order.index("cli")


def room_of(path: str) -> str:
    """vap/metrics/store.py is in metrics, vap/cli.py is cli."""
    return path.split("/")[1].removesuffix(".py")


def test_few_modules_stand_outside_the_rooms() -> None:
    assert {path.stem for path in (CHECKOUT / "vap").glob("*.py")} == {
        *("__init__", "__main__", "cli", "params", "profiles", "runs")
    }
    for room in (CHECKOUT / "vap").iterdir():
        if room.is_dir() and room.name != "__pycache__":
            told = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
            assert told is not None, room.name
            assert {"In:", "Out:"} <= set(told.split()), room.name


SOURCE = '''"""What it is."""
import os  # a library

class A:
    """A class."""

    text = """one

    two  # three"""

    def f(self) -> str:
        """What it does
        at length.
        """

        # a comment
        return f"# {os.name}"
'''


def test_only_what_the_code_does_is_hashed() -> None:
    found = "".join(what_it_does(SOURCE))
    assert (
        found
        == '''import os
class A:
    text = """one

    two  # three"""
    def f(self) -> str:
        return f"# {os.name}"
'''
    )
    assert "".join(what_it_does(found)) == found
    compared = 0
    for path in sorted((CHECKOUT / "vap").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        with contextlib.suppress(IndentationError):  # of a function that has a docstring alone
            assert stripped(text) == stripped("".join(what_it_does(text))), path
            compared += 1
    assert compared > 100


def stripped(text: str) -> str:
    """The syntax tree without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


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
def test_every_setting_is_in_a_plan(project: Project, file: str) -> None:
    with_params(project, file)
    config = project.params()
    params = Params.model_validate(config)
    tracked = {key for found in plan.entries(params) for key in plan.content(found, config)["settings"]}
    listed = {name: config["method"][name] for name in params.rows}  # others may stand ready there
    keys = set(leaves({**config, "method": listed}))
    assert sorted(key for key in keys if not under(key, tracked | UNTRACKED.keys())) == []
    assert sorted(key for key in tracked if under(key, set(UNTRACKED))) == []
    for key in UNTRACKED:
        assert any(under(leaf, {key}) for leaf in keys), f"{key} is no longer a setting"


def test_a_run_has_the_seed_and_the_share_of_its_name() -> None:
    config = yaml.safe_load((CHECKOUT / "config/demo.yaml").read_text(encoding="utf-8"))
    config |= {"methods": FURTHER["methods"], "learns_from": FURTHER["learns_from"]}
    config["downstream"] |= {"sources": FURTHER["downstream.sources"], "generator_ratios": ["1", "10"]}
    found = {entry.name: plan.content(entry, config) for entry in plan.entries(Params.model_validate(config))}
    own, seed, share = (found[f"train/vap{more}"] for more in ("", "_seed27", "_data10"))
    assert seed["settings"] == own["settings"] | {"seed": 27}
    assert share["settings"] == own["settings"] | {"percent": 10}
    assert own["code"] == seed["code"] == share["code"]


def read(verb: str) -> set[str]:
    """Sections, or section.key, of `params` that a stage's module reads."""
    file = module_file(STAGES[verb])
    assert file is not None
    tree = ast.parse(file.read_text(encoding="utf-8"))
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
    whole = {"methods" if key in ("rows", "seeds_of") else key for key in whole}
    return {key for key in whole if key.split(".")[0] in Params.model_fields}


@pytest.mark.parametrize(
    "stage", [stage for stage in plan.SETTINGS if stage not in ("other", "classify-plus")]
)
def test_a_plan_holds_what_the_stages_code_reads(stage: str) -> None:
    keys = {key for key in read(stage) if not under(key, {"compute"})}
    keys -= {key for (where, key) in (*ONLY_SHOWN, *ELSEWHERE) if where == stage}
    planned = {re.sub(r"\{\w+\}", "*", key) for key in plan.SETTINGS[stage]}
    for key in keys:  # `caption` is read through its keys, `prepare.image_size` is one
        assert under(key, planned) or ("." not in key and any(under(known, {key}) for known in planned)), (
            f"{stage} reads {key}, and its plan lacks it"
        )
    for known in planned:
        assert under(known, keys) or known in keys or known.split(".")[0] in keys, (
            f"the plan of {stage} holds {known}, which its code does not read"
        )
