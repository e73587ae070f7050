"""params.yaml, its profiles and dvc.yaml as they are written: YAML without a key twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vap.common.errors import VapError

Twice = tuple[str, int, int]
MOST = 100_000  # values of a file with its aliases written out: a few lines can stand for billions


def read_yaml(path: Path, what: str, absent: str) -> Any:
    """The content of a YAML file. As DVC does, and PyYAML does not, a key that stands twice is refused.

    Args:
        what: the file should be, for errors.
        absent: what to do where there is none.

    Raises:
        VapError: the file is absent, a folder, not readable or no YAML, or has a key twice.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            _written_out(node, {})
            twice = next(_twice(node), None)  # before `<<` is filled in: what it brings may be overridden
            data = None if node is None else loader.construct_document(node)  # type: ignore[no-untyped-call]
        finally:
            loader.dispose()  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise VapError(path, "no such file", what, absent) from None
    except OSError as error:
        fix = "move what is there, or make it readable"
        raise VapError(path, error.strerror or str(error), f"{what}: a file that can be read", fix) from None
    except RecursionError:
        found = "values nested too deep, or within themselves"
        raise VapError(path, found, "a YAML mapping", "correct the file") from None
    except OverflowError as error:
        raise VapError(path, str(error), "a YAML mapping", "write the values out") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # of Unicode, of an impossible date, of a tag (!!int) on what is none
        raise VapError(path, f"no YAML ({error})", "a YAML mapping", "correct the line") from None
    if twice is not None:
        key, first, second = twice
        where = f"line {first}" if first == second else f"lines {first} and {second}"
        raise VapError(
            f"{path}: {key}", f"this key twice, in {where}", "each key once", "remove one of the two"
        )
    return data


def _written_out(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """How many values `node` is with its aliases written out.

    Raises:
        OverflowError: more than MOST.
        RecursionError: it is within itself.
    """
    if node is None or id(node) in sizes:
        size = 0 if node is None else sizes[id(node)]
        if size < 0:
            raise RecursionError
        return size
    sizes[id(node)] = -1
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    total = 1 + sum(_written_out(part, sizes) for part in parts)
    if total > MOST:
        raise OverflowError(f"aliases that stand for more than {MOST} values")
    sizes[id(node)] = total
    return total


def _twice(node: yaml.Node | None, place: str = "", seen: set[int] | None = None) -> Iterator[Twice]:
    """The keys that stand twice in one mapping, as (dotted key, line, line again)."""
    seen = set() if seen is None else seen
    if node is None or id(node) in seen:  # an alias stands for what was looked at where it is written out
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _twice(item, f"{place}{i}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no key of ours: the constructor or the schema refuses it
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                yield f"{place}{key.value}", lines[name], line
            lines[name] = line
            yield from _twice(value, f"{place}{key.value}.", seen)
