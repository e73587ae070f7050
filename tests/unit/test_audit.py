"""The audit of descriptions: what counts as stated, true, a diagnosis, a refusal; its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy import SMOKE, write
from typer.testing import CliRunner

from vap.captioning.adherence import Agreement, adherence, described_right
from vap.captioning.audit import audit
from vap.captioning.audit_samples import audit_samples
from vap.captioning.caption import SCHEMA
from vap.captioning.measured import describe, measure
from vap.captioning.statements import PATTERNS, UNSAID, diagnoses, refuses, stated
from vap.cli import app
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets.attributes import MODALITIES, VOCABULARY
from vap.datasets.images import decode, encode
from vap.datasets.phantom import list_samples, load_spec, render

RAW = Path(__file__).resolve().parents[2] / "data" / "raw"


# ── statements ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_patterns_have_the_vocabularys_names(modality: str) -> None:
    assert list(PATTERNS[modality]) == list(VOCABULARY[modality])
    for name, values in VOCABULARY[modality].items():
        assert set(PATTERNS[modality][name]) == set(values) - {UNSAID.get(name)}


@pytest.mark.parametrize("name", ["phantom-isic2018", "phantom-chestxray14", "phantom-colonoscopy"])
def test_what_the_describer_measured_is_what_its_sentence_states(name: str) -> None:
    spec = load_spec(RAW / name / "phantom.yaml")
    for sample in list_samples(spec, 3)[::30]:
        image = render(spec.modality, sample, 64)
        found = {key: [value] for key, value in measure(image, spec.modality).items()}
        if "shape" in found:
            said = stated(describe(image, spec.modality, 3), spec.modality)
            assert said | {key: [v] for key, v in UNSAID.items() if key in found and key not in said} == found


@pytest.mark.parametrize(
    ("modality", "text", "expected"),
    [
        ("dermoscopy", "A tan oval patch on pink skin.",
         {"color": ["light brown"], "shape": ["oval"], "skin": ["pink"]}),
        ("dermoscopy", "A red and black, asymmetric spot.",
         {"color": ["black", "red"], "shape": ["irregular"]}),
        ("dermoscopy", "No hairs. Rounded? Blackish surroundings.", {"hair": ["none"]}),
        ("dermoscopy", "", {}),
        ("chest_xray", "Bilateral patchy opacities; the heart is normal.",
         {"side": ["both"], "shape": ["patchy"], "heart": ["normal"]}),
        ("colonoscopy", "A RED polyp on orange mucosa", {"color": ["red"], "mucosa": ["orange"]}),
        ("fundus", "A round disc.", {}),
    ],
)  # fmt: skip
def test_what_is_stated(modality: str, text: str, expected: dict[str, list[str]]) -> None:
    assert stated(text, modality) == expected


def test_diagnoses_and_refusals() -> None:
    assert diagnoses("Consistent with Melanoma, not a benign naevus.", ["MEL"]) == [
        "melanoma",
        "benign",
        "naevus",
    ]
    assert diagnoses("pleural thickening of the left lung", ["Pleural_Thickening"]) == ["pleural thickening"]
    assert diagnoses("A small, melted, sessile lump on normal skin.", ["MEL", "NV"]) == []
    assert refuses("I'm sorry, but I can't assist with that.")
    assert refuses("As an AI, I cannot see images.")
    assert not refuses("A lesion that cannot be told from the skin.")


# ── the audit ───────────────────────────────────────────────────────────────────────────────────

TEXTS = [
    "A small round black smooth lesion on pale skin without hair.",
    "A large oval black smooth lesion on pale skin without hair.",  # size and shape are wrong
    "I'm sorry, I cannot help with that.",
    "A small round black smooth lesion, about 5% of the image, on pale skin without hair.",
    None,
    "A melanoma.",
]
TRUTH = {"shape": "round", "color": "black", "size": "small", "texture": "smooth", "skin": "pale",
         "hair": "none", "frame": "full"}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make(TEXTS, TRUTH)
    (tmp_path / "params.yaml").write_text(SMOKE, encoding="utf-8")
    return tmp_path


def make(
    texts: list[str | None],
    truth: dict[str, str] | None,
    name: str = "phantom-isic2018",
    classes: Sequence[str] = ("MEL",),
    model: str = "m",
) -> None:
    pixels = np.full((32, 32, 3), 210, np.uint8)
    pixels[10:22, 10:22] = 20
    rows, captions = [], []
    for i, text in enumerate(texts):
        ids = {"id": f"<i{i}>", "label": "MEL", "split": "train", "group": "g", "sha256": ""}
        rows.append({**ids, "image": encode(pixels), "attributes": json.dumps(truth) if truth else None})
        answers = {
            "t1": "<b>first</b>",
            "t2": "t2",
            "t_mix": text,
            "error": None if text else "HTTP 400 (<x>)",
        }
        captions.append({"id": f"<i{i}>", **answers, "model": "m", "questions": 1, "finish_reason": "stop"})
    path = Path(f"data/prepared/{name}.arrow")
    write(path, "prepared", rows, classes=list(classes), modality="dermoscopy")
    Path("data/captions").mkdir(exist_ok=True)
    made = {"vap.provenance": json.dumps({"params": {"caption": {"model": model}}})}
    table = pa.Table.from_pylist(captions, schema=SCHEMA.with_metadata(made))
    pq.write_table(table, f"data/captions/{name}.parquet")


def values(folder: Path) -> dict[tuple[str, str], tuple[float, int]]:
    with (folder / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(r["measure"], r["attribute"]): (float(r["value"]), int(r["images"])) for r in rows}


def test_the_numbers_are_those_counted_by_hand(project: Path) -> None:
    table = values(audit("phantom-isic2018"))
    assert table["accuracy", "shape"] == (2 / 5, 5)
    assert table["stated", "shape"] == (3 / 5, 5)
    assert table["false", "shape"] == (pytest.approx(1 / 3, abs=1e-5), 3)
    assert table["accuracy", "color"] == (3 / 5, 5)
    assert table["false", "color"] == (0, 3)
    assert table["accuracy", "frame"] == (1, 5)  # unsaid, and true
    assert table["majority", "size"] == (1, 5)
    assert table["images", ""][0] == 6
    assert table["without a description", ""][0] == 1
    assert table["refusals, share", ""] == (1 / 5, 5)
    assert table["name a diagnosis, share", ""] == (1 / 5, 5)
    assert table["distinct descriptions, share", ""] == (1, 5)
    assert table["words, least", ""][0] == 2
    assert table["agreement", "color"][1] == 3


def test_real_images_have_no_truth(project: Path) -> None:
    make(TEXTS, None)
    table = values(audit("phantom-isic2018"))
    assert not any(measure_name == "accuracy" for measure_name, _ in table)
    assert table["agreement", "color"][1] == 3
    assert "shape" in (Path("results/audit/phantom-isic2018") / "captions.md").read_text()


def test_near_duplicates_differ_in_numbers_and_order_only(project: Path) -> None:
    make(["A red spot, about 5%.", "About 10% a spot, red.", "A black spot."], None)
    assert values(audit("phantom-isic2018"))["near-duplicates, share", ""][0] == pytest.approx(
        1 / 3, abs=1e-5
    )


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(project: Path) -> None:
    page = (audit("phantom-isic2018") / "captions.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(TEXTS) + 2  # all; then the false one and the one that failed
    assert page.count("data:image/png;base64,") == page.count("<img ")
    assert "http" not in page.replace("HTTP 400", "")
    assert "&lt;i0&gt;" in page
    assert "<b>" not in page
    assert "HTTP 400 (&lt;x&gt;)" in page


def test_classes_and_models_are_no_markup(project: Path) -> None:
    name = "a <b>|[x](y)"
    make([f"It is {name}."], None, classes=[name], model="<script>\n# m|\x1b[2J\u202e")
    folder = audit("phantom-isic2018")
    text = (folder / "captions.md").read_text(encoding="utf-8")
    head = "# The descriptions of phantom-isic2018, by &lt;script&gt; # m\\|\ufffd\\[2J\ufffd\n\n|"
    assert text.startswith(head)
    assert r"Diagnoses named: a &lt;b&gt;\|\[x\](y) (1)." in text
    page = (folder / "captions.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert not {"\x1b", "\u202e"} & set(page)


def test_the_command_prints_the_table(project: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "captions", "phantom-isic2018"])
    assert done.exit_code == 0, done.output
    assert "| shape | 40.0% |" in done.output


def test_twice_the_same_bytes(project: Path) -> None:
    folder = audit("phantom-isic2018")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {path.name: path.read_bytes() for path in audit("phantom-isic2018").iterdir()} == before


def spoil(path: str, change: Any) -> None:
    table = pq.read_table(path)
    pq.write_table(change(table), path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.slice(0, 3), "found 3 descriptions; expected 6"),
        (lambda table: pa.concat_tables([table.slice(1), table.slice(0, 1)]), "found image <i1>"),
        (lambda table: table.drop(["error"]), "no readable captions"),
    ],
)
def test_captions_that_do_not_fit_are_one_line(project: Path, change: Any, words: str) -> None:
    spoil("data/captions/phantom-isic2018.parquet", change)
    with pytest.raises(VapError, match=words) as caught:
        audit("phantom-isic2018")
    assert "\n" not in str(caught.value)
    assert not Path("results/audit/phantom-isic2018/captions.csv").exists()


def test_no_captions_is_one_line(project: Path) -> None:
    Path("data/captions/phantom-isic2018.parquet").unlink()
    with pytest.raises(VapError, match="run the caption stage"):
        audit("phantom-isic2018")


# ── the audit of samples ────────────────────────────────────────────────────────────────────────


def make_samples(texts: list[str | None], labels: str, dataset: str = "phantom-isic2018") -> None:
    """Black round spots on pale skin, one a text."""
    y, x = np.mgrid[:64, :64]
    pixels = np.full((64, 64, 3), (236, 206, 190), np.uint8)
    pixels[(y - 32) ** 2 + (x - 32) ** 2 < 100] = 20
    entry = {"image": encode(pixels)}
    rows = [
        {"index": i, "label": label, "text": text, **entry}
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    write(Path(f"results/samples/{dataset}/vap-seen.arrow"), "samples", rows, classes=sorted(set(labels)))


SPOT = "A small round black smooth lesion on pale skin without hair."
SAMPLED = [SPOT, SPOT.replace("black", "red"), SPOT.replace("pale", "tan"), "A lesion on brown skin.", None]


def agreements(path: Path) -> dict[str, list[float]]:
    with path.with_suffix(".csv").open(encoding="utf-8") as file:
        return {
            r["attribute"]: [float(v or -1) for k, v in r.items() if k != "attribute"]
            for r in csv.DictReader(file)
        }


def test_samples_are_compared_with_their_descriptions(project: Path) -> None:
    make_samples(SAMPLED, "aabba")
    found = agreements(audit_samples("phantom-isic2018", "vap", "seen"))
    # class a: black and red said, black seen in both; class b has one sample whose colour is said
    assert found["color"][:3] == [3, pytest.approx(2 / 3, abs=1e-5), 0.5]
    assert found["skin"][:3] == [4, 0.5, 0.5]
    assert found["frame"][:3] == [4, 1, 1]  # unsaid, and full
    assert found["shape"][:2] == [3, 1]
    assert found["color"][3] == 1  # three of the real images' descriptions say black, and all are
    assert found["skin"][3] == 1


def test_what_a_class_alone_gives_is_no_agreement_of_its_own(project: Path) -> None:
    """Two classes of one colour each: the class says it all; one class of both: it says half."""
    texts: list[str | None] = [SPOT, SPOT.replace("black", "red")] * 2
    make_samples(texts, "abab")
    assert agreements(audit_samples("phantom-isic2018", "vap", "seen"))["color"][1:3] == [0.5, 0.5]
    entry = Agreement()
    entry.pairs.update({("a", "red", "red"): 3, ("a", "black", "black"): 1})
    assert (entry.agree(), entry.by_class_alone()) == (
        1,
        (3 * 2 + 1 * 0) / (4 * 3),
    )  # another of its class: red of red, never black
    entry = Agreement()
    entry.pairs.update({("a", "red", "red"): 3, ("b", "black", "black"): 1})
    assert (entry.agree(), entry.by_class_alone()) == (1, 1)
    entry = Agreement()
    entry.pairs.update({("a", "red", "red"): 1})
    assert (entry.agree(), entry.by_class_alone()) == (1, None)


def test_adherence_is_the_mean_share_of_what_each_description_states(project: Path) -> None:
    make_samples([*SAMPLED, SPOT, SPOT], "aabbaab")
    file = ArrowFile(Path("results/samples/phantom-isic2018/vap-seen.arrow"), "samples")
    found = adherence(file, 6, "dermoscopy", 0)  # not the seventh
    color = {"n": 4, "agreement": 3 / 4, "class_alone": pytest.approx((3 * 2 - 2) / 2 / 3)}
    assert found["attributes"]["color"] == color
    assert found["attributes"]["skin"]["n"] == 5
    # seven attributes: two right whole, two with one wrong; one states a wrong skin, and by silence its frame
    assert found["adherence"] == pytest.approx((2 * 7 / 7 + 2 * 6 / 7 + 1 / 2) / 5)
    assert found["adherence_low"] < found["adherence"] < found["adherence_high"] <= 1
    assert 0 < found["adherence_class_alone"] < 1
    assert adherence(file, 6, "dermoscopy", 0) == found
    assert set(adherence(file, 6, "histology", 0).values()) == {None}  # the describer does not know it
    make_samples([None, None], "ab")
    without = ArrowFile(Path("results/samples/phantom-isic2018/vap-seen.arrow"), "samples")
    assert set(adherence(without, 2, "dermoscopy", 0).values()) == {None}


def test_the_describers_own_accuracy_is_on_images_whose_truth_is_known(project: Path) -> None:
    file = ArrowFile(Path("data/prepared/phantom-isic2018.arrow"), "prepared")
    rows = range(len(file))
    found = described_right(file, rows, "dermoscopy")
    assert found is not None
    for name, share in found.items():
        seen = [measure(decode(file.value("image", row)), "dermoscopy").get(name) for row in rows]
        truth = [json.loads(file.value("attributes", row))[name] for row in rows]
        assert share == pytest.approx(np.mean([a == b for a, b in zip(seen, truth, strict=True)]))
    assert described_right(file, [], "dermoscopy") is None
    assert described_right(file, rows, "histology") is None


def test_the_samples_page_shows_what_is_seen(project: Path) -> None:
    make_samples(SAMPLED, "aabba")
    target = audit_samples("phantom-isic2018", "vap", "seen")
    page = target.with_suffix(".html").read_text(encoding="utf-8")
    assert page.count("<figure>") == 4 + 4  # with a description: evenly spaced, and those least like it
    assert '<span class="wrong">color: black</span>' in page
    assert "Seen in it" in page
    assert "First impression" not in page
    assert "http" not in page
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    audit_samples("phantom-isic2018", "vap", "seen")
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_the_samples_command_prints_the_table(project: Path) -> None:
    make_samples(SAMPLED, "aabba")
    done = CliRunner().invoke(app, ["audit", "samples", "phantom-isic2018", "vap"])
    assert done.exit_code == 0, done.output
    assert "| skin | 4 | 50.0% | 50.0% |" in done.output


def test_samples_that_cannot_be_audited_are_one_line(project: Path) -> None:
    with pytest.raises(VapError, match=r"vap-seen\.arrow"):
        audit_samples("phantom-isic2018", "vap", "seen")
    make_samples([None, None], "ab")
    with pytest.raises(VapError, match="found samples drawn without descriptions"):
        audit_samples("phantom-isic2018", "vap", "seen")
