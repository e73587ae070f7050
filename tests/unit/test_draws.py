"""Whose descriptions a sample gets: the bank's, another dataset's, or a user's own sentences."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from toy import CLASSES, WIDTH, bank_row, settings, write, write_bank, write_latents

import vap.prompts.draws as module
from vap.autoencoders.autoencoder import small_kl
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.common.markup import same_name
from vap.common.places import model_path
from vap.common.weights import read_tensors
from vap.generators import train
from vap.generators.trained import open_model
from vap.prompts.bank import PromptBank
from vap.prompts.draws import BankDraws, SentenceDraws, draws_of, encoder_of, parse_condition, read_sentences
from vap.prompts.encoders import Encoded
from vap.prompts.report import nearest, show, statistics, stats
from vap.prompts.shuffled import exchanged, modality_of, places
from vap.sampling import sample
from vap.sampling.draw import draw
from vap.sampling.export import export

BANK, OTHER = Path("data/prompts/own.arrow"), Path("data/prompts/other.arrow")
TEXTS = Path("data/texts/mine.txt")


class Place:
    kind, revision = "transformers", "toy"


class Stub:
    """States that can be foretold: one token a word, all equal to the text's length."""

    def __init__(self, name: str, max_tokens: int, _device: Any = "cpu") -> None:
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        lengths = [min(len(text.split()), self.max_tokens) for text in texts]
        states = [np.full((n, WIDTH), len(t), np.float32) for n, t in zip(lengths, texts, strict=True)]
        return [Encoded(s, s.mean(0), len(t.split())) for s, t in zip(states, texts, strict=True)]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> None:
    monkeypatch.chdir(tmp_path)
    write_bank(BANK)
    monkeypatch.setattr(module, "load_encoder", Stub)
    monkeypatch.setattr(module, "locate", lambda name: Place())


def write_other(classes: list[str], **metadata: Any) -> Path:
    """Another dataset's bank, one description a class."""
    rows = [bank_row("", np.zeros((2, WIDTH)), [])]
    for i, label in enumerate(classes):
        rows.append(bank_row(f"foreign {label}", np.full((3, WIDTH), i + 1.0), [(f"o{i}", label, "train")]))
    facts = {"width": WIDTH, "max_tokens": 6, "dtype": "fp16", "encoder": "toy", "revision": "toy"}
    return write(OTHER, "bank", rows, **(facts | {"classes": classes} | metadata))


def write_texts(content: str) -> Path:
    TEXTS.parent.mkdir(parents=True, exist_ok=True)
    TEXTS.write_text(content, encoding="utf-8")
    return TEXTS


# ── conditions ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("condition", "parts"),
    [
        ("seen", ("seen", None)),
        ("unseen", ("unseen", None)),
        ("unseen-phantom-isic2019", ("unseen", "phantom-isic2019")),
        ("other", ("other", None)),
        ("shuffled", ("shuffled", None)),
        ("texts-mine", ("texts", "mine")),
    ],
)
def test_a_condition_is_a_file_name(condition: str, parts: tuple[str, str | None]) -> None:
    assert parse_condition(condition) == parts


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "others",
        "seen-x",
        "shuffled-x",
        "unseen:x",
        "unseen-",
        "texts",
        "texts-../x",
        "unseen-a/b",
        "unseen-a b",
    ],
)
def test_what_is_no_condition_is_one_line(condition: str) -> None:
    with pytest.raises(VapError, match="seen, unseen, unseen-DATASET, other, shuffled or texts-NAME"):
        parse_condition(condition)


def test_seen_and_unseen_are_the_two_splits() -> None:
    bank = PromptBank(BANK)
    for condition, split in (("seen", "train"), ("unseen", "test")):
        source = draws_of(condition, bank, CLASSES)
        rng = np.random.default_rng(0)
        drawn = {source.draw("mole", rng) for _ in range(200)}
        assert drawn == set(bank.rows("mole", split).tolist())
        assert source.inputs == {}


def test_another_datasets_descriptions_by_class_name() -> None:
    write_other(["wart", "scar", "mole"])
    source = draws_of("unseen-other", PromptBank(BANK), CLASSES)
    row = source.draw("scar", np.random.default_rng(0))
    assert source.text(row) == "foreign scar"
    assert source.inputs == {"prompts_from": OTHER}
    context, mask = source.collate([row, row])
    assert context.shape == (2, 3, WIDTH)
    assert bool((context == 2).all())
    assert bool(mask.all())


@pytest.mark.parametrize(
    ("classes", "metadata", "told"),
    [
        (["mole"], {}, r"no training description of class 'scar'; it has mole"),
        (CLASSES, {"revision": "x"}, r"states of toy, revision x; expected toy, revision toy"),
        (CLASSES, {"max_tokens": 7}, r"descriptions of up to 7 tokens; expected 6"),
    ],
)
def test_a_bank_that_does_not_fit_is_one_line(
    classes: list[str], metadata: dict[str, Any], told: str
) -> None:
    write_other(classes, **metadata)
    with pytest.raises(VapError, match=told):
        draws_of("unseen-other", PromptBank(BANK), CLASSES)


def test_another_dataset_is_another_and_has_a_bank() -> None:
    bank = PromptBank(BANK)
    with pytest.raises(
        VapError, match=r"unseen-own: found the dataset's own name; .* there is none; name unseen"
    ):
        draws_of("unseen-own", bank, CLASSES)
    write_other(CLASSES)
    with pytest.raises(
        VapError, match=r"unseen-zzz: found no data/prompts/zzz.arrow; .* bank: other; name one"
    ):
        draws_of("unseen-zzz", bank, CLASSES)


def test_the_other_datasets_descriptions_stand_in_for_a_class_that_it_lacks() -> None:
    write_other(["mole", "wart"])
    bank = PromptBank(BANK)
    source = draws_of("other", bank, CLASSES, other="other")
    rng = np.random.default_rng(0)
    drawn = {label: {source.text(source.draw(label, rng)) for _ in range(40)} for label in CLASSES}
    assert drawn == {"mole": {"foreign mole"}, "scar": {"foreign mole", "foreign wart"}}
    with pytest.raises(VapError, match=r"ablation.other: found no entry for this dataset"):
        draws_of("other", bank, CLASSES)


# ── attributes exchanged ────────────────────────────────────────────────────────────────────────

SKIN = [
    "A small round light brown lesion with a smooth, even texture, 4 % of the image, on pale skin.",
    "A large irregular black lesion with a network-like texture, 30 % of the image, on tan skin.",
    "A medium-sized oval red lesion, 9 % of the image, on brown skin.",
]


def test_an_attribute_is_taken_from_one_donor_each() -> None:
    #                       shape    color    size     texture
    text = exchanged(SKIN[0], [SKIN[1], SKIN[2], SKIN[1], SKIN[1]])
    assert (
        text
        == "A large irregular red lesion with a network-like, even texture, 4 % of the image, on pale skin."
    )
    assert exchanged(SKIN[0], [SKIN[0]] * 4) == SKIN[0]


def test_what_either_does_not_state_stays() -> None:
    assert exchanged(SKIN[2], [SKIN[2], SKIN[2], SKIN[2], SKIN[1]]) == SKIN[2]  # no texture to replace
    assert "smooth" in exchanged(SKIN[0], [SKIN[0], SKIN[0], SKIN[0], SKIN[2]])  # none to give


def test_the_background_is_no_attribute_of_the_lesion() -> None:
    text = "A round lesion on pink skin."
    assert "color" not in places(text, "dermoscopy")
    assert exchanged(text, [SKIN[1]] * 4) == "A irregular lesion on pink skin."


def test_the_words_tell_the_modality() -> None:
    assert modality_of("A patchy dense opacity in the left upper zone, with a normal heart.") == "chest_xray"
    assert modality_of("A lobulated yellowish polyp with a granular surface on red mucosa.") == "colonoscopy"
    assert modality_of(SKIN[0]) == "dermoscopy"


def test_shuffled_descriptions_are_new_and_the_same_each_time() -> None:
    rows = [bank_row("", np.zeros((2, WIDTH)), [])]
    rows += [bank_row(t, np.zeros((3, WIDTH)), [(f"i{i}", "mole", "train")]) for i, t in enumerate(SKIN)]
    facts = {"width": WIDTH, "max_tokens": 40, "dtype": "fp16", "encoder": "toy", "revision": "toy"}
    write(BANK, "bank", rows, classes=["mole"], **facts)
    bank = PromptBank(BANK)
    sources = [draws_of("shuffled", bank, ["mole"]) for _ in range(2)]
    texts = []
    for source in sources:
        drawn = [source.draw("mole", np.random.default_rng([0, i])) for i in range(30)]
        texts.append([source.text(row) for row in drawn])
    assert texts[0] == texts[1]
    assert not set(texts[0]) & set(SKIN)
    assert len(set(texts[0])) > 10
    context, mask = sources[0].collate(drawn[:4])
    for row, states, real in zip(drawn[:4], context, mask, strict=True):
        text = sources[0].text(row)
        assert int(real.sum()) == len(text.split())
        assert bool((states[real] == len(text)).all())


# ── sentences ───────────────────────────────────────────────────────────────────────────────────


def test_sentences_with_their_class() -> None:
    file = write_texts("# a comment\nmole\ta dark one\n\nscar\ta long pale line\nmole\tround \n")
    assert read_sentences(file, CLASSES) == [
        ("mole", "a dark one"),
        ("scar", "a long pale line"),
        ("mole", "round"),
    ]
    assert read_sentences(file, CLASSES, "scar") == [("scar", "a long pale line")]


def test_sentences_alone_for_one_class() -> None:
    file = write_texts("a dark one\nround\n")
    assert read_sentences(file, CLASSES, "mole") == [("mole", "a dark one"), ("mole", "round")]
    assert read_sentences(file, ["only"]) == [("only", "a dark one"), ("only", "round")]


@pytest.mark.parametrize(
    ("content", "label", "told"),
    [
        ("a dark one\n", None, "mine.txt:1: found a sentence without a class"),
        ("mole\tx\nwart\ty\n", None, "mine.txt:2: found class 'wart'"),
        ("mole\tx\n", None, "no sentence of class 'scar'"),
        ("mole\tx\n", "scar", "no sentence of class 'scar'"),
        ("mole\t \n", "mole", "mine.txt:1: found no sentence"),
        ("", "mole", "no sentence of class 'mole'"),
    ],
)
def test_sentences_that_do_not_fit_are_one_line(content: str, label: str | None, told: str) -> None:
    with pytest.raises(VapError, match=told):
        read_sentences(write_texts(content), CLASSES, label)


def test_a_file_that_is_no_text_is_one_line() -> None:
    with pytest.raises(VapError, match="no readable text"):
        read_sentences(Path("absent.txt"), CLASSES)
    write_texts("").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VapError, match="no readable text"):
        read_sentences(TEXTS, CLASSES)


def test_sentences_are_drawn_evenly_and_encoded_as_the_bank() -> None:
    write_texts("mole\tone two\nscar\tlong pale thin line\nmole\tround\n")
    source = draws_of("texts-mine", PromptBank(BANK), CLASSES)
    assert source.inputs == {"texts": TEXTS}
    rng = np.random.default_rng(0)
    drawn = Counter(source.text(source.draw("mole", rng)) for _ in range(4000))
    assert drawn["round"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn["one two"] + drawn["round"] == 4000
    context, mask = source.collate([0, 1])
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert context[0, :, 0].tolist() == [7, 7, 0, 0]
    assert context.dtype == torch.float32


def test_a_sentence_that_is_cut_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    SentenceDraws([("mole", "as many words as fit in")], PromptBank(BANK))
    assert capsys.readouterr().err == ""
    source = SentenceDraws([("mole", "one more word than the bank takes")], PromptBank(BANK))
    assert "'one more word than the bank takes': found 7 tokens" in capsys.readouterr().err
    assert len(source.collate([0])[0][0]) == 6


def test_another_encoder_than_the_banks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "revision", "other weights")
    bank = PromptBank(BANK)
    told = "encoder toy: found states of toy, revision other weights; expected toy, revision toy"
    for use in (lambda: SentenceDraws([("mole", "x")], bank), lambda: encoder_of(bank)):
        with pytest.raises(VapError, match=told):
            use()


# ── sampling and drawing ────────────────────────────────────────────────────────────────────────


@pytest.fixture
def trained() -> Any:
    """A trained model of the toy latents, with a decoder."""
    own = {"method__uvit__train__predicts": "noise"}  # as the official codes read it
    params = settings(sample__n=6, sample__steps=2, sample__batch_size=4, **own)
    write_latents(Path("data/latents/own.arrow"))
    torch.manual_seed(0)
    small_kl(8, 1, [8, 8], 2).save(Path("data/autoencoders/own"))
    for method in ("vap", "uvit"):
        train.run(params, "own", method)
    return params


@pytest.mark.parametrize("condition", ["unseen", "unseen-other", "texts-mine"])
def test_sample_writes_whose_descriptions_it_took(trained: Any, condition: str) -> None:
    write_other(CLASSES)
    write_texts("mole\tmy mole\nscar\tmy scar\n")
    path = sample.run(trained, "own", "vap", condition)
    assert path == Path(f"results/ablation/own/vap-{condition}.arrow")
    file, bank = ArrowFile(path, "samples"), PromptBank(BANK)
    for row in file.rows(["label", "text"]):
        expected = {
            "unseen": {bank.text(int(i)) for i in bank.rows(row["label"], "test")},
            "unseen-other": {f"foreign {row['label']}"},
            "texts-mine": {f"my {row['label']}"},
        }
        assert row["text"] in expected[condition]
    inputs = file.metadata["provenance"]["inputs"]
    extra = {"unseen-other": "prompts_from", "texts-mine": "texts"}.get(condition)
    assert extra is None or len(inputs[extra]["sha256"]) == 64
    first = path.read_bytes()
    path.unlink()
    assert sample.run(trained, "own", "vap", condition).read_bytes() == first


def test_a_method_of_the_class_alone_takes_no_text(trained: Any) -> None:
    write_texts("mole\tmy mole\n")
    file = ArrowFile(sample.run(trained, "own", "uvit", "seen"), "samples")
    assert set(file.column("text")) == {None}
    for condition in ("unseen", "unseen-zzz", "other", "shuffled", "texts-mine"):
        with pytest.raises(
            VapError, match=f"condition {condition}: found uvit, which draws by the class alone"
        ):
            sample.run(trained, "own", "uvit", condition)
    assert not Path("results/ablation").exists()
    with pytest.raises(VapError, match="the method uses the class alone"):
        draw(trained, "own", "uvit", "mole", None, 2, Path("drawn.png"), 0, TEXTS)


def test_draw_takes_the_sentences_of_the_class_in_turn(trained: Any) -> None:
    write_texts("mole\tdark\nscar\tpale\nmole\tround one\n")
    target = Path("drawn.png")
    assert draw(trained, "own", "vap", "mole", None, 3, target, 0, TEXTS) == ["dark", "round one", "dark"]
    assert target.read_bytes()[:4] == b"\x89PNG"
    assert draw(trained, "own", "vap", "mole", "red", 2, target, 0) == ["red", "red"]
    with pytest.raises(VapError, match="--text and --texts"):
        draw(trained, "own", "vap", "mole", "red", 2, target, 0, TEXTS)


@pytest.mark.parametrize("target", ["drawn.jpg", "drawn", "png"])
def test_another_format_than_png_is_refused(target: str) -> None:
    with pytest.raises(VapError, match=f"--out: found {target}; expected FILE.png"):
        draw(settings(), "own", "uvit", "mole", None, 1, Path(target), 0)


# ── a model for the official codes ──────────────────────────────────────────────────────────────


def test_a_model_is_exported_where_it_predicts_the_noise(trained: Any) -> None:
    for suffix in ("safetensors", "pth", "pt"):
        target = Path(f"new/folder/w.{suffix}")
        export("own", "uvit", target)
        assert "pos_embed" in read_tensors(target, "", "")
    train.run(settings(method__uvit__train__predicts="velocity"), "own", "uvit")
    with pytest.raises(VapError, match="a network that predicts the velocity; expected one that predicts"):
        export("own", "uvit", Path("other.pth"))
    assert not Path("other.pth").exists()


def test_a_model_of_before_a_setting_existed_is_opened_as_it_was_trained(trained: Any) -> None:
    folder = model_path("own", "uvit")
    config = json.loads((folder / "config.json").read_text())
    assert config["train"].pop("predicts") == "noise"
    assert config["model"].pop("linear_init") == "xavier"
    (folder / "config.json").write_text(json.dumps(config))
    method = open_model(folder).method
    assert method.train.predicts == "noise"
    assert method.model.linear_init == "published"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("known", ["NFC", "NFD"])
def test_a_class_may_be_named_in_either_form(form: Any, known: Any, tmp_path: Path) -> None:
    classes = [unicodedata.normalize(known, "Nävus"), "b"]
    label = unicodedata.normalize(form, "Nävus")
    (tmp_path / "x.txt").write_text(f"b\tOne.\n{label}\tTwo.\n", encoding="utf-8")
    assert read_sentences(tmp_path / "x.txt", classes) == [("b", "One."), (classes[0], "Two.")]
    assert same_name(label, classes) == classes[0]
    assert same_name("Navus", classes) is None


def test_the_export_needs_no_other_module_to_be_imported_first() -> None:
    subprocess.run(
        [sys.executable, "-c", "import vap.sampling.export"], check=True, cwd=Path(__file__).parents[2]
    )


@pytest.mark.parametrize("name", ["w.bin", "w", "w.SAFETENSORS"])
def test_a_file_that_is_not_written_so_is_refused(name: str) -> None:
    with pytest.raises(VapError, match=f"{name}: found the suffix .*; expected .safetensors or .pth or .pt"):
        export("own", "uvit", Path(name))


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("file", "found (Not a directory|File exists)"),
        ("/proc", "found No such file"),
        ("here", "found a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    trained: Any, folder: str, suffix: str, told: str
) -> None:
    target = Path(folder) / f"w.{suffix}"
    Path("file").touch()
    Path("here").joinpath(target.name, "kept").mkdir(parents=True)
    with pytest.raises(VapError, match=told):
        export("own", "uvit", target)
    assert Path("here", target.name, "kept").is_dir()


def test_a_full_disk_is_one_line(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nmore")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        VapError, match=r"w.pth: found PytorchStreamWriter failed writing file data/0: [^\n]*$"
    ):
        export("own", "uvit", Path("w.pth"))
    assert not Path("w.pth").exists()


# ── what `vap bank` tells ───────────────────────────────────────────────────────────────────────


def write_known() -> PromptBank:
    """Pooled vectors of length 1 at known angles: two moles 60 degrees apart, a scar opposite the first."""
    half = 3**0.5 / 2
    rows = [bank_row("", np.ones((2, 2)), [("n0", "mole", "train")])]  # n0 has no description
    for text, vector, images in (
        ("Dark, round", (1, 0), [("a0", "mole", "train"), ("a1", "mole", "test")]),
        ("dark", (0.5, half), [("a2", "mole", "train")]),
        ("pale line", (-1, 0), [("b0", "scar", "train")]),
    ):
        rows.append(bank_row(text, np.tile(vector, (3 + len(images), 1)), images))
    facts = {"encoder": "toy", "revision": "toy", "width": 2, "max_tokens": 6, "dtype": "fp16"}
    return PromptBank(write(BANK, "bank", rows, **facts, classes=CLASSES))


def test_statistics_by_hand() -> None:
    found = statistics(write_known())
    mole, scar = found["mole"], found["scar"]
    assert (mole.images, mole.distinct, mole.vocabulary, mole.tokens_max) == (3, 2, 2, 5)
    assert mole.tokens_mean == pytest.approx((5 + 5 + 4) / 3)
    assert mole.shared == pytest.approx(2 / 3)
    assert mole.intra == pytest.approx(0.5, abs=1e-3)
    assert mole.inter == pytest.approx((-1 - 0.5) / 2, abs=1e-3)
    assert scar.inter == mole.inter
    assert (scar.intra, scar.shared) == (None, 0)


def test_nearest_by_the_cosine() -> None:
    bank = write_known()
    query = np.array([2.0, 0.1], np.float32)
    hits = nearest(bank, query, 3)
    assert [hit.text for hit in hits] == ["Dark, round", "dark", "pale line"]
    assert hits[0].similarity == pytest.approx(2 / np.hypot(2, 0.1), abs=1e-3)
    assert (hits[0].ids, hits[0].labels) == (["a0", "a1"], ["mole", "mole"])
    assert [hit.text for hit in nearest(bank, query, 3, label="scar")] == ["pale line"]
    (only,) = nearest(bank, query, 3, split="test")
    assert (only.ids, only.splits) == (["a1"], ["test"])  # the image of that split alone
    for asked, told in (
        (
            {"label": "wart"},
            "no description of class 'wart'; expected a class of mole, scar; leave --label out",
        ),
        (
            {"split": "val"},
            "no description in split 'val'; expected a split of test, train; leave --split out",
        ),
        (
            {"label": "scar", "split": "test"},
            "no description of class 'scar' in split 'test'; .* --label or --split",
        ),
    ):
        with pytest.raises(VapError, match=told):
            nearest(bank, query, 3, **asked)


def test_show_and_stats_print_all_classes() -> None:
    write_known()
    console = Console(record=True, width=140)
    show("own", 3, console)
    stats("own", console)
    text = console.export_text()
    for part in (
        "toy, revision toy",
        "3 distinct, of 5 images",
        "mole",
        "scar",
        "Dark, round",
        "pale line",
        "fp16",
    ):
        assert part in text


def test_draws_of_a_bank_are_its_own() -> None:
    bank = PromptBank(BANK)
    source = BankDraws(bank, "train")
    assert all(torch.equal(a, b) for a, b in zip(source.collate([1, 2]), bank.collate([1, 2]), strict=True))
    assert source.text(1) == bank.text(1)
