"""Tables 1 and 2 from metric files: every cell filled, the paper's numbers in place, what is refused."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy import PROJECT, settings

from vap.common.errors import VapError
from vap.common.places import floor_path, metrics_path
from vap.params import Params
from vap.results import table, table2
from vap.results.paper import TABLE1, TABLE2

PAPER = PROJECT.parent / "shared/paper/vap-diffusion-paper.txt"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def params(*datasets: str, **changes: Any) -> Params:
    entries = {name: {"adapter": "phantom", "modality": "dermoscopy"} for name in datasets}
    return settings(datasets=list(datasets), dataset=entries, **changes)


def metrics(dataset: str, method: str, condition: str = "seen", **changes: Any) -> None:
    data: dict[str, Any] = dict.fromkeys(table.NUMBERS, 0.5)
    data |= {"dataset": dataset, "method": method, "condition": condition, "features": "toy", "seed": 3}
    data |= {"reference": "train", "prc_features": "toy", "n": 64, "n_reference": 60, **changes}
    path = metrics_path(dataset, method, condition)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def floor(dataset: str, halves: float | None = 12.5) -> None:
    part = None if halves is None else {"fid": halves, "n": 32}
    path = floor_path(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train_halves": part, "train_test": {"fid": 99.0, "n": 8}}))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ── Table 1 ─────────────────────────────────────────────────────────────────────────────────────


def test_a_row_a_dataset_and_method_with_the_floor_and_the_papers_numbers() -> None:
    for dataset in ("own", "isic2018"):
        floor(dataset)
        for i, method in enumerate(("uvit", "vap")):
            metrics(dataset, method, fid=100.0 + i, fid_low=90.0, fid_high=110.0)
    found = rows_of(table.run(params("own", "isic2018")))
    assert [(row["dataset"], row["method"]) for row in found] == [
        ("own", "uvit"),
        ("own", "vap"),
        ("isic2018", "uvit"),
        ("isic2018", "vap"),
    ]
    assert [row["fid"] for row in found] == ["100.000", "101.000"] * 2
    assert {row["floor_fid"] for row in found} == {"12.500"}
    assert [row["paper_fid"] for row in found] == ["", "", "52.760", "19.790"]
    assert all(cell for row in found for name, cell in row.items() if not name.startswith("paper"))
    text = Path("results/tables/table1.md").read_text()
    assert "| isic2018 | vap | 101.000 [90.000, 110.000] |" in text
    assert "FD (toy) ↓" in text
    assert "none with a published FID" in text


def test_a_metric_that_the_settings_leave_out_is_a_dash() -> None:
    floor("own", halves=None)
    for method in ("uvit", "vap"):
        metrics("own", method, isc_mean=None, isc_std=None, prd_f8=None, fid_low=None, fid_high=None)
    (first, _) = rows_of(table.run(params("own")))
    assert (first["isc_mean"], first["prd_f8"], first["fid"]) == ("–", "–", "0.500")
    assert (first["floor_fid"], first["floor_n"]) == (
        "99.000",
        "8",
    )  # train and test
    assert "| 0.500 | – |" in Path("results/tables/table1.md").read_text()


def test_only_inceptions_distance_is_called_fid() -> None:
    floor("own")
    for method in ("uvit", "vap"):
        metrics("own", method, features="inception")
    table.run(params("own"))
    text = Path("results/tables/table1.md").read_text()
    assert "| FID ↓ |" in text
    assert "published FID" not in text


@pytest.mark.parametrize("damage", ["absent", "no JSON", "no metrics"])
def test_what_cannot_be_read_is_one_line_with_its_file(damage: str) -> None:
    floor("own")
    for method in ("uvit", "vap"):
        metrics("own", method)
    path = metrics_path("own", "vap", "seen")
    if damage == "absent":
        path.unlink()
    else:
        path.write_text("{" if damage == "no JSON" else "{}")
    with pytest.raises(VapError, match=re.escape(str(path))) as caught:
        table.run(params("own"))
    assert "\n" not in str(caught.value)
    assert not Path("results/tables/table1.csv").exists()


@pytest.mark.parametrize("damage", ["absent", "a folder", "cut", "no metrics"])
def test_the_floors_own_stage_is_named(damage: str) -> None:
    floor("own")
    for method in ("uvit", "vap"):
        metrics("own", method)
    path = floor_path("own")
    whole = path.read_text()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "absent":
        path.write_text(whole[:9] if damage == "cut" else "{}")
    with pytest.raises(VapError, match=f"^{path}: .*; run the floor stage") as caught:
        table.run(params("own"))
    assert "evaluate" not in str(caught.value)


# ── runs with further seeds ─────────────────────────────────────────────────────────────────────


def three_runs() -> Params:
    """FID 10, 13, 16 (mean 13, standard deviation 3), recall 0.1, 0.2, 0.4 (0.7 / 3, and √(0.07 / 3))."""
    floor("isic2018")
    for method in ("uvit", "vap"):
        for i, name in enumerate([method, f"{method}_seed7", f"{method}_seed9"]):
            numbers = {"fid": 10.0 + 3 * i, "fid_low": 9.0 + i, "recall": (0.1, 0.2, 0.4)[i], "prd_f8": None}
            metrics("isic2018", name, kid_mean=0.0001 * i, **numbers)
    return params("isic2018", seeds=[7, 9])


def test_with_seeds_a_row_is_the_mean_of_its_runs_with_their_standard_deviation() -> None:
    found = rows_of(table.run(three_runs()))
    assert [(row["method"], row["runs"], row["seeds"]) for row in found] == [
        ("uvit", "3", "3 7 9"),
        ("vap", "3", "3 7 9"),
    ]
    row = found[0]
    assert (row["fid"], row["fid_sd"]) == ("13.000", "3.000")
    assert (row["recall"], row["recall_sd"]) == ("0.233", "0.153")
    assert (row["kid_mean"], row["kid_mean_sd"]) == ("0.0001", "0.0001")
    assert (row["prd_f8"], row["prd_f8_sd"]) == ("–", "–")
    assert (row["precision"], row["precision_sd"]) == ("0.500", "0.000")
    assert row["fid_low"] == "10.000"  # the mean of what lies within each run
    assert not {"fid_low_sd", "fid_high_sd", "isc_std_sd", "kid_std_sd", "floor_fid_sd"} & row.keys()
    assert (row["floor_fid"], row["paper_fid"]) == ("12.500", "52.760")
    assert list(row)[:12] == [
        *["dataset", "method", "features", "prc_features", "reference", "n", "n_reference", "seeds", "runs"],
        *["fid", "fid_sd", "fid_low"],
    ]


def test_with_seeds_the_page_prints_mean_and_deviation_and_says_of_what() -> None:
    table.run(three_runs())
    text = Path("results/tables/table1.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| isic2018 | uvit |"))
    assert line.split(" | ")[2:6] == ["13.000 ± 3.000", "0.500 ± 0.000", "0.500 ± 0.000", "0.233 ± 0.153"]
    assert "standard deviation over 3 runs" in text
    assert "(3, 7, 9)" in text
    assert "brackets" not in text


def test_what_is_followed_stands_beside_what_the_class_alone_gives() -> None:
    row = {"adherence": "0.812", "adherence_low": "0.790", "adherence_high": "0.836"}
    row["adherence_class_alone"] = "0.345"
    assert table.followed(row) == "81 % [79, 84] (34 %)"
    assert table.followed(row | {"adherence": table.NO_VALUE}) == table.NO_VALUE


def test_without_seeds_other_runs_are_not_looked_at() -> None:
    three_runs()
    found = rows_of(table.run(params("isic2018")))
    assert tuple(found[0]) == table.COLUMNS
    assert (found[0]["fid"], found[0]["seeds"]) == ("10.000", "3")
    text = Path("results/tables/table1.md").read_text()
    assert text.count("±") == 2  # of the Inception Scores alone
    assert "runs" not in text


def test_a_run_that_is_not_there_is_one_line() -> None:
    wanted = three_runs()
    path = metrics_path("isic2018", "vap_seed9", "seen")
    path.unlink()
    with pytest.raises(VapError, match=re.escape(str(path))):
        table.run(wanted)


# ── Table 2 ─────────────────────────────────────────────────────────────────────────────────────


def fill(dataset: str) -> None:
    floor(dataset)
    for method in ("uvit", "vap"):
        metrics(dataset, method)
    for method in ("vap", "vap_without_pcm"):
        for i, condition in enumerate(("seen", "unseen", "shuffled", "other")):
            metrics(dataset, method, condition, fid=10.0 * i + len(method))


def test_table_2_has_each_method_under_each_condition() -> None:
    for dataset in ("isic2018", "own"):
        fill(dataset)
    found = rows_of(table2.run(params("isic2018", "own")))
    conditions = ["seen", "unseen", "shuffled", "other"]
    expected = [("VAP-Diffusion", c) for c in conditions]
    expected += [("w/o VAPS", "none"), *[("w/o PCM", c) for c in conditions]]
    assert [(row["row"], row["condition"]) for row in found] == expected * 2
    by_cell = {(row["dataset"], row["row"], row["condition"]): row for row in found}
    assert by_cell["own", "w/o PCM", "shuffled"]["fid"] == "35.000"
    paper = {key: (row["paper_fid"], row["paper_recall"]) for key, row in by_cell.items() if row["paper_fid"]}
    assert paper == {
        ("isic2018", "VAP-Diffusion", "unseen"): ("26.767", "0.609"),
        ("isic2018", "w/o VAPS", "none"): ("52.760", "0.275"),
        ("isic2018", "w/o PCM", "unseen"): ("28.821", "0.582"),
    }
    assert all(cell for row in found for name, cell in row.items() if not name.startswith("paper"))
    assert Path("results/tables/table2.md").read_text().count("\n| own |") == 9


def test_the_places_of_table_2_are_not_those_that_table_1_depends_on() -> None:
    assert metrics_path("d", "vap", "seen").parts[1] == "metrics"
    for method, condition in (("vap", "unseen"), ("vap_without_pcm", "seen"), ("vap", "texts-x")):
        assert metrics_path("d", method, condition).parts[1] == "ablation"


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not there")
def test_the_papers_numbers_are_the_printed_ones() -> None:
    text = PAPER.read_text(encoding="utf-8")
    for numbers in [*TABLE1.values(), *TABLE2.values()]:
        cells = [f"{value:.3f}" for value in numbers]
        assert re.search(r"\s+".join(map(re.escape, cells)), text), cells
