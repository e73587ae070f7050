"""The parts of the colonoscopy dataset, each in its owner's layout, loose or in archives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.parsers import expat

from vap.common.errors import VapError
from vap.common.markup import composed
from vap.datasets.archives import Source, Tree, file_of
from vap.datasets.base import LeftOut
from vap.datasets.kinds import stem_of
from vap.datasets.tables import read_table

SETS = ("train2019", "val2019", "test2019")
MESEJO = ("adenoma", "hyperplasic", "serrated")
NEGATIVE = "negative"  # a frame without a polyp


@dataclass(frozen=True)
class Frame:
    """One frame, with the class as its part names it.

    Attributes:
        part: it is of, for counts: e.g. "polypsset val2019", "sun positive", "mesejo".
        group: lesion, sequence or video.
        training: whether its group must not be set aside for testing.
    """

    id: str
    label: str
    part: str
    group: str
    source: Source
    training: bool = False


def polypsset(root: Path, inputs: dict[str, Path], left_out: LeftOut) -> list[Frame]:
    """PolypsSet: {train,val,test}2019/{Image,Annotation}/[SEQUENCE/]FRAME.{jpg,xml}, VOC annotations.

    The official split is not used (paper §3: 8:2). A sequence of val2019 or test2019 is a group. The
    frames of train2019 lie in one folder, and their annotations do not tell reliably which sequence
    they are of: unless sequences.csv (frame,sequence) does, they are one group, always for training.

    Raises:
        VapError: none of the three sets is there, or an annotation is absent or wrong.
    """
    tree = Tree(root, left_out.member)
    tree.tell_passed()
    table = tree.table("sequences.csv")
    sequences = _sequences(table, left_out) if table.is_file() or table.is_symlink() else {}
    if sequences:
        inputs["polypsset sequences"] = file_of(table)
    frames: list[Frame] = []
    for name in SETS:
        files = tree.below(name)
        for path, source in tree.images(name).items():
            parts = PurePosixPath(path).parts
            if parts[0] != "Image":
                continue
            annotation = str(PurePosixPath("Annotation", *parts[1:]).with_suffix(".xml"))
            try:
                label = _voc_label(source, files.get(annotation))
                sequence = "/".join(parts[1:-1])
                if name == "train2019" and not sequence:
                    sequence = _sequence_of(table, sequences, parts[-1])
            except VapError as error:
                left_out.add("frames without one annotation", error)
                continue
            identity = "__".join(("polypsset", name, *PurePosixPath(stem_of("/".join(parts[1:]))).parts))
            group = f"polypsset-{name}-{sequence}".rstrip("-")
            frames.append(Frame(identity, label, f"polypsset {name}", group, source, not sequence))
    if not frames:
        fix = "fetch it from https://doi.org/10.7910/DVN/FCBUOR"
        raise VapError(root, "no frame", "PolypsSet's {train,val,test}2019/Image, or its archive", fix)
    return frames


def _sequences(table: Source, left_out: LeftOut) -> dict[str, str]:
    """Frame of train2019, without its suffix, to sequence."""
    sequences: dict[str, str] = {}
    for where, row in read_table(table, ["frame", "sequence"], "write it, or remove it"):
        frame = PurePosixPath(row["frame"]).stem
        if not row["sequence"] or sequences.setdefault(frame, row["sequence"]) != row["sequence"]:
            found = f"no sequence, or a second one, of {frame!r}"
            error = VapError(where, found, "one sequence for every frame", "correct the row")
            left_out.add("rows of sequences", error)
    return sequences


def _sequence_of(table: Source, sequences: Mapping[str, str], frame: str) -> str:
    stem = PurePosixPath(frame).stem
    if not sequences:
        return ""
    if stem not in sequences:
        fix = "complete it, or remove it"
        raise VapError(table, f"no row of {stem!r}", "the sequence of every frame of train2019", fix)
    return sequences[stem]


def _voc_label(frame: Source, annotation: Source | None) -> str:
    """The class of a VOC annotation's objects; NEGATIVE where it has none."""
    fix = "fetch PolypsSet again, or set prepare.on_error: skip"
    if annotation is None:
        raise VapError(frame, "no annotation", "Annotation/.../FRAME.xml beside Image/", fix)
    try:
        data = annotation.read_bytes()
        _refuse_document_type(data)
        objects = ElementTree.fromstring(data).iter("object")
        labels = {composed((node.findtext("name") or "").strip()) for node in objects}
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise VapError(annotation, f"no VOC annotation ({error})", "one in XML", fix) from None
    if len(labels) > 1 or "" in labels:
        found = " and ".join(sorted(map(repr, labels)))
        raise VapError(annotation, f"the classes {found}", "one class", fix)
    return labels.pop() if labels else NEGATIVE


def _refuse_document_type(data: bytes) -> None:
    """No annotation has one, and its entities can explode; in whatever encoding the file is.

    Raises:
        ValueError: there is one.
    """

    def refuse(*_: object) -> None:
        raise ValueError("a document type")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def sun(root: Path, inputs: dict[str, Path], left_out: LeftOut) -> list[Frame]:
    """SUN: sundatabase_{positive,negative}_partN/caseM/FRAME.jpg; a case, which is one polyp, is a group.

    SUN gives the pathology of its cases in a table of its paper only: pathology.csv (case,pathology),
    e.g. `case1,low-grade adenoma`, has to be written.

    Raises:
        VapError: no case, no pathology.csv, or no pathology of a case.
    """
    tree = Tree(root, left_out.member)
    tree.tell_passed()
    frames: list[Frame] = []
    cases: list[tuple[str, str, str, Source]] = []
    for path, source in tree.images().items():
        kinds = re.findall("positive|negative", path.lower())
        case = next((p for p in PurePosixPath(path).parts[:-1] if re.fullmatch(r"case\d+", p)), None)
        if case is None or len(set(kinds)) != 1:
            expected = "sundatabase_{positive,negative}_partN/caseM/FRAME.jpg"
            error = VapError(source, "a frame outside a case", expected, "lay it out as it is unpacked")
            left_out.add("frames outside a case", error)
            continue
        cases.append((kinds[0], case, path, source))
    if not cases:
        fix = "ask for it at http://amed8k.sundatabase.org and unpack its archives there, with the password"
        raise VapError(root, "no frame", "sundatabase_positive_part1/case1/*.jpg and so on", fix)
    pathology: dict[str, str] = {}
    if any(kind == "positive" for kind, *_ in cases):
        table = root / "pathology.csv"
        pathology = _pathology(table)
        inputs["sun pathology"] = table
    for kind, case, path, source in cases:
        if kind == "positive" and case not in pathology:
            error = VapError(table, f"no row of {case}", "the pathology of every case", "complete it")
            left_out.add("frames of a case without a pathology", error)
            continue
        label = pathology[case] if kind == "positive" else NEGATIVE
        group = f"sun-{kind}-{case}"
        identity = f"{group.replace('-', '__')}__{stem_of(PurePosixPath(path).name)}"
        frames.append(Frame(identity, label, f"sun {kind}", group, source))
    return frames


def _pathology(table: Path) -> dict[str, str]:
    fix = "write it from the table in SUN's paper (Misawa et al., 2021): case,pathology"
    found: dict[str, str] = {}
    for where, row in read_table(table, ["case", "pathology"], fix):
        case = row["case"] if row["case"].startswith("case") else f"case{row['case']}"
        if not row["pathology"] or case in found:
            what = f"a second row of {case}" if case in found else f"no pathology of {case}"
            raise VapError(where, what, "one row a case", "correct the row")
        found[case] = row["pathology"]
    return found


def mesejo(root: Path, inputs: dict[str, Path], left_out: LeftOut) -> list[Frame]:
    """Mesejo et al.: frames of the videos, as CLASS/LESION/**/*.png, e.g. Adenoma/adenoma_01/WL/0001.png.

    A lesion's two videos, in white light and narrow band, are one group.

    Raises:
        VapError: no frame, or frames without a folder of their lesion.
    """
    tree = Tree(root, left_out.member)
    tree.tell_passed()
    frames: list[Frame] = []
    for path, source in tree.images().items():
        parts = PurePosixPath(path).parts
        at = next((i for i, part in enumerate(parts) if part.lower() in MESEJO), None)
        if at is None or len(parts) < at + 3:
            expected = "{Adenoma,Hyperplasic,Serrated}/LESION/**/FRAME.png"
            error = VapError(source, "a frame outside a lesion", expected, "lay it out so")
            left_out.add("frames outside a lesion", error)
            continue
        names = PurePosixPath(stem_of("/".join(parts[at + 1 :]))).parts
        frames.append(
            Frame("__".join(("mesejo", *names)), parts[at].lower(), "mesejo", f"mesejo-{names[0]}", source)
        )
    if not frames:
        videos = sum(path.lower().endswith((".mp4", ".avi")) for path in tree.files)
        fix = "take frames out of the videos, e.g. ffmpeg -i WL.mp4 -r 2 WL/%04d.png (docs/data.md)"
        raise VapError(root, f"no frame ({videos} videos)", "CLASS/LESION/**/FRAME.png", fix)
    return frames


def private(root: Path, inputs: dict[str, Path], left_out: LeftOut) -> list[Frame]:
    """One's own: CLASS/[VIDEO/]**/*.png; a folder below a class's is a group.

    groups.csv (path,group), the path relative to this folder, names groups otherwise; then it must name all.

    Raises:
        VapError: no image, one outside a class's folder, or a groups.csv that does not fit.
    """
    tree = Tree(root, left_out.member)
    table = tree.table("groups.csv")
    groups: dict[str, str] = {}
    images = tree.images()
    tree.tell_passed()
    if table.is_file() or table.is_symlink():  # a broken link is told
        inputs["private groups"] = file_of(table)
        for where, row in read_table(table, ["path", "group"], "write it, or remove it"):
            path = str(PurePosixPath(row["path"]))
            if path not in images or not row["group"]:
                found = f"the path {row['path']!r} or the group {row['group']!r}"
                expected = f"the path of an image below {root}, and its group"
                left_out.add("rows of groups", VapError(where, found, expected, "correct the row"))
                continue
            if groups.setdefault(path, row["group"]) != row["group"]:
                raise VapError(where, f"a second group of {path!r}", "one row an image", "remove one")
    frames: list[Frame] = []
    for path, source in images.items():
        parts = PurePosixPath(stem_of(path)).parts
        if len(parts) < 2 or (groups and path not in groups):
            found = "an image outside a class's folder" if len(parts) < 2 else "no row of it in groups.csv"
            error = VapError(source, found, "CLASS/[VIDEO/]**/*.png", "move it, or complete groups.csv")
            left_out.add("images without a class or group", error)
            continue
        identity = "__".join(("private", *parts))
        group = groups.get(path) or "-".join(parts[: 2 if len(parts) > 2 else None])
        frames.append(Frame(identity, parts[0], "private", f"private-{group}", source))
    if not frames:
        raise VapError(root, "no image", "CLASS/[VIDEO/]**/*.png", "put the images there")
    return frames
