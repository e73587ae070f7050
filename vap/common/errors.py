"""The one error that a user is meant to read."""

from __future__ import annotations

import sys
import unicodedata

STEERING = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that steer a terminal
TURNING = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # turn the direction of what follows


def plain(text: str) -> str:
    """Text from outside, fit to be printed: what would steer a terminal is shown as a box, newlines stay."""
    return "".join(c if c in "\n\t" or not _steers(c) else "\ufffd" for c in text)


def tell(text: str) -> None:
    """Print a note on standard error. It may hold names of files and classes, which steer no terminal."""
    print(plain(text), file=sys.stderr)


def _steers(c: str) -> bool:
    return unicodedata.category(c) in STEERING or c in TURNING


class VapError(Exception):
    """Bad input or a broken environment, told in one line.

    Args:
        where: the file, key or command at fault.
        found: what is there.
        expected: what should be there.
        fix: what to do about it.
    """

    def __init__(self, where: object, found: str, expected: str, fix: str) -> None:
        self.where, self.found, self.expected, self.fix = str(where), found, expected, fix
        super().__init__(plain(" ".join(f"{where}: found {found}; expected {expected}; {fix}".split())))


def in_brief(error: BaseException) -> str:
    """What an error of a library's says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Stopped(Exception):
    """SIGTERM came and the state is saved: the next run goes on from there."""
