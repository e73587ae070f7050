"""Which files of this package a module imports, at any depth and wherever the import stands.

Neither Snakemake nor DVC sees imports: the declared code dependencies of the stages are checked against
this closure by a test, and an artefact's provenance records the closure's hash.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# These cannot change what a stage writes: the values that params.py reads and hands on are recorded by key,
# and the others only show, name or guard what is done.
SILENT = frozenset(
    f"vap/{name}.py" for name in ("__init__", "params", "yaml_files", "progress", "errors", "closure")
)


def module_file(name: str) -> Path | None:
    """The file of a module of this package; None for any other module."""
    base = ROOT.joinpath(*name.split("."))
    for file in (base.with_suffix(".py"), base / "__init__.py"):
        if name.split(".")[0] == "vap" and file.is_file():
            return file
    return None


@cache
def imports(file: Path) -> frozenset[Path]:
    """The package's files that `file` imports directly, function-level imports included."""
    found: set[Path] = set()
    package = file.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        found.update(target for name in names if (target := module_file(name)))
    return frozenset(found)


def closure(modules: Iterable[str]) -> frozenset[str]:
    """Paths, relative to the project, of all that `modules` import, themselves included; no empty file."""
    todo = [file for name in modules if (file := module_file(name))]
    seen: set[Path] = set()
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            todo.extend(imports(file))
    paths = {file.relative_to(ROOT).as_posix() for file in seen if file.stat().st_size}
    return frozenset(paths - SILENT)


def code_hash(modules: Iterable[str]) -> str:
    """sha256 over the closure's paths and contents."""
    digest = hashlib.sha256()
    for path in sorted(closure(modules)):
        digest.update(f"{path}\n".encode())
        digest.update((ROOT / path).read_bytes())
    return digest.hexdigest()
