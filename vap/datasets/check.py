"""`vap data check`: what is there of a dataset, what is missing, damaged or there twice.

Nothing is downloaded and nothing changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vap.common.errors import VapError, plain
from vap.common.progress import Progress
from vap.datasets import chestxray14, colonoscopy, isic2018, isic2019
from vap.datasets.ahead import Ahead
from vap.datasets.archives import Tree
from vap.datasets.base import SPLITS, Item, LeftOut, Source, open_source
from vap.datasets.colonoscopy import ColonoscopySource
from vap.datasets.duplicates import Pair, Print, pairs, thumbnail
from vap.datasets.images import UnreadableImage
from vap.datasets.kinds import SUFFIXES, Passed
from vap.datasets.official import OfficialFile
from vap.datasets.suspects import Suspects, reasons
from vap.params import DatasetParams, Params

RAW = Path("data/raw")
EXAMPLES = 5  # of each kind of finding
SPAN = 256  # images read between two lines of progress


def check(params: Params, dataset: str, against: Sequence[str] = (), quick: bool = False) -> bool:
    """Print the report on data/raw/{dataset}.

    Args:
        against: other datasets of params.yaml in which copies are looked for.
        quick: list only; no image is opened.

    Returns:
        Whether the dataset is whole: all needed files and images there and readable, the official
        counts, and no image on two sides of the split.

    Raises:
        VapError: `against` names the dataset itself.
    """
    if dataset in against:
        fix = "leave it out: copies within the dataset are looked for anyway"
        raise VapError("--against", f"{dataset} itself", "another dataset", fix)
    root, settings = RAW / dataset, params.dataset[dataset]
    _say(f"# {dataset}: {root}, adapter {settings.adapter}")
    good = _files(root, settings)
    if settings.adapter == "folder":
        _ignored(root)
    try:
        source = _open(params, dataset)
    except VapError as error:
        _say(f"\n## Not usable\n\n{error}")
        return False
    good &= _listing(source) & _counts(source, settings)
    if quick or settings.adapter == "phantom":
        if against:
            why = "--quick opens no image" if quick else "a phantom has no image files"
            _say(f"\nNot compared with {', '.join(against)}: {why}")
        return good
    suspects = Suspects()
    prints, damaged = _read(dataset, source, suspects)
    _say(f"\n## Images\n\n{len(prints)} readable, {len(damaged)} damaged")
    _examples(damaged)
    for line in suspects.lines:
        _say(f"Warning: {line}")
    others: list[Print] = []
    for name in against:
        try:
            others += _read(name, _open(params, name), Suspects())[0]
        except VapError as error:
            _say(f"\n{name} is not compared: {error}")
    return good & _duplicates(pairs(prints, others)) & (not damaged)


def _say(text: str) -> None:
    """Print; names of files and classes are not ours, and must not steer the terminal."""
    print(plain(text))


def _open(params: Params, dataset: str) -> Source:
    """As `prepare` would, but past what is wrong with single images."""
    prepare = params.prepare.model_copy(update={"on_error": "skip"})
    return open_source(params.dataset[dataset], RAW / dataset, prepare, params.seed)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────


def _files(root: Path, settings: DatasetParams) -> bool:
    homes: dict[Path, list[OfficialFile]] = {root: []}
    if settings.adapter == "isic2018":
        homes[root] = isic2018.FILES
    elif settings.adapter == "isic2019":
        homes[root] = isic2019.FILES
    elif settings.adapter == "chestxray14":
        homes[root] = chestxray14.files(settings)
    elif settings.adapter == "colonoscopy":
        homes = {root / part: colonoscopy.FILES[part] for part in settings.parts}
    good = True
    for home, files in homes.items():
        if not files:
            continue
        _say(f"\n## Files of {home}\n")
        try:
            # an archive is only listed: a compressed tar is unpacked when its images are read
            tree = Tree(home, LeftOut(skip=True).member, open_archives=False) if home.is_dir() else None
        except OSError as error:
            _say(f"not readable: {error}")
            return False
        for file in files:
            place = file.place(tree) if tree else None
            if place is None:
                good &= not file.needed
                place = f"{'MISSING' if file.needed else 'not there'}: {file.site}"
            _say(f"{file.name:<40} {file.what:<36} {place} ({file.licence})")
    return good


def _ignored(root: Path) -> None:
    """Warn of the files in a folder of images that are none."""
    try:
        tree = Tree(root, LeftOut(skip=True).member, open_archives=False)
    except OSError:  # `_open` says it
        return
    passed = Passed(root)
    for file in (*tree.files.values(), *tree.archives):
        if isinstance(file, Path) and file != root / "groups.csv":
            passed.takes(file)
    for line in passed.lines:
        _say(f"\nWarning: {line}")
    if passed.lines:
        _say(f"Read are {', '.join(sorted(SUFFIXES))}: convert what is to be used.")


def _listing(source: Source) -> bool:
    if notes := source.left_out.notes:
        _say("\n## Not usable, and left out under prepare.on_error: skip\n")
        _say("\n".join(notes))
    return not notes


# ── counts ──────────────────────────────────────────────────────────────────────────────────────────


def _counts(source: Source, settings: DatasetParams) -> bool:
    """Print images a class and split, official numbers beside them; whether all agree."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in source.items:
        found[item.split][item.label] += 1
        found["train+test"][item.label] += item.split != "val"
    official = _official(settings)
    rows = [name for name in (*SPLITS, "train+test") if name in found]
    _say("\n## Images by class and split (official number, where it differs)\n")
    _say(f"{'':<24}" + "".join(f"{name:>18}" for name in rows))
    good = True
    for label in source.classes:
        cells = []
        for name in rows:
            count, right = found[name][label], official.get(name, {}).get(label)
            good &= right in (None, count)
            cells.append(str(count) if right in (None, count) else f"{count} ({right})")
        _say(f"{label:<24}" + "".join(f"{cell:>18}" for cell in cells))
    _say(f"{'all':<24}" + "".join(f"{found[name].total():>18}" for name in rows))
    _say(f"{'groups':<24}" + "".join(f"{_groups(source.items, name):>18}" for name in rows))
    if isinstance(source, ColonoscopySource):
        for part, count in sorted(source.frames.items()):
            right = colonoscopy.COUNTS.get(part)
            if count or part != "mesejo lesions":
                good &= right in (None, count)
                _say(f"{part}: {count}" + (f" (officially {right})" if right not in (None, count) else ""))
    return good


def _official(settings: DatasetParams) -> Mapping[str, Mapping[str, int]]:
    if settings.adapter == "isic2018":
        return isic2018.COUNTS
    if settings.adapter == "isic2019" and not settings.exclude_isic2018:
        return isic2019.COUNTS
    if settings.adapter == "chestxray14" and settings.table == "v2020":
        train, test = chestxray14.COUNTS["train"], chestxray14.COUNTS["test"]
        if settings.split == "official":
            return chestxray14.COUNTS
        return {"train+test": {label: train[label] + test[label] for label in train}}
    return {}


def _groups(items: Iterable[Item], split: str) -> int:
    return len({item.group for item in items if item.split in split})


# ── images ──────────────────────────────────────────────────────────────────────────────────────────


def _read(dataset: str, source: Source, suspects: Suspects) -> tuple[list[Print], list[str]]:
    """The prints of the readable images, and a line for each of the others; the odd ones go to `suspects`."""

    def look(item: Item) -> tuple[Print, list[str]] | str:
        try:
            raw = source.load(item)
        except UnreadableImage as error:
            return f"{error.where}: {error.found}"
        place = (dataset, item.split, item.group, item.id)
        return Print(*place, raw.sha256, thumbnail(raw.image)), reasons(raw.image, raw.odd, item.source)

    prints: list[Print] = []
    damaged: list[str] = []
    with (
        Progress(f"check {dataset}", len(source.items), "img") as progress,
        Ahead(source.items, look) as ahead,
    ):
        for start in range(0, len(source.items), SPAN):
            span = range(start, min(start + SPAN, len(source.items)))
            for found in ahead.take(span):
                if isinstance(found, str):
                    damaged.append(found)
                else:
                    prints.append(found[0])
                    suspects.add(found[0].id, found[1])
            progress.advance(len(span))
    return prints, damaged


def _duplicates(found: Iterable[Pair]) -> bool:
    """Print the copies; whether none crosses the split."""
    kinds: defaultdict[tuple[str, bool], list[Pair]] = defaultdict(list)
    for pair in found:
        kinds[pair.where, pair.exact].append(pair)
    _say(f"\n## Copies\n\n{sum(map(len, kinds.values()))} pairs")
    for (where, exact), members in sorted(kinds.items()):
        what = "the same file" if exact else "nearly the same picture"
        _say(f"\n{where}: {len(members)} pairs of {what}")
        _examples([f"{p.one.id} and {p.other.id}" for p in members])
    return not any(where.startswith("across") for where, _ in kinds)


def _examples(lines: Sequence[str]) -> None:
    for line in lines[:EXAMPLES]:
        _say(f"  {line}")
    if len(lines) > EXAMPLES:
        _say(f"  and {len(lines) - EXAMPLES} more")
