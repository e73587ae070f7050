"""The files of a raw dataset under one naming, loose or in archives: nothing has to be unpacked.

A zip or a plain tar is read in place. A compressed tar has no random access: the members that are
wanted are unpacked once, in one pass, into one file under work/unpacked/, whose index gives their places.
No member's name is ever used as a path to write to.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from vap.common.artifacts import WORK, atomic
from vap.common.errors import VapError
from vap.common.markup import composed
from vap.common.progress import Progress
from vap.datasets.images import MAX_BYTES
from vap.datasets.kinds import READ, SUFFIXES, Passed, content_of, is_left_behind, suffix_of

UNPACKED = WORK / "unpacked"
TABLES = frozenset({".csv", ".txt", ".xml"})
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
DEPTH = 3  # folders below the dataset's in which an archive is looked for
BOMB_RATIO, BOMB_BYTES = 200, 2**30  # more than both, unpacked over packed, is no set of images
MB = 2**20
# what Python's readers of archives raise of damaged ones, beside their own errors; those of zips two more
DAMAGE = (zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, OverflowError)
ZIP_DAMAGE = (zipfile.BadZipFile, *DAMAGE, RuntimeError, OSError)

Problem = Callable[[VapError], None]  # raises it, or notes it: see vap.datasets.base.LeftOut


@dataclass(frozen=True)
class Member:
    """A file in an archive, which is read in place.

    Attributes:
        archive: the archive, for messages.
        path: of the member in it.
        size: in bytes.
        offset: of its bytes in `plain`; None where `zipped` reads it.
    """

    archive: Path
    path: str
    size: int
    plain: Path | None = None
    offset: int = 0
    zipped: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.archive}:{self.path}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def is_file(self) -> bool:
        return True

    def is_symlink(self) -> bool:
        return False

    def read_bytes(self) -> bytes:
        """Its bytes; safe in several threads.

        Raises:
            ValueError: the archive is damaged there.
        """
        if self.zipped is not None:
            try:
                data = self.zipped.read(self.path)
            except ZIP_DAMAGE as error:
                raise ValueError(f"damaged in the archive: {error}") from None
        else:
            assert self.plain is not None
            with self.plain.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError(f"{len(data)} of {self.size} bytes in the archive")
        return data


Source = Path | Member


class Tree:
    """The files below a folder and in the archives there, by their path in it.

    An archive's members stand where unpacking would put them: beside it, or in a folder of its name
    where they have none of that name themselves (images_001.tar.gz: images_001/images/...). A loose
    file hides a member of the same path. Links are followed, hidden files ignored. Paths are in Unicode's
    composed form, whatever form the disk or the archive has.

    Args:
        names: the file names that are wanted of the archives' images; None wants all.
        problem: what to do about a member that cannot be used.
        open_archives: False leaves the archives' members out.

    Raises:
        VapError: an archive is damaged or a bomb; or what `problem` raises.
        OSError: a folder or archive is unreadable.
    """

    def __init__(
        self,
        root: Path,
        problem: Problem,
        names: Collection[str] | None = None,
        open_archives: bool = True,
    ) -> None:
        self.root = root
        self.files: dict[str, Source] = {}
        self.archives: list[Path] = []
        for file in _walk(root):
            path = composed(file.relative_to(root).as_posix())
            if path.lower().endswith(ARCHIVES) and path.count("/") < DEPTH:
                if file.is_symlink() and not file.exists():
                    raise VapError(file, "a broken link", "an archive", "mend or remove the link")
                self.archives.append(file)
            elif path in self.files:
                found = f"{path} twice, in two forms of Unicode"
                problem(VapError(root, found, "a name in one form", "rename or remove one of them"))
            else:
                self.files[path] = file
        for archive in self.archives if open_archives else ():
            zipped = archive.name.lower().endswith(".zip")
            members = list((_zip if zipped else _tar)(root, archive, problem, names))
            home = PurePosixPath(composed(archive.parent.relative_to(root).as_posix()))
            name = composed(archive.name)
            stem = name[: -len(next(s for s in ARCHIVES if name.lower().endswith(s)))]
            if not any(composed(PurePosixPath(member.path).parts[0]) == stem for member in members):
                home /= stem
            for member in members:
                self.files.setdefault((home / composed(member.path)).as_posix(), member)

    def table(self, name: str) -> Source:
        """The file `name`, wherever it is; its place beside the images, where it is nowhere.

        Raises:
            VapError: there are several.
        """
        found = [file for path, file in self.files.items() if PurePosixPath(path).name == name]
        if len(found) > 1:
            where = " and ".join(map(str, found[:2]))
            raise VapError(self.root, f"{name} twice ({where})", "one of it", "remove the other")
        return found[0] if found else self.root / name

    def below(self, folder: str) -> dict[str, Source]:
        """The files with a folder of that name above them, by their path from it on."""
        found = {}
        for path, file in self.files.items():
            parts = PurePosixPath(path).parts
            if folder in parts[:-1]:
                found["/".join(parts[parts.index(folder) + 1 :])] = file
        return found

    def images(self, folder: str | None = None) -> dict[str, Source]:
        """The image files, by path; those below `folder`, if one is given. A loose file may lack a suffix."""
        files = self.files if folder is None else self.below(folder)
        return {path: file for path, file in files.items() if _is_image(file)}

    def tell_passed(self) -> None:
        """Print, on standard error, what loose files are neither images nor tables, by reason."""
        passed = Passed(self.root)
        for file in self.files.values():
            if isinstance(file, Path) and file.suffix.lower() not in TABLES:
                passed.takes(file)
        passed.tell()


def _is_image(file: Source) -> bool:
    if (suffix := suffix_of(file.name)) or isinstance(file, Member):
        return suffix in SUFFIXES
    return content_of(file) in READ


def file_of(source: Source) -> Path:
    """The file on disk that holds `source`."""
    return source.archive if isinstance(source, Member) else source


def size_of(source: Source) -> int:
    """In bytes; -1 of a broken link, which is told when it is read."""
    if isinstance(source, Member):
        return source.size
    try:
        return source.stat().st_size
    except OSError:
        return -1


def discard(root: Path) -> None:
    """Remove what was unpacked of the dataset in `root`, and of its parts."""
    home = _home(root)
    for folder in (home, *home.parent.glob(f"{home.name}__*")):
        shutil.rmtree(folder, ignore_errors=True)


def _home(root: Path) -> Path:
    return UNPACKED / "__".join(part for part in root.parts if part != root.anchor)


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below `folder`, sorted; a link to a folder above it is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if is_left_behind(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry, (*above, real))
        else:
            yield entry


# ── members ─────────────────────────────────────────────────────────────────────────────────────────


def _wanted(name: str, names: Collection[str] | None) -> bool:
    path = PurePosixPath(name)
    if any(is_left_behind(part) for part in path.parts):
        return False
    suffix = path.suffix.lower()
    return suffix in TABLES or (suffix in SUFFIXES and (names is None or composed(path.name) in names))


def _usable(archive: Path, name: str, size: int, regular: bool, problem: Problem) -> bool:
    """Whether a wanted member can be used; `problem` hears why not."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name:
        found, expected = f"the member {name!r}, which leaves the archive", "names of files within it"
    elif not regular:
        found, expected = f"the member {name!r}, which is a link or a device", "plain files"
    elif size > MAX_BYTES:
        found, expected = f"the member {name!r} of {size} bytes", f"at most {MAX_BYTES}"
    else:
        return True
    problem(VapError(archive, found, expected, "fetch the archive again from its owner"))
    return False


def _damaged(archive: Path, error: object) -> VapError:
    found = f"no whole archive ({error})"
    return VapError(archive, found, "the archive as its owner gives it", "fetch it again, or unpack it")


def _bomb(archive: Path, total: int) -> VapError | None:
    if total <= max(BOMB_BYTES, BOMB_RATIO * archive.stat().st_size):
        return None
    found = f"{total // MB} MB or more in {archive.stat().st_size} bytes, a decompression bomb?"
    return VapError(archive, found, f"at most {BOMB_RATIO} times its size", "fetch it again from its owner")


def _zip(root: Path, archive: Path, problem: Problem, names: Collection[str] | None) -> Iterator[Member]:
    try:
        zipped = zipfile.ZipFile(archive)
    except PermissionError:
        raise
    except ZIP_DAMAGE as error:
        raise _damaged(archive, error) from None
    infos = [info for info in zipped.infolist() if not info.is_dir() and _wanted(info.filename, names)]
    if bomb := _bomb(archive, sum(info.file_size for info in infos)):
        raise bomb
    seen: set[str] = set()
    for info in infos:
        if info.flag_bits & 1:
            fix = f"unpack it with its password in {root}, then move the archive away"
            raise VapError(archive, "an encrypted archive", "one without a password", fix)
        kind = info.external_attr >> 28
        if not _usable(archive, info.filename, info.file_size, kind in (0, 8), problem):
            continue
        if info.filename in seen:
            found = f"the member {info.filename!r} twice"
            problem(VapError(archive, found, "one of each name", "fetch the archive again"))
            continue
        seen.add(info.filename)
        yield Member(archive, info.filename, info.file_size, zipped=zipped)


def _tar(root: Path, archive: Path, problem: Problem, names: Collection[str] | None) -> Iterator[Member]:
    plain = archive.name.lower().endswith(".tar")
    try:
        if plain:
            with tarfile.open(archive, "r:") as tar:
                yield from _tar_members(archive, tar, problem, names, archive, None)
        else:
            yield from _unpacked(root, archive, problem, names)
    except (tarfile.TarError, *DAMAGE) as error:
        raise _damaged(archive, error) from None


def _tar_members(
    archive: Path,
    tar: tarfile.TarFile,
    problem: Problem,
    names: Collection[str] | None,
    plain: Path,
    copy: IO[bytes] | None,
) -> Iterator[Member]:
    """The wanted members; their bytes go to `copy`, if there is one, else lie in the archive itself."""
    total = 0
    for info in tar:
        total += info.size
        if bomb := _bomb(archive, total):
            raise bomb
        if info.isdir() or not _wanted(info.name, names):
            continue
        if not _usable(archive, info.name, info.size, info.isreg() and not info.issparse(), problem):
            continue
        offset = info.offset_data
        if copy is not None:
            offset = copy.tell()
            reader = tar.extractfile(info)
            assert reader is not None
            shutil.copyfileobj(reader, copy)
        yield Member(archive, info.name.removeprefix("./"), info.size, plain, offset)


def _unpacked(root: Path, archive: Path, problem: Problem, names: Collection[str] | None) -> Iterator[Member]:
    """The wanted members of a compressed tar, from the copy in work/unpacked/, made if it is not there."""
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode())
    for name in sorted(names or ()):
        key.update(f"{name}\n".encode())
    folder = _home(root)
    base = f"{archive.name}-{'all' if names is None else 'some'}-{key.hexdigest()[:16]}"
    data, index = folder / f"{base}.bin", folder / f"{base}.json"
    if not (index.is_file() and data.is_file()):
        noted: list[VapError] = []
        rows: list[tuple[str, int, int]] = []
        label = f"unpack {archive.name}"
        with Progress(label, status.st_size // MB, "MB") as progress, archive.open("rb") as packed:
            with (
                atomic(data) as part,
                part.open("wb") as copy,
                tarfile.open(fileobj=packed, mode="r|gz") as tar,
            ):
                for member in _tar_members(archive, tar, noted.append, names, data, copy):
                    rows.append((member.path, member.size, member.offset))
                    progress.advance(packed.tell() // MB - progress.done)
            with atomic(index) as part:
                problems = [(e.where, e.found, e.expected, e.fix) for e in noted]
                part.write_text(json.dumps({"members": rows, "problems": problems}), encoding="utf-8")
    record = json.loads(index.read_text(encoding="utf-8"))
    for found in record["problems"]:
        problem(VapError(*found))
    for path, size, offset in record["members"]:
        yield Member(archive, path, size, data, offset)
