"""Text from outside (descriptions, file names, servers) is text: neither markup nor a terminal's commands."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from toy import BANK, CLASSES, WIDTH, bank_row, write

from vap.common.errors import VapError, plain
from vap.prompts import report

NASTY = "[INST] A [bold]mole[/INST] [link=file:///x]\x1b[31m\x07\x9b1m \u202egnp[/]"


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = np.ones((2, WIDTH))
    rows = [bank_row("", tokens, [])]
    rows += [bank_row(f"{NASTY} {i}", tokens, [(f"i[/b]{i}", CLASSES[i % 2], "train")]) for i in range(4)]
    names = {"encoder": "[/x]", "revision": "1", "classes": CLASSES}
    write(BANK, "bank", rows, width=WIDTH, max_tokens=6, dtype="fp16", **names)


def test_a_description_with_markup_is_shown_as_it_is(bank: None) -> None:
    out = io.StringIO()
    report.show(
        "own", examples=4, console=Console(file=out, width=200, force_terminal=True, color_system=None)
    )
    said = out.getvalue()
    assert "[INST] A [bold]mole[/INST] [link=file:///x]" in said
    assert "\x1b[31m" not in said
    assert not {"\x07", "\x9b", "\u202e"} & set(said)
    assert "[/x], revision 1" in said
    report.stats("own", console=Console(file=out))


def test_an_error_never_steers_the_terminal() -> None:
    line = str(VapError("a\x1b]0;title\x07.png", "b\x9b2J\u202e", "c", "d"))
    assert line == "a\ufffd]0;title\ufffd.png: found b\ufffd2J\ufffd; expected c; d"


def test_plain_keeps_letters_of_all_languages_and_line_breaks() -> None:
    text = "Nävus 皮肤 😀\n\tκύτταρο"
    assert plain(text) == text
