"""The profiles: config/demo.yaml is a whole params.yaml, and every other one holds what differs from it.

A profile is laid over config/demo.yaml, or over the profile that its key `base` names:

- A mapping is merged key by key. A list, a single value, and a mapping that is in braces there, are replaced.
- `dataset` is replaced as a whole, for its entries have names of the profile's own.
- Under `method` and `downstream.classifier` a profile may add entries. Any other key must be there already.
- The profile's opening comment replaces the one there. A comment at the end of a line replaces the one there,
  with the lines that continue it; a line without a comment keeps the one there.

Lines are merged, not values alone: what is written has the comments and the layout of config/demo.yaml.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from vap.common.errors import VapError
from vap.common.yaml_files import read_yaml
from vap.params import Params, parse

DEMO = "demo"  # the profile that is whole
WHOLE = ("dataset",)
OPEN = ("method", "downstream.classifier")
COMMENTS = 30  # the column where comments begin
LISTED = "`vap profile list` names profiles"

Edit = tuple[int, int, list[str]]  # lines [start, stop) and what stands in their place


def names(folder: Path) -> list[str]:
    """The names of the profiles in a folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def is_written(content: bytes, folder: Path) -> bool:
    """Whether this is the content of a params.yaml that `vap profile` writes for a profile in `folder`."""
    for name in names(folder):
        with contextlib.suppress(VapError):  # a profile that is unfinished has written nothing
            if profile_text(folder / f"{name}.yaml").encode() == content:
                return True
    return False


def load_profile(path: Path) -> Params:
    """The settings of a profile, checked.

    Raises:
        VapError: as profile_text and vap.params.parse.
    """
    return parse(read_profile(path), path)


def read_profile(path: Path) -> Any:
    """The settings of a profile as they are written in YAML."""
    return yaml.safe_load(profile_text(path))


def profile_text(path: Path, may_have_base: bool = True) -> str:
    """The params.yaml that the profile config/NAME.yaml stands for: what `vap profile NAME` writes.

    Raises:
        VapError: a file is absent or no YAML mapping, a key is unknown, or `base` names none to start from.
    """
    data = read_yaml(path, "a profile", LISTED)
    text = path.read_text(encoding="utf-8")
    if path.stem == DEMO:
        return text
    if not isinstance(data, dict):
        raise VapError(path, type(data).__name__, "a mapping of settings", "write what differs from the demo")
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
        raise VapError(path, "an alias (`*`)", "each value where it is used", "write the value out")
    base = data.get("base", DEMO)
    others = [name for name in names(path.parent) if name != path.stem]
    if base not in others:
        raise VapError(f"{path}: base", repr(base), f"one of {', '.join(others)}", "name one of these")
    if base != DEMO and not may_have_base:
        raise VapError(
            f"{path}: base", repr(base), f"{DEMO}: another profile starts from this one", "name another there"
        )
    return _merged(profile_text(path.with_stem(base), may_have_base=False), text, path)


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Entry:
    """A key with its value, where they stand in `lines`."""

    lines: list[str]
    key: yaml.ScalarNode
    value: yaml.Node

    @property
    def first(self) -> int:
        return self.key.start_mark.line

    @property
    def column(self) -> int:
        return self.key.start_mark.column

    @property
    def block(self) -> bool:
        """A mapping or a list on lines of its own."""
        return isinstance(self.value, yaml.CollectionNode) and not self.value.flow_style

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.value, yaml.MappingNode)

    @cached_property
    def end(self) -> int:
        """The line after the value's last; PyYAML's mark of a block lies at what follows it."""
        node = self.value
        while isinstance(node, yaml.CollectionNode) and not node.flow_style:
            node = node.value[-1][1] if isinstance(node, yaml.MappingNode) else node.value[-1]
        return node.end_mark.line + (node.end_mark.column > 0)

    @cached_property
    def stop(self) -> int:
        """The line after the comments that continue the last line's: they are further in than the key."""
        rest = self.lines[self.end :]
        further = takewhile(
            lambda line: line.find("#") > self.column and not line.split("#")[0].strip(), rest
        )
        return self.end + sum(1 for _ in further)

    @property
    def head(self) -> str:
        """`key: value`, or `key:` before a block."""
        after = self.lines[self.first].index(":", self.key.end_mark.column) + 1
        return self.lines[self.first][self.column : after if self.block else self.value.end_mark.column]

    @property
    def comment(self) -> str:
        """The comment behind the head; that of a value in braces over several lines is left alone."""
        if not self.block and self.end > self.first + 1:
            return ""
        rest = self.lines[self.first][self.column + len(self.head) :].strip()
        return rest if rest.startswith("#") else ""

    def moved(self, column: int) -> list[str]:
        """The entry's lines, its key in the given column."""
        bare = [(line, line.lstrip()) for line in self.lines[self.first : self.stop]]
        further = column - self.column
        return [text and " " * (len(line) - len(text) + further) + text for line, text in bare]


def _entries(lines: list[str], node: yaml.Node | None) -> dict[str, Entry]:
    """The entries of a mapping, by key."""
    assert isinstance(node, yaml.MappingNode)
    return {key.value: Entry(lines, key, value) for key, value in node.value}


def _merged(below: str, above: str, path: Path) -> str:
    """`above`, the text of the profile at `path`, laid over `below`, a whole params.yaml."""
    lines, own = below.splitlines(), above.splitlines()
    entries = _entries(own, yaml.compose(above, yaml.SafeLoader))
    entries.pop("base", None)
    found = _edits(_entries(lines, yaml.compose(below, yaml.SafeLoader)), entries, "", path)
    for start, stop, new in sorted(found, key=lambda edit: edit[:2], reverse=True):
        lines[start:stop] = new
    opening = list(takewhile(lambda line: line.startswith("#"), own))
    replaced = sum(1 for _ in takewhile(lambda line: line.startswith("#"), lines))
    return "\n".join([*opening, *lines[replaced:]]).lstrip("\n") + "\n"


def _edits(below: dict[str, Entry], above: dict[str, Entry], place: str, path: Path) -> Iterator[Edit]:
    """What the entries `above` change in the lines of the entries `below`, both of the mapping at `place`."""
    last = list(below.values())[-1]
    added: list[str] = []
    for name, new in above.items():
        key = f"{place}.{name}".lstrip(".")
        old = below.get(name)
        if old is None and place not in OPEN:
            expected = f"one of {', '.join(below)}"
            raise VapError(
                f"{path}: {key}", "an unknown key", expected, "correct the name, or remove the key"
            )
        if old is None:
            added += new.moved(last.column)
        elif key not in WHOLE and old.block and old.is_mapping and new.is_mapping:
            if new.comment:
                yield old.first, old.first + 1, [_line(old, old.head, new.comment)]
            yield from _edits(_entries(old.lines, old.value), _entries(new.lines, new.value), key, path)
        else:
            yield old.first, old.stop, _replacement(old, new)
    if added:
        yield last.stop, last.stop, added


def _replacement(old: Entry, new: Entry) -> list[str]:
    """The lines of `new` in the place of `old`. A value of several lines comes with its own comments."""
    if new.end > new.first + 1:
        return new.moved(old.column)
    source = new if new.comment else old
    head = _line(old, new.head, source.comment)
    column = len(head) - len(source.comment)  # of the comment, and of the lines that continue it
    more = source.lines[source.end : source.stop]
    return [head, *(" " * column + line.strip() if source.comment else line for line in more)]


def _line(old: Entry, head: str, comment: str) -> str:
    """`head` in the place of the one of `old`, and a comment in the column of comments if there is room."""
    line = " " * old.column + head
    if not comment:
        return line
    column = COMMENTS
    if len(line) > column - 1 and old.comment:
        column = len(old.lines[old.first].rstrip()) - len(old.comment)
    return f"{line.ljust(max(column, len(line) + 2))}{comment}"
