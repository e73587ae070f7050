"""The tables beside a dataset's images: CSV files and plain lists, loose or in an archive."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from vap.common.errors import VapError
from vap.common.markup import composed
from vap.datasets.archives import Source


def plain_id(where: str, name: str) -> str:
    """`name`, if it can only name a file of its own folder.

    Raises:
        VapError: it is empty, hidden, or a path.
    """
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
        expected = "a plain image name: no path, not empty, not hidden"
        raise VapError(where, f"the image id {name[:100]!r}", expected, "correct the row")
    return name


def read_text(path: Source, what: str, fix: str) -> str:
    """The text of a UTF-8 file; a byte-order mark is accepted.

    Args:
        what: is expected there.
        fix: what to do where the file is absent.

    Raises:
        VapError: the file is absent, damaged or not UTF-8.
    """
    if not path.is_file():
        raise VapError(path, "a broken link" if path.is_symlink() else "no such file", what, fix)
    try:
        data = path.read_bytes()
    except ValueError as error:
        raise VapError(path, str(error), what, fix) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        found = f"the byte 0x{data[error.start]:02x}, which is not UTF-8 (Latin-1?)"
        raise VapError(f"{path}:{line}", found, "UTF-8 text", "save the file as UTF-8") from None


def read_list(path: Source, fix: str) -> dict[str, str]:
    """The names of a list, a line each, with the place of each: "file:line".

    A byte-order mark, CRLF and blank lines are accepted. Names are in Unicode's composed form.

    Raises:
        VapError: the file is absent, not UTF-8 or empty, or names something twice or a path.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "a list of image names", fix).splitlines(), 1):
        if not (name := composed(line.strip())):
            continue
        where = f"{path}:{number}"
        if plain_id(where, name) in names:
            raise VapError(where, f"{name} a second time", "every name once", "remove one line")
        names[name] = where
    if not names:
        raise VapError(path, "no name", "a line for every image", fix)
    return names


def read_table(path: Source, columns: Sequence[str], fix: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, as ("file:line", column to stripped value).

    A byte-order mark, CRLF and blank lines are accepted. Values are in Unicode's composed form.

    Args:
        columns: that the file must have; it may have others.
        fix: what to do where the file is absent.

    Raises:
        VapError: the file is absent, not UTF-8, lacks a column or a value, or has no row.
    """
    text = read_text(path, f"a CSV file with {','.join(columns)}", fix)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        for name in columns:
            if header.count(name) != 1:
                found = f"{header.count(name) or 'no'} column {name!r} in {','.join(header)[:120]!r}"
                expected = f"the columns {','.join(columns)}"
                raise VapError(path, found, expected, "correct the header, or fetch the file again")
        places = {name: header.index(name) for name in columns}
        empty = True
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            empty = False
            where = f"{path}:{reader.line_num}"
            if len(values) <= max(places.values()):  # what follows may be empty, as in NIH's table
                found, expected = f"{len(values)} values", f"{len(header)} values"
                raise VapError(where, found, expected, "complete the row")
            yield where, {name: composed(values[i].strip()) for name, i in places.items()}
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise VapError(where, f"no CSV ({error})", "a CSV row", "correct the row") from None
    if empty:
        raise VapError(path, "no row below the header", "a row for every image", fix)
