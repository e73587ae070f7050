"""Text from outside in files of ours: no formula in a CSV, no markup in Markdown or HTML.

Class names are folders' names, and a server names its model as it likes; both end up in tables that others
open with a spreadsheet, or show on a page.
"""

from __future__ import annotations

import csv
import html
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from vap.common.errors import plain

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
QUOTE = "'"  # before text that a spreadsheet would compute; it shows the text behind it


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes "ä" as two characters, tables as one."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str, names: Iterable[str]) -> str | None:
    """That of `names` which is `name`, in either of Unicode's forms; None if none is."""
    return next((one for one in names if composed(one) == composed(name)), None)


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────────────


def cell(value: Any) -> Any:
    """A value as a CSV's cell: text that a spreadsheet would take for a formula gets a quote in front.

    Numbers, also as text, are left alone. `uncell` takes the quote away.
    """
    return f"{QUOTE}{value}" if isinstance(value, str) and _computed(value.lstrip(QUOTE)) else value


def uncell(text: str) -> str:
    """The text that `cell` was given."""
    return text[1:] if text.startswith(QUOTE) and _computed(text.lstrip(QUOTE)) else text


def _computed(text: str) -> bool:
    if NUMBER.fullmatch(text):
        return False
    # spreadsheets skip spaces, and some take the full-width signs of Chinese and Japanese for these
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])
    return text.startswith(("\t", "\r", "\n")) or first in ("=", "+", "-", "@")


def write_csv(file: IO[str], columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A CSV with a header, its cells made by `cell`; `file` is opened with newline=""."""
    for row in ({name: name for name in columns}, *rows):
        cells = [cell(row[name]) for name in columns]
        # the writer quotes a line feed, and not a carriage return, which readers take for one
        whole = any("\r" in str(one) for one in cells)
        csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if whole else csv.QUOTE_MINIMAL).writerow(
            cells
        )


# ── Markdown and HTML ───────────────────────────────────────────────────────────────────────────────


def markdown(text: str) -> str:
    """Text as Markdown that shows it, in one line, anywhere but at a line's start."""
    text = html.escape(" ".join(plain(text).split()), quote=False)
    text = re.sub(r"[\\`*\[\]|~$@]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    return re.sub(r"(?i)(www)\.|:(?=//)", lambda found: f"{found[1] or ''}\\{found[0][-1]}", text)


def html_text(text: str) -> str:
    """Text as HTML that shows it, also within an attribute's quotes."""
    return html.escape(plain(text))
