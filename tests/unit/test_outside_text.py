"""Text from outside (descriptions, file names, servers) is text: neither markup nor a terminal's commands."""

from __future__ import annotations

import csv
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from rich.console import Console
from toy import BANK, CLASSES, WIDTH, bank_row, write

from vap.common.errors import VapError, plain, tell
from vap.common.markup import cell, html_text, markdown, uncell, write_csv
from vap.common.progress import Progress
from vap.prompts import report
from vap.results.table import lines_of

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


def test_neither_notes_nor_progress_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    tell(f"data/raw/own: {NASTY}")
    with Progress(f"check {NASTY}", 1, "img") as progress:
        progress.skip(1)
        progress.advance(0, NASTY)
        progress._print(NASTY)
    said = capsys.readouterr().err
    assert said.count("[INST] A [bold]mole") == 5
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)


def test_plain_keeps_letters_of_all_languages_and_line_breaks() -> None:
    text = "Nävus 皮肤 😀\n\tκύτταρο"
    assert plain(text) == text


# ── CSV ─────────────────────────────────────────────────────────────────────────────────────────────

FORMULAS = (
    '=HYPERLINK("http://a.example","mole")',
    "+1+cmd|' /C calc'!A0",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "＝1",
    "－1+1",
    "-",
    "+",
)
HARMLESS = ("mole", "", "'quoted'", "a=b", "–", "low-grade", "-0.5", "+1e-3", "-.5", "1.", "-12")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_and_words_are_left_alone(text: str) -> None:
    assert cell(text) == text
    assert cell(-0.5) == -0.5


@pytest.mark.parametrize("text", [*FORMULAS, *HARMLESS, "'=1", "''=1", "'-0.5", "'mole"])
def test_a_cell_is_read_back_as_it_was(text: str) -> None:
    file = io.StringIO(newline="")
    write_csv(file, ["name", "n"], [{"name": text, "n": -1}])
    (row,) = csv.DictReader(io.StringIO(file.getvalue(), newline=""))
    assert (uncell(row["name"]), row["n"]) == (text, "-1")


# ── Markdown and HTML ───────────────────────────────────────────────────────────────────────────────

MARKUP = (
    "mole | scar | 100 %",
    "a\n| b |\n\n# c",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &#124;",
    "[mole](javascript:alert(1))",
    "![](http://a.example/x.png)",
    "[mole]: http://a.example",
    "<http://a.example>",
    "http://a.example and www.a.example, a@a.example",
    "`code` ``",
    "**bold** __bold__ _it_ *it* ~~gone~~ $x$",
    "ends with \\",
    "\\| \\` \\<b>",
    "Nävus 皮肤_1, w/o vap_without_pcm 0.5 ± 0.1 (n = 3)",
    "a\x1b[31mb\u202ec\x07",
)


@pytest.mark.parametrize("text", MARKUP)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    lines = [f"# Of {markdown(text)}", "", *lines_of(["a", "b"], [[markdown(text), "1"]]), "", "After."]
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse("\n".join(lines))
    blocks = [token.tag for token in tokens if token.nesting == 1]
    assert blocks == ["h1", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "p"]
    inner = [t for token in tokens for t in token.children or []]
    assert {t.type for t in inner} <= {"text", "text_special"}
    shown = ["".join(t.content for t in token.children or []) for token in tokens if token.type == "inline"]
    whole = " ".join(plain(text).split())
    assert shown == [f"Of {whole}", "a", "b", whole, "1", "After."]


@pytest.mark.parametrize("text", MARKUP)
def test_html_shows_text_as_it_is(text: str) -> None:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(f"{tag} {attrs}")

        def handle_data(self, data: str) -> None:
            found.append(data)

    reader = Reader()
    reader.feed(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    reader.close()
    assert found[0] == f"p {[('title', plain(text))]}"
    assert "".join(found[1:]) == plain(text)


def test_no_address_becomes_a_link_by_itself() -> None:
    assert markdown("http://a.b www.a.b a@b.c") == "http\\://a.b www\\.a.b a\\@b.c"


def test_names_stay_as_they_are_in_markdown() -> None:
    for name in ("vap_without_pcm", "efficientnet-lite0", "Qwen/Qwen2-VL-7B-Instruct", "w/o PCM"):
        assert markdown(name) == name
