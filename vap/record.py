"""Runs one stage through DVC and writes what it says of it to dvc.lock.

DVC reads and writes all of dvc.lock with a parser that keeps comments, whatever the stage: 8 s at two hundred
stages, with its lock held. Here the one stage's lines take the place of the old ones; the file is the same
to the byte, and is replaced whole, so that a kill leaves the old one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    from dvc.cli import main
    from dvc.dvcfile import Lockfile

    original = Lockfile.dump_stages

    def dump_stages(self: Any, stages: list[Any], **kwargs: Any) -> None:
        from dvc.stage.serialize import to_lockfile

        path = Path(self.path)
        text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
        new: dict[str, Any] = {}
        for stage in stages:
            new |= to_lockfile(stage, **kwargs)
        changed = with_stages(text, new)
        if changed is None:
            original(self, stages, **kwargs)
        elif changed != text:
            with atomic(path) as part:
                part.write_text(changed, encoding="utf-8")
            self.repo.scm_context.track_file(self.relpath)

    Lockfile.dump_stages = dump_stages
    try:
        return int(main(["--wait-for-lock", "repro", "--single-item", name]))
    finally:
        Lockfile.dump_stages = original


def with_stages(text: str, stages: Mapping[str, Any]) -> str | None:
    """dvc.lock with some stages in place of the old ones of their names, new ones at the end.

    Args:
        text: dvc.lock as DVC writes it.
        stages: by name, what DVC records of each.

    Returns:
        What DVC itself would write, or None where the file has another form than DVC gives it.
    """
    from dvc.utils.serialize import dumps_yaml

    if not text.startswith(HEAD):
        return None
    blocks: dict[str, str] = {}
    end = len(HEAD)
    for found in STAGE.finditer(text, end):
        if found.start() != end:
            return None
        blocks[found["name"]] = found[0]
        end = found.end()
    if end != len(text):
        return None
    for name, data in stages.items():
        lines = dumps_yaml({"stages": {name: data}}).removeprefix("stages:\n")
        blocks[lines.partition(":\n")[0].removeprefix("  ")] = lines
    return HEAD + "".join(blocks.values())
