"""What a dataset's owner gives: which files there are, where to get them, under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from vap.datasets.archives import ARCHIVES, Tree


@dataclass(frozen=True)
class OfficialFile:
    """One download.

    Attributes:
        name: of the folder or file, without an archive's ending.
        what: it holds.
        site: where it is to be had.
        licence: under which.
        needed: whether the adapter needs it.
    """

    name: str
    what: str
    site: str
    licence: str
    needed: bool = True

    def place(self, tree: Tree) -> str | None:
        """ "a file", "a folder" or "an archive", as which it is there; None where it is not."""
        for path in tree.files:
            parts = PurePosixPath(path).parts
            if parts[-1] == self.name or PurePosixPath(parts[-1]).stem == self.name:
                return "a file"
        stems = {a.name[: -len(e)] for a in tree.archives for e in ARCHIVES if a.name.lower().endswith(e)}
        if self.name in stems:
            return "an archive"
        return "a folder" if tree.below(self.name) else None
