"""Every artefact that is used has the content that dvc.lock records.

DVC believes a read-only object of its cache without reading it, and a file that it has put back from there.
So one wrong digit in .dvc/cache would come back as a result. Here what was put back, or has another time or
size than when it was last read, is read: damaged files are moved to .dvc/tmp/damaged, so that their stage
runs again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vap.common.errors import VapError, tell

SEEN = Path(".dvc/tmp/verified")
ASIDE = Path(".dvc/tmp/damaged")
TABLE = Path(".dvc/tmp/rwlock")
SPARE = 1000  # lines of what files were before that are kept
Stages = Mapping[str, Any]
Mark = tuple[int, int, int]


def md5_of(path: Path) -> str:
    """The md5 of a file, read whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


# ── what was read before ──────────────────────────────────────────────────────────────────────────


class Seen:
    """The md5 of files as they were last read, by their inode, time and size: a line of JSON each.

    Several processes add lines at once; a line that is not whole is not read.
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[Mark, str]] = {}
        lines = SEEN.read_text(encoding="utf-8", errors="replace").splitlines() if SEEN.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):
                path, mark, md5 = json.loads(line)
                self.known[path] = (tuple(mark), md5)
        if len(lines) > SPARE + 4 * len(self.known):  # a line that is lost meanwhile costs one reading
            SEEN.unlink(missing_ok=True)
            for path, told in self.known.items():
                self._add(path, *told)

    def md5(self, path: Path) -> str:
        """The md5 of a file, read only where it is not as it was."""
        told = path.stat()
        mark = (told.st_ino, told.st_mtime_ns, told.st_size)
        before = self.known.get(str(path))
        if before and before[0] == mark:
            return before[1]
        md5 = md5_of(path)
        self.known[str(path)] = (mark, md5)
        self._add(str(path), mark, md5)
        return md5

    def _add(self, path: str, mark: Mark, md5: str) -> None:
        with contextlib.suppress(OSError):  # it saves time and nothing else
            SEEN.parent.mkdir(parents=True, exist_ok=True)
            with SEEN.open("a", encoding="utf-8") as file:
                file.write(json.dumps([path, mark, md5]) + "\n")


# ── what dvc.lock records ─────────────────────────────────────────────────────────────────────────


def outs_of(entry: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """The files of a stage with their recorded md5, those in a folder each by itself."""
    for out in entry.get("outs", []):
        path, md5 = Path(out["path"]), str(out.get("md5", ""))
        if not md5.endswith(".dir"):
            yield path, md5
            continue
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            for child in json.loads(_object(md5).read_text(encoding="utf-8")):
                yield path / child["relpath"], str(child["md5"])


def _object(md5: str) -> Path:
    """Where DVC's cache has a content."""
    return _cache() / md5[:2] / md5[2:]


@functools.cache
def _cache() -> Path:
    place = Path(".dvc/cache/files/md5")
    if any("dir" in file.read_text() for file in Path(".dvc").glob("config*") if file.is_file()):
        from dvc.repo import Repo

        with Repo() as repo:
            place = Path(repo.cache.local.path)
    return place


# ── what is not as recorded ───────────────────────────────────────────────────────────────────────


def _set_aside(path: Path) -> None:
    kept = ASIDE / (path.name if path.is_absolute() else path)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.move(path, kept)


def _drop(path: Path, md5: str) -> None:
    """Move a damaged artefact out of the way, and the object of the cache that it came from."""
    _sound(md5)
    _set_aside(path)


def _sound(md5: str) -> bool:
    """Whether the cache has no damaged object of this content; one that it has is moved out of it."""
    there = _object(md5)
    if not there.is_file() or md5_of(there) == md5:
        return True
    _set_aside(there)
    tell(
        f"{there}: this object of DVC's cache is damaged; it is not used but moved to {ASIDE}, and the stage "
        "that made it runs again."
    )
    return False


def check_cache(entry: Mapping[str, Any]) -> None:
    """Before a stage that may be put back from the cache: move away the damaged objects among its outputs."""
    seen = Seen()
    for path, md5 in outs_of(entry):
        if not (path.is_file() and seen.md5(path) == md5):
            _sound(md5)


def put_back_damaged(entry: Mapping[str, Any]) -> bool:
    """Whether a stage has now a file that is not as recorded, from a damaged cache; it is moved away."""
    seen = Seen()
    bad = [out for out in outs_of(entry) if out[0].is_file() and seen.md5(out[0]) != out[1]]
    for path, md5 in bad:
        _drop(path, md5)
    for _, md5 in outs_of(entry):
        with contextlib.suppress(OSError):  # DVC reads an object that is not read-only once its time is new
            _object(md5).chmod(0o644)
    return bool(bad)


def look_over(stages: Stages) -> None:
    """Before a run: have DVC see every artefact that is not as recorded.

    One whose content is in the cache, as of another commit, is DVC's to replace. One that was edited or cut
    off is moved away, and a line on standard error says so.
    """
    seen, busy = Seen(), _busy()
    for path, md5 in (out for entry in stages.values() for out in outs_of(entry)):
        if not path.is_file() or (found := seen.md5(path)) == md5:
            continue
        if any(path.absolute().is_relative_to(place) for place in busy):
            continue  # another run is making it
        known = _object(found)
        if known.is_file() and seen.md5(known) == found:
            with contextlib.suppress(OSError):
                os.utime(path)  # DVC reads a file again when its time is new
            continue
        tell(
            f"{path}: is not what dvc.lock records, as after an edit, damage or a killed run; it is not used "
            f"but moved to {ASIDE}, and taken from the cache or made again."
        )
        _drop(path, md5)


def _busy() -> list[Path]:
    """What a running DVC is writing, as its list says."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return [Path(place) for place in json.loads(TABLE.read_text(encoding="utf-8")).get("write", {})]
    return []


def check_inputs(deps: list[str], stages: Stages) -> None:
    """Before a stage reads: its inputs are what dvc.lock records.

    Args:
        deps: files, and folders for all that stages have written into them.

    Raises:
        VapError: one is not; it has been moved away, so that the next run makes it anew.
    """
    seen = Seen()
    for path, md5 in (out for entry in stages.values() for out in outs_of(entry)):
        if any(path.is_relative_to(dep) for dep in deps) and path.is_file() and seen.md5(path) != md5:
            _drop(path, md5)
            raise VapError(
                path,
                "other content than dvc.lock records, as of a damaged cache or an edit",
                f"md5 {md5}",
                f"run again: it was moved to {ASIDE} and will be made anew",
            )
