"""Text in pictures: lines of a given width, and letters that a font lacks."""

from __future__ import annotations

import functools
import io
import re
import unicodedata
from pathlib import Path

from PIL import ImageFont

from vap.common.errors import VapError, in_brief

NO_LETTER = "\U0010ffff"  # a code point that no font has
MORE = "…"
NEEDED = "\\uxU0123456789abcdef"  # to spell code points
PLAIN = {"–": "-", "—": "-", "−": "-", "×": "x"}  # what Unicode does not decompose
PIECES = re.compile(r"\s+|[^\s_/-]+[_/-]?|[_/-]")  # between which a line may end


class Lettering:
    """A font at one size.

    Args:
        path: of a .ttf, .otf or .ttc file; None for Pillow's own font, which has Latin letters.
        size: pixels.

    Attributes:
        lacking: letters that were to be drawn and that the font lacks, each with the first text that has it.

    Raises:
        VapError: the file is absent, no font, or one without Latin letters.
    """

    def __init__(self, path: Path | None, size: int) -> None:
        self.font = _load(path, size)
        self.lacking: dict[str, str] = {}
        self.has = functools.cache(self._has)
        if not all(map(self.has, NEEDED)):
            raise _no_font(path, "no font with Latin letters and digits")

    def _has(self, letter: str) -> bool:
        return letter.isspace() or self._mask(letter) != self._mask(NO_LETTER)

    def _mask(self, letter: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(letter)
        return mask.size, bytes(mask)

    def spelled(self, text: str) -> str:
        """The text with letters that the font lacks without accents, or else as code points: "\\u606f"."""
        return "".join(letter if self.has(letter) else self._instead(letter, text) for letter in text)

    def _instead(self, letter: str, text: str) -> str:
        self.lacking.setdefault(letter, text)
        decomposed = unicodedata.normalize("NFKD", PLAIN.get(letter, letter))
        plain = "".join(c for c in decomposed if not unicodedata.combining(c))
        return plain if plain and all(map(self.has, plain)) else letter.encode("unicode_escape").decode()

    def width(self, text: str) -> float:
        """Pixels."""
        return self.font.getlength(text)

    def wrapped(self, text: str, width: int, most: int) -> list[str]:
        """At most `most` lines of at most `width` pixels; the last ends with "…" where the text goes on.

        A word that is wider than a line is cut where the line ends; a line has one letter at least.
        """
        lines, line = [], ""
        for piece in PIECES.findall(self.spelled(text)):
            piece = " " if piece.isspace() else piece
            if self.width((line + piece).rstrip()) <= width:
                line += piece
                continue
            lines += [line]
            line = piece.lstrip()
            while self.width(line) > width and len(line) > 1:
                fitting = max(self._fitting(line, width), 1)
                lines += [line[:fitting]]
                line = line[fitting:]
        lines = [found for found in map(str.strip, [*lines, line]) if found]
        if len(lines) > most:
            last = lines[most - 1]
            lines[most - 1 :] = [last[: self._fitting(last, width - self.width(MORE))].rstrip() + MORE]
        return lines

    def _fitting(self, text: str, width: float) -> int:
        """How many of its letters fit."""
        return next((n for n in range(len(text), 0, -1) if self.width(text[:n]) <= width), 0)


def _load(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    try:
        # read here: for a file that is not there Pillow takes one of that name from the system's folders.
        # Laid out letter by letter: the other way needs a library that not every machine has.
        data = io.BytesIO(path.read_bytes())
        font = ImageFont.truetype(data, size, layout_engine=ImageFont.Layout.BASIC)
        font.getmask("a")  # which a damaged file fails at
        return font
    except OSError as error:
        absent = isinstance(error, FileNotFoundError)
        raise _no_font(path, "no such file" if absent else f"no font ({in_brief(error)})") from None


def _no_font(path: Path | None, found: str) -> VapError:
    expected, fix = "a .ttf, .otf or .ttc file", "correct the path, or set null"
    return VapError(f"params.yaml: figure.font: {path}", found, expected, fix)
