"""The page of pictures: words that stay in their column, and letters that the font lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from toy import settings, write

from vap.common.errors import VapError
from vap.common.places import prepared_path, samples_path
from vap.datasets.images import encode
from vap.results import figure
from vap.results.lettering import Lettering

SIDE = 64
LONG = "A large irregular black dotted lesion, about 25% of the image, on pale skin without any hair. " * 9


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def letters() -> Lettering:
    return Lettering(None, 10)


def page(classes: list[str], text: str, method: str = "vap", **changes: Any) -> Image.Image:
    """A figure of two columns: one method, whose samples have `text`."""
    image = encode(np.full((SIDE, SIDE, 3), 128, np.uint8))
    rows = [
        {"id": f"{i}", "label": label, "split": "train", "group": f"{i}", "sha256": "", "image": image}
        for i, label in enumerate(classes)
    ]
    write(prepared_path("own"), "prepared", [row | {"attributes": None} for row in rows], classes=classes)
    drawn = [{"index": i, "label": label, "text": text, "image": image} for i, label in enumerate(classes)]
    write(samples_path("own", method, "seen"), "samples", drawn, classes=classes)
    own = settings(prepare__image_size=SIDE, figure={"columns": 2, "zoom": 1, "font": None} | changes)
    return Image.open(figure.run(own.model_copy(update={"methods": [method]}), "own"))


# ── lines ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [5, 30, 64, 128, 500])
def test_no_line_is_wider_than_its_column(letters: Lettering, width: int) -> None:
    for text in (LONG, "Pleural_Thickening", "x" * 200, "one", "a/b-c_d"):
        lines = letters.wrapped(text, width, 10_000)
        assert all(letters.width(line) <= width or len(line) == 1 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())  # nothing is lost


def test_words_stay_whole_where_they_fit(letters: Lettering) -> None:
    assert letters.wrapped("one two  three", 1000, 3) == ["one two three"]
    width = int(letters.width("large round "))
    assert letters.wrapped("a large round brown lesion", width, 9) == ["a large", "round", "brown", "lesion"]
    assert letters.wrapped("Pleural_Thickening", int(letters.width("Thickening")) + 1, 3) == [
        "Pleural_",
        "Thickening",
    ]
    assert letters.wrapped("", 100, 3) == []


def test_a_text_that_goes_on_says_so(letters: Lettering) -> None:
    whole = letters.wrapped(LONG, 128, 1000)
    cut = letters.wrapped(LONG, 128, 5)
    assert cut[:4] == whole[:4]
    assert len(cut) == 5
    assert cut[4].endswith("…")
    assert letters.width(cut[4]) <= 128
    assert letters.wrapped(LONG, 128, len(whole)) == whole  # no mark where it ends


# ── letters ─────────────────────────────────────────────────────────────────────────────────────────


def test_letters_that_the_font_lacks_are_spelled_and_remembered(letters: Lettering) -> None:
    assert letters.spelled("a naive one: 12 %, [x]; (y)!") == "a naive one: 12 %, [x]; (y)!"
    assert letters.lacking == {}
    assert letters.spelled("Ulcère – 3 × 2 cm²") == "Ulcere - 3 x 2 cm2"
    assert list(letters.lacking) == ["è", "–", "×", "²"]
    letters.lacking.clear()
    assert letters.spelled("息 polyp") == "\\u606f polyp"
    assert letters.spelled("息肉") == "\\u606f\\u8089"
    assert letters.lacking == {"息": "息 polyp", "肉": "息肉"}


@pytest.mark.parametrize(("content", "told"), [(None, "no such file"), (b"no font", "no font")])
def test_a_font_that_is_none_is_one_line(content: bytes | None, told: str) -> None:
    if content is not None:
        Path("own.ttf").write_bytes(content)
    with pytest.raises(VapError, match=rf"figure.font: own.ttf: found {told}"):
        page(["a", "b"], "text", font="own.ttf")


def pillows_font() -> bytes:
    font = ImageFont.load_default(10)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_bytes


def test_a_font_file_is_what_the_page_is_lettered_in() -> None:
    Path("own.ttf").write_bytes(pillows_font())
    built_in = np.asarray(page(["a", "b"], "a small polyp"))
    assert np.array_equal(np.asarray(page(["a", "b"], "a small polyp", font="own.ttf")), built_in)
    with pytest.raises(
        VapError, match=r"figure.font: DejaVuSans.ttf: found no such file"
    ):  # not the system's
        page(["a", "b"], "text", font="DejaVuSans.ttf")


def test_a_damaged_font_is_one_line() -> None:
    Path("own.ttf").write_bytes(pillows_font()[:5000])
    with pytest.raises(VapError, match=r"figure.font: own.ttf: found no font"):
        page(["a", "b"], "text", font="own.ttf")


# ── the page ────────────────────────────────────────────────────────────────────────────────────────


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """Pixels that are not white."""
    return int((np.asarray(picture.convert("RGB").crop(box)) < 255).any(-1).sum())


def test_words_do_not_run_into_the_next_column_or_off_the_page() -> None:
    found = page(["Pleural_Thickening", "x" * 60], LONG)
    gap = (figure.MARGIN + SIDE, 0, figure.MARGIN + SIDE + figure.GAP, found.height)
    assert ink(found, gap) == 0
    assert ink(found, (found.width - figure.GAP, 0, found.width, found.height)) == 0
    assert ink(found, (0, found.height - 2, found.width, found.height)) == 0


def test_a_row_is_as_high_as_its_longest_description() -> None:
    short, long = page(["a", "b"], "short"), page(["a", "b"], LONG)
    assert long.height - short.height == (figure.TEXT_LINES - 1) * figure.LINE
    none = page(["a", "b"], "")
    assert short.height - none.height == figure.LINE


def test_a_long_name_of_a_method_widens_the_margin() -> None:
    name = "vap_of_the_long_and_descriptive_name"
    plain, wide = page(["a", "b"], "x"), page(["a", "b"], "x", method=name)
    more = wide.width - plain.width
    assert more > 50
    left = figure.MARGIN + more
    assert ink(wide, (left - figure.GAP + 1, 0, left, wide.height)) == 0


def test_a_page_says_what_its_font_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    page(["a", "b"], "a small polyp")
    assert "figure" not in capsys.readouterr().err
    page(["息肉", "b"], "a small polyp")
    said = capsys.readouterr().err
    assert "figure own: the font has no '息' of '息肉'" in said
    assert "figure.font" in said


def test_the_same_page_has_the_same_bytes() -> None:
    page(["息肉", "b"], LONG)
    first = figure.figure_path("own").read_bytes()
    page(["息肉", "b"], LONG)
    assert figure.figure_path("own").read_bytes() == first
