"""Runs DVC, which remembers what made every file, and mends what a killed DVC leaves.

DVC writes its record, dvc.lock, and its list of who uses which file, .dvc/tmp/rwlock, in place: killed
between the first and the last byte it leaves a file that every later command refuses. A whole dvc.lock is
therefore kept aside after each stage and put back when DVC stops over a damaged one. What a lost entry had
made is still in DVC's cache, so that its stage is restored, not run again.

A link to nothing in one dataset would stop DVC for all of them: such links are listed in data/raw/.dvcignore.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vap.common.artifacts import atomic
from vap.common.errors import VapError, tell
from vap.provenance.lock import committed, parsed, stages_of
from vap.workflow import verify

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/dvc.lock.whole")
DAMAGED = Path("dvc.lock.damaged")
TABLE = verify.TABLE
FORCED = "VAP_FORCE"  # stages that run though nothing has changed
CONFLICT = "<<<<<<< "
RAW = Path("data/raw")
BROKEN = "# links to nothing, listed anew by each run\n"  # what stands above it is the user's
BUSY = 15.0  # seconds that the last jobs of a killed run have to end
LOOKS, BETWEEN = 4, 1.0  # seconds; DVC needs less to write a file


def run_stage(name: str) -> int:
    """`dvc repro --single-item NAME` in this process, waiting for DVC's lock.

    What DVC puts back from its cache is read: where it is damaged, the stage runs again.

    Returns:
        DVC's exit status.

    Raises:
        VapError: as `mend`.
    """
    verify.check_cache(record().get(name, {}))
    forced = ["--force"] if name in os.environ.get(FORCED, "").split() else []
    status = run("repro", "--single-item", *forced, name)
    if not status and verify.put_back_damaged(record().get(name, {})):
        status = run("repro", "--single-item", name)
    return status


def record() -> Mapping[str, Any]:
    """The stages of dvc.lock by name; waits while another run is writing it."""
    _damaged(LOCK, is_whole)
    return stages_of(LOCK.read_text(encoding="utf-8", errors="replace")) if LOCK.is_file() else {}


def run(*arguments: str) -> int:
    """DVC's command line in this process, waiting for its lock.

    Raises:
        VapError: as `mend`.
    """
    from dvc.cli import main

    mend()
    status = int(main(["--wait-for-lock", *arguments]))
    if not status:
        keep()
    return status


def stale_stages() -> set[str]:
    """Names of the stages whose outputs do not follow from what they read; brings the plan up to date first.

    Raises:
        VapError: DVC cannot read the project.
    """
    mend()
    pass_over_links()
    verify.look_over(record())
    end, told = time.monotonic() + BUSY, False
    while True:
        result = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
        if not result.returncode:
            break
        # the first paragraph: who holds the file, where another run is going on
        found = result.stderr.rpartition("ERROR: ")[2].partition("\n\n")[0] or "?"
        if "is busy" not in found:
            if gone := [path for path in RAW.glob("*") if path.is_symlink() and not path.exists()]:
                fix = "mend or remove the link, or take it out of `datasets`"
                raise VapError(gone[0], "a broken link", "the dataset's folder", fix)
            raise VapError("dvc status", found, "a readable record", "see `dvc status`")
        if time.monotonic() > end:
            raise VapError("dvc status", found, "no other run", "wait for that one, or end it")
        if not told:
            tell("Another run is going on, or a killed one's last jobs are: waiting.")
            told = True
        time.sleep(BETWEEN)
    status = json.loads(result.stdout.strip().splitlines()[-1]) if result.stdout.strip() else {}
    return {name.removeprefix("dvc.yaml:") for name in status} - {"plan"}


def pass_over_links() -> None:
    """List the links to nothing below data/raw/DATASET in data/raw/.dvcignore.

    The stage that reads such a dataset tells of them, where it matters. A link that is mended is listed no
    more, and its dataset is prepared again.
    """
    file = RAW / ".dvcignore"
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    own, rule = before.partition(BROKEN)[0], ""
    if broken := sorted(set(_broken_links(RAW))):
        rule = BROKEN + "".join(f"/{_pattern(path.relative_to(RAW).as_posix())}\n" for path in broken)
    if own + rule == before:
        return
    if not own + rule:
        file.unlink()
        return
    with atomic(file) as part:
        part.write_text(own + rule, encoding="utf-8")


def _broken_links(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and not os.path.exists(entry.path):
                yield Path(entry.path)
            elif entry.is_dir():
                yield from _broken_links(Path(entry.path), (*above, real))


def _pattern(path: str) -> str:
    """What matches `path` alone in .dvcignore; "?" stands for what no line of it can hold."""
    escaped = re.sub(r"([\\*?\[\]])", r"\\\1", path).replace(" ", "[ ]")
    return re.sub(r"[\n\r\ud800-\udfff]", "?", escaped)


# ── what a kill leaves ────────────────────────────────────────────────────────────────────────────


def mend() -> None:
    """Put back what a killed DVC has left half written. It says what it did on standard error.

    Raises:
        VapError: dvc.lock has the marks of a merge, which only the user can resolve.
    """
    if _damaged(TABLE, _is_json):
        TABLE.unlink()
    if _damaged(LOCK, is_whole):
        text = LOCK.read_text(encoding="utf-8", errors="replace")
        if CONFLICT in text:
            raise VapError(
                LOCK,
                "the marks of a merge that is not resolved",
                "DVC's record",
                "take one side with `git checkout --ours dvc.lock` or `--theirs`; what the other side "
                "made is restored from the cache or made again",
            )
        shutil.copyfile(LOCK, DAMAGED)
        source, before = "the last whole copy", KEPT.read_text(encoding="utf-8") if KEPT.is_file() else ""
        if not before:
            source, before = "the last commit", committed()
        if is_whole(before):
            with atomic(LOCK) as part:
                part.write_text(before, encoding="utf-8")
        else:
            source = "nothing: there is no whole copy"
            LOCK.unlink()
        tell(
            f"{LOCK}: was cut off or damaged, as by a killed run; put back from {source}. The damaged "
            f"file is kept as {DAMAGED}."
        )


def _damaged(file: Path, whole: Callable[[str], bool]) -> bool:
    """Whether a file stays half written: one that another run writes now is whole a moment later."""
    for _ in range(LOOKS):
        if not file.is_file() or whole(file.read_text(encoding="utf-8", errors="replace")):
            return False
        time.sleep(BETWEEN)
    return True


def keep() -> None:
    """Keep dvc.lock aside where it is whole; another run may be writing it now."""
    try:
        text = LOCK.read_text(encoding="utf-8")
    except OSError:
        return
    if is_whole(text) and not (KEPT.is_file() and KEPT.read_text(encoding="utf-8") == text):
        with atomic(KEPT) as part:
            part.write_text(text, encoding="utf-8")


def is_whole(text: str) -> bool:
    """Whether dvc.lock can be read and each of its stages has a command and hashes."""
    try:
        entries = parsed(text)["stages"].values()
        return text.endswith("\n") and all(
            "cmd" in entry and all("md5" in out for out in entry.get("outs", [])) for entry in entries
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def main() -> int:
    """Bring the plan up to date, then print as JSON which stages are stale; DVC's exit status."""
    from dvc.cli import main

    return int(run_stage("plan") or main(["--wait-for-lock", "status", "--json"]))


if __name__ == "__main__":
    raise SystemExit(main())
