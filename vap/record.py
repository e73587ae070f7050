"""Runs DVC so that a kill at any moment leaves files that the next run reads.

dvc.lock: DVC reads and writes all of it with a parser that keeps comments, whatever the stage: 8 s at two
hundred stages, with its lock held. Here the one stage's lines alone are read, and take the place of the old
ones; the file is the same to the byte, and is replaced whole, so that a kill leaves the old one.

.dvc/tmp/rwlock, who reads and writes which file: DVC writes it in place, and a kill between its first and its
last byte leaves a file that every later command refuses. Here it is replaced whole too, and one that was left
so by another is begun anew.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vap.artifacts import atomic

HEAD = "schema: '2.0'\nstages:\n"
# a stage: its name after two spaces, then the lines that are indented further
STAGE = re.compile(r"^  (?! )(?P<name>.+):\n(?:(?:   .*)?\n)*", re.MULTILINE)


def run_stage(name: str) -> int:
    """`dvc repro --single-item NAME`, waiting for DVC's lock.

    Returns:
        DVC's exit status.
    """
    return run("repro", "--single-item", name, only=name)


def run(*arguments: str, only: str | None = None) -> int:
    """DVC's command line in this process, waiting for its lock.

    Args:
        only: the one stage of dvc.lock that the command looks at; None for all.

    Returns:
        DVC's exit status.
    """
    from dvc.cli import main

    with _own_files(only):
        return int(main(["--wait-for-lock", *arguments]))


@contextmanager
def _own_files(only: str | None) -> Iterator[None]:
    """DVC with the functions replaced that read dvc.lock, and that write it and .dvc/tmp/rwlock."""
    from dvc import rwlock
    from dvc.dvcfile import Lockfile
    from dvc.utils.serialize import parse_yaml

    load_all, dump_all, edit_table = Lockfile._load_yaml, Lockfile.dump_stages, rwlock._edit_rwlock

    def load_yaml(self: Any, **kwargs: Any) -> tuple[Any, str]:
        text = None if only is None or kwargs else lines_of(Path(self.path).read_text(encoding="utf-8"), only)
        if text is None:
            return load_all(self, **kwargs)  # type: ignore[no-any-return]
        return self.validate(parse_yaml(text, self.path, typ="safe"), self.relpath), text

    def dump_stages(self: Any, stages: list[Any], **kwargs: Any) -> None:
        from dvc.stage.serialize import to_lockfile

        path = Path(self.path)
        text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
        new: dict[str, Any] = {}
        for stage in stages:
            new |= to_lockfile(stage, **kwargs)
        changed = with_stages(text, new)
        if changed is None:
            dump_all(self, stages, **kwargs)
        elif changed != text:
            with atomic(path) as part:
                part.write_text(changed, encoding="utf-8")
            self.repo.scm_context.track_file(self.relpath)

    def edit_rwlock(folder: str, fs: Any, hardlink: bool) -> Any:
        return edit_table(folder, _WholeTable(fs), hardlink)

    Lockfile._load_yaml, Lockfile.dump_stages, rwlock._edit_rwlock = load_yaml, dump_stages, edit_rwlock
    try:
        yield
    finally:
        Lockfile._load_yaml, Lockfile.dump_stages, rwlock._edit_rwlock = load_all, dump_all, edit_table


class _WholeTable:
    """What DVC needs of a file system to edit .dvc/tmp/rwlock, which it does with a lock held."""

    def __init__(self, fs: Any) -> None:
        self.join = fs.join

    @contextmanager
    def open(self, path: str, mode: str = "r", encoding: str = "utf-8") -> Iterator[io.TextIOBase]:
        """To write: a file that replaces `path` at the end. To read: what is in it, when it is JSON.

        Raises:
            FileNotFoundError: there is none, or what one that was killed has left of it.
        """
        if mode == "w":
            with atomic(Path(path)) as part, part.open("w", encoding=encoding) as file:
                yield file
            return
        text = Path(path).read_text(encoding)
        try:
            json.loads(text)
        except json.JSONDecodeError:
            raise FileNotFoundError(path) from None
        yield io.StringIO(text)


def with_stages(text: str, stages: Mapping[str, Any]) -> str | None:
    """dvc.lock with some stages in place of the old ones of their names, new ones at the end.

    Args:
        text: dvc.lock as DVC writes it.
        stages: by name, what DVC records of each.

    Returns:
        What DVC itself would write, or None where the file has another form than DVC gives it.
    """
    from dvc.utils.serialize import dumps_yaml

    blocks = _blocks(text)
    if blocks is None:
        return None
    for name, data in stages.items():
        lines = dumps_yaml({"stages": {name: data}}).removeprefix("stages:\n")
        blocks[lines.partition(":\n")[0].removeprefix("  ")] = lines
    return HEAD + "".join(blocks.values())


def lines_of(text: str, name: str) -> str | None:
    """dvc.lock as if it held one stage alone, or None where that stage is not there as DVC writes it.

    Args:
        text: dvc.lock.
    """
    blocks = _blocks(text)
    return None if blocks is None or name not in blocks else HEAD + blocks[name]


def _blocks(text: str) -> dict[str, str] | None:
    """The lines of each stage of dvc.lock, by name; None where the file is not as DVC writes it."""
    if not text.startswith(HEAD):
        return None
    blocks: dict[str, str] = {}
    end = len(HEAD)
    for found in STAGE.finditer(text, end):
        if found.start() != end:
            return None
        blocks[found["name"]] = found[0]
        end = found.end()
    return blocks if end == len(text) else None


if __name__ == "__main__":
    raise SystemExit(run(*sys.argv[1:]))
