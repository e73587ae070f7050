"""The report of a run: its parts, what is missing, escaping, the same bytes twice, no request to outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from toy import PROJECT, settings, write, write_bank, write_prepared

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.common.places import bank_path, model_path, prepared_path, samples_path
from vap.report import report
from vap.report.plots import bars, curves
from vap.results import table

NASTY = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 1, images, samples, a bank and a curve; no Table 2 and 3, figure, description or model."""
    monkeypatch.chdir(tmp_path)
    write_prepared(prepared_path("own"), side=64)
    write_bank(bank_path("own"))
    prepared = ArrowFile(prepared_path("own"), "prepared")
    drawn = [
        {"index": i, "label": prepared.value("label", i), "text": NASTY, "image": prepared.value("image", i)}
        for i in range(4)
    ]
    rows = []
    for method, fid in (("uvit", "2.500"), ("vap", "1.500")):
        write(samples_path("own", method, "seen"), "samples", drawn)
        row = dict.fromkeys(table.COLUMNS, "") | {"dataset": "own", "method": method, "fid": fid}
        row |= {"fid_low": "1.000", "fid_high": "3.000", "features": NASTY, "precision": "0.500"}
        rows.append(row)
    table.write(table.TABLE, table.COLUMNS, rows, "")
    model_path("own", "vap").mkdir(parents=True)
    (model_path("own", "vap") / "train.csv").write_text("step,loss\n2,0.9\n4,0.4\n", encoding="utf-8")


def test_the_page_has_what_is_there_and_tells_what_is_not() -> None:
    text = report.run(settings()).read_text(encoding="utf-8")
    for section in ("table1", "bars", "beside", "curves", "neighbours", "provenance"):
        assert f'<section id="{section}">' in text
    for section in ("table2", "table3", "sweeps", "captions", "figures"):
        assert f'<section id="{section}">' not in text
    missing = text[text.index('<section id="missing">') : text.index('<section id="table1">')]
    for what in ("table2.csv", "table3.csv", "StyleGAN", "Sweeps of own", "own.parquet", "own.png"):
        assert what in missing, what
    assert set(re.findall(r'href="#(\w+)"', text)) <= set(re.findall(r'<section id="(\w+)"', text))


def test_it_needs_no_other_file_and_shows_markup_as_text() -> None:
    text = report.run(settings()).read_text(encoding="utf-8")
    assert NASTY not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    sources = re.findall(r'<img src="([^"]+)" alt="[^"]+"', text)
    assert len(sources) == text.count("<img") > 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_same_run_gives_the_same_bytes() -> None:
    first = report.run(settings()).read_bytes()
    assert report.run(settings()).read_bytes() == first


def test_a_copied_training_image_is_found() -> None:
    """The samples of this project are training images: each is its own neighbour, at no distance."""
    text = report.run(settings()).read_text(encoding="utf-8")
    assert "half of the samples have one nearer than 0.00" in text
    assert "The samples lie nearer to training images than new real images do" in text


def test_the_numbers_to_compare() -> None:
    report.run(settings())
    found = json.loads((report.SUMMARY / "own/vap.json").read_text(encoding="utf-8"))
    assert found == {"distance": 1.5, "precision": 0.5}
    bars_csv = report.DISTANCES.read_text(encoding="utf-8")
    assert bars_csv == "run,distance\nown uvit,2.500\nown vap,1.500\n"


def test_without_table_1_there_is_no_report() -> None:
    table.TABLE.unlink()
    with pytest.raises(VapError, match="Table 1 of this run"):
        report.run(settings())


def test_plots_leave_out_what_is_no_number() -> None:
    nan = float("nan")
    assert bars([("a", nan, None, None)], "none") == ""
    assert curves({"a": [(1, nan)]}, "none", "step", "loss") == ""
    drawn = bars([(NASTY, 2.0, 1.0, 4.0), ("b", 0.0, None, None)], "two")
    assert drawn.count("<rect") == 2
    assert drawn.count("whisker") == 1
    assert NASTY not in drawn
    lines = curves({"a": [(1, 10.0), (2, 1.0)], "b": [(1, 3.0), (2, 3.0)]}, "two", "step", "loss")
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)"', lines))) == 2  # told apart without colours
    assert "log" in lines


def test_tables_figures_and_the_page_are_marked_for_snakemakes_report() -> None:
    """Its own page is not made here: `snakemake --report` fetches JavaScript from a network."""
    rules = "".join(path.read_text(encoding="utf-8") for path in sorted(PROJECT.glob("workflow/rules/*.smk")))
    marks = re.findall(r'report\("([^"]+)", caption="\.\./report/([^"]+)", category="(\w+)"\)', rules)
    assert {path: category for path, _, category in marks} == {
        "results/tables/table1.csv": "Tables",
        "results/tables/table2.csv": "Tables",
        "results/tables/table3.csv": "Tables",
        "results/figures/{dataset}.png": "Figures",
        "results/report.html": "Report",
    }
    assert all((PROJECT / "workflow/report" / caption).read_text(encoding="utf-8") for _, caption, _ in marks)
