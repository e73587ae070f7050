"""Colonoscopy: frames of PolypsSet, SUN, Mesejo's videos and a folder of one's own, split 8:2 (paper §3).

Each part is a sub-folder of the dataset's; vap.datasets.colonoscopy_parts reads them. The frames of a
lesion, sequence or video are near-duplicates, so they stay on one side of the split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from vap.common.errors import VapError, tell
from vap.common.markup import composed
from vap.datasets import colonoscopy_parts as parts
from vap.datasets.base import FileSource, Item, LeftOut, checked, require_folder
from vap.datasets.colonoscopy_parts import Frame
from vap.datasets.official import OfficialFile
from vap.datasets.split import split
from vap.params import ColonoscopyParams

POLYPSSET = "https://doi.org/10.7910/DVN/FCBUOR"
SUN = "http://amed8k.sundatabase.org"
MESEJO = "http://www.depeca.uah.es/colonoscopy_dataset/"
LICENCE = "on request, research only"
FILES: dict[str, list[OfficialFile]] = {
    "polypsset": [OfficialFile("PolypsSet", "frames and VOC annotations", POLYPSSET, "CC0 1.0")],
    "sun": [
        *(
            OfficialFile(f"sundatabase_{kind}_part{n}", f"{kind} frames", SUN, LICENCE, kind == "positive")
            for kind, count in (("positive", 2), ("negative", 4))
            for n in range(1, count + 1)
        ),
        OfficialFile("pathology.csv", "case,pathology, written from its paper", SUN, LICENCE),
    ],
    "mesejo": [
        OfficialFile(name, "frames of the videos", MESEJO, "not stated")
        for name in ("Adenoma", "Hyperplasic", "Serrated")
    ],
    "private": [],
}
# frames of each part, before the classes are mapped; lesions of Mesejo
COUNTS = {
    "polypsset train2019": 28773,
    "polypsset val2019": 4254,
    "polypsset test2019": 4872,
    "sun positive": 49136,
    "sun negative": 109554,
    "mesejo lesions": 76,
}
READERS = {
    "polypsset": parts.polypsset,
    "sun": parts.sun,
    "mesejo": parts.mesejo,
    "private": parts.private,
}


class ColonoscopySource(FileSource):
    """The frames of the parts that params.yaml names, their classes mapped.

    PolypsSet holds Mesejo's 76 videos already: with both, Mesejo's own frames are left out.

    Attributes:
        frames: how many each part has, before the classes are mapped.

    Raises:
        VapError: a part, table or annotation is absent or wrong, or a class is not mapped.
    """

    def __init__(
        self, root: Path, settings: ColonoscopyParams, test_fraction: float, seed: int, skip: bool = False
    ) -> None:
        require_folder(root, f"put the parts there: {', '.join(settings.parts)} (docs/data.md)")
        self.left_out = LeftOut(skip)
        self.inputs: dict[str, Path] = {}
        frames: list[Frame] = []
        for name in dict.fromkeys(settings.parts):
            require_folder(
                root / name, f"put it there (docs/data.md), or take it out of dataset.{root.name}.parts"
            )
            frames += READERS[name](root / name, self.inputs, self.left_out)
        self.frames = Counter(frame.part for frame in frames)
        self.frames["mesejo lesions"] = len({f.group for f in frames if f.part == "mesejo"})
        frames = _without_overlap(root, frames)
        labels = _mapped(root, frames, settings.classes)
        items = [
            Item(f.id, label, "train", f.group, f.source)
            for f, label in zip(frames, labels, strict=True)
            if label is not None
        ]
        present = {item.label for item in items}
        self.classes = [c for c in dict.fromkeys(settings.classes.values()) if c is not None and c in present]
        checked(root, items, self.classes)
        training = frozenset(frame.group for frame in frames if frame.training)
        self.items = checked(root, split(items, test_fraction, seed, training), self.classes)


def _without_overlap(root: Path, frames: list[Frame]) -> list[Frame]:
    """Without Mesejo's frames where PolypsSet has them too."""
    found = {frame.part.split()[0] for frame in frames}
    if not {"polypsset", "mesejo"} <= found:
        return frames
    others = [frame for frame in frames if frame.part != "mesejo"]
    tell(f"{root}: {len(frames) - len(others)} frames of Mesejo's videos are left out: PolypsSet has them")
    return others


def _mapped(root: Path, frames: Sequence[Frame], classes: Mapping[str, str | None]) -> list[str | None]:
    """The class of each frame; None of one that is to be left out.

    Raises:
        VapError: a part's name for a class is not among `classes`.
    """
    known = {composed(name).lower(): label for name, label in classes.items()}
    counts: Counter[tuple[str, str]] = Counter()
    for frame in frames:
        if frame.label.lower() not in known:
            where = f"params.yaml: dataset.{root.name}.classes"
            found = f"no {frame.label!r}, of {frame.part}"
            fix = f"add `{frame.label}: CLASS`, or `{frame.label}: null` to leave them out"
            raise VapError(where, found, "every name that a part gives a class", fix)
        if known[frame.label.lower()] is None:
            counts[frame.part, frame.label] += 1
    for (part, label), count in sorted(counts.items()):
        tell(f"{root}: {count} frames of {part}, {label}, are left out by `classes`")
    return [known[frame.label.lower()] for frame in frames]
