"""Which files of this package a stage uses, and what they do: their text without comments and docstrings.

Neither Snakemake nor DVC sees imports. The plan (vap/workflow/plan.py) holds the hashes of a stage's files,
so that a stage runs again when one of them does something else; an artefact's record holds one hash over all.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# These cannot change what a stage writes, and what they use is not followed: the values that params.py reads
# and hands on are in the plan by key, and the others only show, name or guard what is done.
SILENT = frozenset(
    f"vap/{name}.py"
    for name in ("__init__", "params", "common/yaml_files", "common/progress", "common/errors", "common/code")
)
MODULE = re.compile(r"vap(\.\w+)+")
STAGES = {  # the module that a stage's command runs
    "prepare": "vap.datasets.prepare",
    "caption": "vap.captioning.caption",
    "encode": "vap.prompts.encode",
    "latents": "vap.autoencoders.latents",
    "train": "vap.generators.train",
    "sample": "vap.sampling.sample",
    "evaluate": "vap.metrics.evaluate",
    "floor": "vap.metrics.floor",
    "classify": "vap.downstream.classify",
    "table": "vap.results.table",
    "table2": "vap.results.table2",
    "table3": "vap.results.table3",
    "figure": "vap.results.figure",
    "report": "vap.report.report",
}


def module_file(name: str) -> Path | None:
    """The file of a module of this package; None for any other module."""
    base = ROOT.joinpath(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if name.split(".")[0] == "vap" and file.is_file():
            return file
    return None


@cache
def imports(file: Path) -> frozenset[Path]:
    """The package's files that `file` imports directly, those within functions too."""
    names: list[str] = []
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return _files(names)


@cache
def uses(file: Path) -> frozenset[Path]:
    """The package's files that `file` uses directly.

    These are its imports; the modules that it names in a string, as for a process of their own; and the files
    in the folder beside it that has its name, which are its data.
    """
    if file.suffix != ".py":
        return frozenset()
    named = [
        node.value
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE.fullmatch(node.value)
    ]
    data = file.with_suffix("")
    beside = data.rglob("*") if data.is_dir() else ()
    own = {path for path in beside if path.is_file() and not path.suffix.startswith(".py")}
    return imports(file) | _files(named) | own


def _path(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _files(names: Iterable[str]) -> frozenset[Path]:
    """Those of modules, and of the packages that are imported on the way to them."""
    parts = [name.split(".") for name in names]
    on_the_way = {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}
    return frozenset(target for name in on_the_way if (target := module_file(name)))


def closure(modules: Iterable[str]) -> frozenset[str]:
    """Paths, relative to the project, of all that `modules` use, themselves included."""
    todo = [file for name in modules if (file := module_file(name))]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen and _path(file) not in SILENT:
            seen.add(file)
            todo.extend(uses(file))
    return frozenset(_path(file) for file in seen if _text_of(file))


def code_of(modules: Iterable[str]) -> dict[str, str]:
    """The closure's files, in order, each with the first 16 digits of the sha256 of what it does."""
    return {
        path: hashlib.sha256(_text_of(ROOT / path).encode()).hexdigest()[:16]
        for path in sorted(closure(modules))
    }


def code_hash(modules: Iterable[str]) -> str:
    """sha256 over these."""
    told = "".join(f"{path} {found}\n" for path, found in code_of(modules).items())
    return hashlib.sha256(told.encode()).hexdigest()


@cache
def _text_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    return "".join(what_it_does(text)) if file.suffix == ".py" else text


def what_it_does(source: str) -> Iterator[str]:
    """A module's lines without comments, docstrings and empty lines, which change nothing that it does."""
    lines = source.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip() + "\n"
    strings: set[int] = set()  # rows that continue a string: an empty one is part of it
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None:
            strings.update(range(node.lineno, node.end_lineno))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and not lines[first.lineno - 1][: first.col_offset].strip()
            ):
                docstrings.update(range(first.lineno - 1, first.end_lineno or first.lineno))
    for row, line in enumerate(lines):
        if row not in docstrings and (line.strip() or row in strings):
            yield line
