"""The one error that a user is meant to read."""


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
        super().__init__(" ".join(f"{where}: found {found}; expected {expected}; {fix}".split()))


def in_brief(error: BaseException) -> str:
    """What an error of a library's says, in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class Stopped(Exception):
    """SIGTERM came and the state is saved: the next run goes on from there."""
