"""Table 3: every cell filled, the paper's numbers beside the paper's rows, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from downstream_toy import with_downstream
from toy import PROJECT, settings

from vap.common.errors import VapError
from vap.downstream.places import label_of, scores_path, source_of
from vap.params import Params
from vap.results import table3
from vap.results.paper3 import TABLE3, printed

PAPER = PROJECT.parent / "shared/paper/vap-diffusion-paper.txt"
SOURCES = ["stylegan", "vap"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def params(*datasets: str, **changes: Any) -> Params:
    network = {
        "model": "test_resnet",
        "weights": None,
        "image_size": 32,
        "steps": 1,
        "batch_size": 2,
        "lr": 0.1,
    }
    plain = settings(
        datasets=list(datasets),
        dataset={name: {"adapter": "phantom", "modality": "dermoscopy"} for name in datasets},
    )
    lists = {"classifiers": ["densenet121", "maxvit"], "ratios": ["1", "10", "100"], "sources": SOURCES}
    return with_downstream(
        plain, {**lists, "classifier": {"densenet121": network, "maxvit": network}, **changes}
    )


def with_shares(*datasets: str) -> Params:
    """Of one method, whose generators are trained on the shares too."""
    return params(*datasets, sources=["vap"], generator_ratios=["1", "10"])


def scores(dataset: str, classifier: str, ratio: str, source: str, /, **changes: Any) -> None:
    data = {
        "dataset": dataset,
        "modality": "chest_xray" if dataset.startswith("chest") else "dermoscopy",
        "classifier": classifier,
        "ratio": int(ratio),
        "source": source,
        "generator_data": None if source == "none" else "full",
        "n_real": 8 * int(ratio),
        "n_synthetic": 0 if source == "none" else 256,
        "n_test": 100,
        "seed": 0,
        "absent": [],
        "balanced_accuracy": 0.5,
        **{
            f"{name}{end}": value
            for name in ("mauc", "f1")
            for end, value in (("", 0.7), ("_low", 0.6), ("_high", 0.8))
        },
        **changes,
    }
    path = scores_path(dataset, classifier, ratio, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def write_all(*datasets: str, **changes: Any) -> None:
    for item in product(datasets, ["densenet121", "maxvit"], ["1", "10", "100"], ["none", *SOURCES]):
        scores(*item, **changes)


def table() -> list[dict[str, str]]:
    with table3.TABLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_row_is_there_and_every_cell_is_filled() -> None:
    write_all("isic2018", "chestxray14", "phantom-colonoscopy")
    table3.run(params("isic2018", "chestxray14", "phantom-colonoscopy"))
    rows = table()
    assert len(rows) == 3 * 2 * 3 * 3
    assert all(value and value.lower() != "nan" for row in rows for value in row.values())
    images = [row["images"] for row in rows]
    assert images[:3] == ["real", "real + stylegan", "real + vap"]
    row = next(
        row
        for row in rows
        if (row["classifier"], row["ratio"], row["images"]) == ("maxvit", "10", "real + vap")
    )
    assert (row["mauc"], row["mauc_low"], row["mauc_high"], row["n_real"]) == (
        "0.700",
        "0.600",
        "0.800",
        "80",
    )
    assert (row["paper_mauc"], row["paper_f1"]) == ("0.940", "0.687")
    chest = [row for row in rows if row["dataset"] == "chestxray14"]
    assert {row[name] for row in chest for name in ("f1", "f1_low", "f1_high", "paper_f1")} == {"/"}
    assert chest[0]["paper_mauc"] == "0.527"
    ours = [row for row in rows if row["dataset"] == "phantom-colonoscopy"]
    assert {row[name] for row in ours for name in ("paper_mauc", "paper_f1")} == {"–"}


def test_a_class_is_no_formula_and_no_markup() -> None:
    absent = ["=1+1", "a|b", "<b>", "[x](http://a.example)", "`c`"]
    write_all("own", absent=absent)
    table3.run(params("own"))
    assert {row["absent"] for row in table()} == {"'" + " ".join(absent)}
    text = table3.TABLE.with_suffix(".md").read_text(encoding="utf-8")
    assert r"=1+1 a\|b &lt;b&gt; \[x\](http\://a.example) \`c\`." in text


def test_the_page_is_grouped_and_says_what_its_numbers_are() -> None:
    write_all("isic2018", absent=["VASC"])
    write_all("phantom-colonoscopy")
    table3.run(params("isic2018", "phantom-colonoscopy"))
    text = table3.TABLE.with_suffix(".md").read_text(encoding="utf-8")
    first, second = text.split("## phantom-colonoscopy")
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    assert lines[4].startswith("| densenet121 | real + vap | 0.700 [0.600, 0.800] |")
    assert lines[4].endswith("| 0.923 / 0.943 / 0.978 | 0.645 / 0.697 / 0.753 |")
    assert "1 % is 8, 10 % is 80, 100 % is 800; stylegan adds 256; vap adds 256; tested on 100" in first
    assert "in no mean: VASC" in first
    assert "paper" not in second.split("mAUC: mean")[0]
    assert "generator_data: full" in second


def test_rows_of_generators_that_have_seen_the_share_alone() -> None:
    write_all("isic2018")
    for classifier, ratio in product(["densenet121", "maxvit"], ["1", "10"]):
        scores("isic2018", classifier, ratio, f"vap_data{ratio}", generator_data="ratio", mauc=0.65)
    table3.run(with_shares("isic2018"))
    rows = table()
    assert list(rows[0])[:6] == ["dataset", "classifier", "ratio", "images", "generator_data", "n_real"]
    found = [
        (row["ratio"], row["images"], row["generator_data"], row["mauc"], row["paper_mauc"])
        for row in rows
        if row["classifier"] == "maxvit"
    ]
    share = "real + vap (trained on the share)"
    assert found == [
        ("1", "real", "–", "0.700", "0.555"),
        ("1", "real + vap", "full", "0.700", "0.923"),
        ("1", share, "ratio", "0.650", "–"),
        ("10", "real", "–", "0.700", "0.867"),
        ("10", "real + vap", "full", "0.700", "0.940"),
        ("10", share, "ratio", "0.650", "–"),
        ("100", "real", "–", "0.700", "0.964"),
        ("100", "real + vap", "full", "0.700", "0.971"),
        ("100", share, "ratio", "0.700", "–"),  # the share is the whole
    ]
    text = table3.TABLE.with_suffix(".md").read_text(encoding="utf-8")
    assert text.count(f"| {share} | 0.650 [0.600, 0.800] | 0.650 [0.600, 0.800] | 0.700 [") == 2
    assert "100 % is 800; vap adds 256; tested on 100" in text
    assert "generator_data: full" in text
    assert "generator_data: ratio" in text
    table3.run(params("isic2018", sources=["vap"]))
    assert "generator_data" not in table()[0]
    assert "ratio`" not in table3.TABLE.with_suffix(".md").read_text(encoding="utf-8")


def test_labels_and_sources_belong_to_one_another() -> None:
    for source, ratio in (("none", "1"), ("vap", "1"), ("vap", "100"), ("vap_data10", "10")):
        assert source_of(label_of(source), ratio) == source
    assert source_of("real + vap (trained on the share)", "100") == "vap"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mauc": math.nan}, "found mauc nan; expected a number from 0 to 1"),
        ({"f1_low": None}, "found no scores"),
        ({"f1": 1.5}, "found f1 1.5"),
        ({"ratio": 10}, "found scores of isic2018 densenet121 10 none"),
    ],
)
def test_a_score_that_is_none_is_one_line(change: dict[str, Any], words: str) -> None:
    write_all("isic2018")
    scores("isic2018", "densenet121", "1", "none", **change)
    with pytest.raises(VapError) as caught:
        table3.run(params("isic2018"))
    assert words in str(caught.value)
    assert not table3.TABLE.exists()


def test_an_absent_file_and_a_broken_one_are_one_line() -> None:
    write_all("isic2018")
    path = scores_path("isic2018", "maxvit", "10", "vap")
    path.write_text("{")
    with pytest.raises(VapError, match=f"{path}: found no scores"):
        table3.run(params("isic2018"))
    path.unlink()
    with pytest.raises(VapError, match=f"{path}: found no such file"):
        table3.run(params("isic2018"))
    path.mkdir()
    with pytest.raises(VapError, match=f"{path}: found no scores .*Is a directory"):
        table3.run(params("isic2018"))


def test_the_papers_numbers_are_those_it_prints() -> None:
    """Table 3 is a run of lines of six values, in the order of ours."""
    if not PAPER.is_file():
        pytest.skip("the paper's text is not beside the checkout")
    text = PAPER.read_text(encoding="utf-8")
    text = text[text.index("Ratio of Real Images") : text.index("Table 3: Comparison")]
    value = r"(0\.\d{3}|/)"
    lines = [found.groups() for found in re.finditer(r"\t" + r"\t".join([value] * 6) + r"\n", text)]
    wanted = [
        tuple(f"{number:.3f}" for number in entry.mauc)
        + (tuple(f"{number:.3f}" for number in entry.f1) if entry.f1 else ("/",) * 3)
        for entry in TABLE3.values()
    ]
    assert lines == wanted
    order = product(("isic2018", "chestxray14", "colonoscopy"), ("densenet121", "maxvit"), ("none", *SOURCES))
    assert list(TABLE3) == list(order)


def test_the_paper_has_no_number_for_other_rows() -> None:
    assert printed("isic2018", "densenet121", 100, "none") == (0.964, 0.710)
    assert printed("chestxray14", "maxvit", 1, "stylegan") == (0.607, None)
    for item in (
        ("isic2019", "maxvit", 1, "vap"),
        ("isic2018", "maxvit", 5, "vap"),
        ("isic2018", "maxvit", 1, "uvit"),
    ):
        assert printed(*item) == (None, None)
