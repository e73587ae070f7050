"""What a file of a dataset is, by its name and its first bytes; and what is told of those passed over."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from vap.common.errors import tell

JPEG = {".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg"}
SUFFIXES = frozenset(
    {".png", *JPEG, ".tif", ".tiff", ".bmp", ".dib", ".gif", ".webp", ".pbm", ".pgm", ".pnm", ".ppm"}
)
PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar")
KINDS = 12  # suffixes that are told one by one
HEAD = 132  # bytes that tell what a file is
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # sizes: "BM" alone may begin any text
CONTENTS = {  # what a file begins with
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "BMP": re.compile(rb"BM"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WebP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "HEIC or AVIF": re.compile(rb".{4}ftyp(hei|hev|mif|msf|avi)", re.DOTALL),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
}
READ = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WebP")  # of them
FROM_DICOM = "convert it, as its window shows it, to PNG (with dcmj2pnm of DCMTK, or pydicom)"
LEFT_BEHIND = frozenset(
    {
        "@eadir",  # thumbnails of a Synology server
        "#recycle",
        "@recycle",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
LEFT, BROKEN, DICOM = "left behind", "broken links", "DICOM"  # reasons to pass a file over, beside suffixes


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is what file servers, desktops and notebooks leave behind.

    Hidden ones are too (.DS_Store, ._x.png, .AppleDouble, .ipynb_checkpoints).
    """
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in LEFT_BEHIND


def content(head: bytes) -> str:
    """What a file is by its first HEAD bytes, whatever its name: one of CONTENTS, "DICOM", or else ""."""
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") not in BMP_HEADERS:
        return ""
    return next((kind for kind, magic in CONTENTS.items() if magic.match(head)), "")


def content_of(path: Path) -> str:
    """As `content`, of a file on disk; "" where it cannot be read."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return content(file.read(HEAD))
    except OSError:
        return ""


def why_not(path: Path) -> str | None:
    """Why a file is passed over: LEFT, BROKEN, DICOM, or its suffix and content; None of an image.

    An image has the suffix of one; or none (or one of digits, as in a UID) and the content of one. A broken
    link with an image's suffix is told when it is read.
    """
    if is_left_behind(path.name):
        return LEFT
    if (suffix := suffix_of(path.name)) in SUFFIXES:
        return None
    kind = content_of(path)
    if kind in READ:
        return f"{suffix} ({kind} by content: rename to read them)" if suffix else None
    if path.is_symlink() and not path.exists():
        return BROKEN
    if suffix in PACKED:
        return f"{suffix} (to be unpacked)"
    return kind if kind == DICOM else suffix or "no suffix"


def suffix_of(name: str) -> str:
    """In lower case; "" of a name without one, or with digits only behind its last dot."""
    suffix = Path(name).suffix.lower()
    return "" if suffix[1:].isdecimal() else suffix


def stem_of(name: str) -> str:
    """A name, or path, without its suffix, which is kept where it is no image's."""
    return str(Path(name).with_suffix("")) if suffix_of(name) in SUFFIXES else name


class Passed:
    """Counts the files of the dataset in `root` that are passed over, by reason."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._counts: Counter[str] = Counter()
        self._first: dict[str, Path] = {}

    def takes(self, path: Path) -> bool:
        """Whether `path`, no folder, is an image; counted if not."""
        if (reason := why_not(path)) is None:
            return True
        self.add(reason, path)
        return False

    def add(self, reason: str, path: Path) -> None:
        """Count `path`."""
        self._counts[reason] += 1
        self._first.setdefault(reason, path)

    @property
    def lines(self) -> list[str]:
        """A line for each sort of reason."""
        counts = dict(self._counts)
        lines = []
        if dicom := counts.pop(DICOM, 0):
            first = self._first[DICOM].relative_to(self._root)
            lines.append(f"passed over, as DICOM by content: {dicom}, the first {first}; {FROM_DICOM}")
        left, broken = counts.pop(LEFT, 0), counts.pop(BROKEN, 0)
        if counts:
            ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in ordered[:KINDS])
            if rest := sum(n for _, n in ordered[KINDS:]):
                kinds += f", {rest} of {len(ordered) - KINDS} other suffixes"
            lines.append(f"passed over, as no images by their suffix: {kinds}")
        if broken:
            first = self._first[BROKEN].relative_to(self._root)
            lines.append(f"passed over, as links to nothing: {broken}, the first {first}")
        if left:
            lines.append(f"passed over, as left by a desktop or file server: {left}")
        return lines

    def tell(self) -> None:
        """Print the lines on standard error."""
        for line in self.lines:
            tell(f"{self._root}: {line}")
