"""The prompt bank and the encode stage that builds it; MiniLM against transformers itself."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy import CLASSES, settings, write, write_bank, write_latents

import vap.stages.encode as stage
from vap.artifacts import file_sha256
from vap.errors import VapError
from vap.prompts.bank import PromptBank
from vap.prompts.encoders import Encoded, TextEncoder, encoder_folder

PREPARED = Path("data/prepared/own.arrow")
CAPTIONS = Path("data/captions/own.parquet")
BANK = Path("data/prompts/own.arrow")

# id, label, split, description; "round" describes images of both classes and of both splits
IMAGES = [
    ("a0", "mole", "train", "round"),
    ("a1", "mole", "train", "round"),
    ("a2", "mole", "train", "oval brown"),
    ("a3", "mole", "test", "round"),
    ("b0", "scar", "train", "a long thin pale line"),
    ("b1", "scar", "train", "round"),
    ("b2", "scar", "test", "wide"),
    ("a4", "mole", "test", "dark and wide"),
]


class Stub:
    """An encoder whose states can be foretold: one token a word, and two more."""

    width, revision = 3, "stub"

    def __init__(self, _name: str, max_tokens: int, _device: Any = "cpu") -> None:
        self.max_tokens = max_tokens

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        found = []
        for text in texts:
            n = min(2 + len(text.split()), self.max_tokens)
            tokens = np.arange(n * 3, dtype=np.float16).reshape(n, 3) + len(text)
            found.append(Encoded(tokens, tokens.mean(0)))
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(stage, "TextEncoder", Stub)
    threads = torch.get_num_threads()
    write_captions()
    yield tmp_path
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def write_captions(images: list[tuple[str, str, str, str]] = IMAGES) -> None:
    rows = [
        {"id": i, "label": label, "split": split, "group": i, "sha256": "", "image": b""}
        for i, label, split, _ in IMAGES
    ]
    if not PREPARED.exists():
        write(PREPARED, "prepared", rows, classes=CLASSES)
    CAPTIONS.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [i[0] for i in images], "t_mix": [i[3] for i in images]})
    pq.write_table(table, CAPTIONS)


def built(**changes: Any) -> PromptBank:
    return PromptBank(stage.run(settings(encode__encoder="encoder", **changes), "own"))


# ── what encode writes ──────────────────────────────────────────────────────────────────────────


def test_null_prompt_is_row_0_and_each_text_is_stored_once(project: Path) -> None:
    bank = built()
    texts = [bank.text(row) for row in range(len(bank))]
    assert texts[0] == ""
    assert sorted(texts[1:]) == sorted({image[3] for image in IMAGES})
    assert all(bank.text(bank.row_of[i]) == text for i, _, _, text in IMAGES)
    assert set(bank.row_of) == {image[0] for image in IMAGES}  # the null prompt is nobody's


def test_texts_are_in_order_of_their_first_class(project: Path) -> None:
    bank = built()
    texts = [bank.text(row) for row in range(1, len(bank))]
    assert texts == ["dark and wide", "oval brown", "round", "a long thin pale line", "wide"]


def test_padding_is_not_stored(project: Path) -> None:
    bank = built()
    for row in range(len(bank)):
        tokens = bank.tokens(row)
        assert tokens.shape == (2 + len(bank.text(row).split()), 3)
        np.testing.assert_array_equal(tokens, Stub("", 99).encode([bank.text(row)])[0].tokens)


def test_batch_size_and_parts_change_no_content(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list(built().file.rows())
    monkeypatch.setattr(stage, "PART_TEXTS", 2)
    assert list(built(encode__batch_size=1).file.rows()) == first


def test_same_input_same_bytes(project: Path) -> None:
    built()
    first = file_sha256(BANK)
    BANK.unlink()
    built()
    assert file_sha256(BANK) == first


def test_where_the_encoder_lies_is_not_recorded(project: Path) -> None:
    built()
    assert str(project).encode() not in BANK.read_bytes()


@pytest.mark.parametrize("text", [None, ""])
def test_an_image_without_description_is_named(project: Path, text: str | None) -> None:
    write_captions([(*image[:3], text if image[0] == "b1" else image[3]) for image in IMAGES])
    with pytest.raises(VapError, match="no description of image b1"):
        built()


def test_captions_absent_or_foreign_are_one_line(project: Path) -> None:
    for content in (b"junk", b"", b"PAR1" + bytes(40) + b"PAR1"):
        CAPTIONS.write_bytes(content)
        with pytest.raises(VapError, match="no readable captions"):
            built()
    CAPTIONS.unlink()
    with pytest.raises(VapError, match="run the caption stage"):
        built()


# ── drawing ─────────────────────────────────────────────────────────────────────────────────────


def test_draw_is_uniform_over_the_images_of_a_class(project: Path) -> None:
    bank, rng, n = built(), np.random.default_rng(0), 6000
    drawn = Counter(bank.text(bank.draw("mole", rng)) for _ in range(n))
    assert drawn["round"] / n == pytest.approx(2 / 3, abs=0.03)  # two of the three images
    assert drawn["oval brown"] / n == pytest.approx(1 / 3, abs=0.03)
    assert set(drawn) == {"round", "oval brown"}


@pytest.mark.parametrize(
    ("label", "split", "texts"),
    [
        ("mole", "train", ["oval brown", "round", "round"]),
        ("mole", "test", ["dark and wide", "round"]),
        ("scar", "train", ["a long thin pale line", "round"]),
        ("scar", "test", ["wide"]),
    ],
)
def test_rows_are_one_an_image_of_that_class_and_split(
    project: Path, label: str, split: str, texts: list[str]
) -> None:
    bank = built()
    assert sorted(bank.text(int(row)) for row in bank.rows(label, split)) == texts


def test_a_draw_is_a_function_of_its_generator(project: Path) -> None:
    bank = built()

    def draws(seed: int) -> list[int]:
        return [bank.draw("mole", np.random.default_rng([seed, i])) for i in range(30)]

    assert draws(0) == draws(0)
    assert draws(0) != draws(1)


@pytest.mark.parametrize(("label", "split"), [("wart", "train"), ("mole", "val")])
def test_a_class_without_descriptions_is_one_line(project: Path, label: str, split: str) -> None:
    with pytest.raises(VapError, match=f"no description of class '{label}' in split {split}"):
        built().draw(label, np.random.default_rng(0), split)


# ── collate ─────────────────────────────────────────────────────────────────────────────────────


def test_collate_pads_to_the_longest_with_a_mask(project: Path) -> None:
    bank = built()
    rows = [0, bank.row_of["b0"], bank.row_of["a0"]]
    context, mask = bank.collate(rows)
    assert context.shape == (3, 7, 3)
    assert context.dtype == torch.float32
    assert mask.sum(1).tolist() == [2, 7, 3]
    assert mask[2].tolist() == [True] * 3 + [False] * 4
    assert not context[~mask].any()
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(context[i][mask[i]].numpy(), bank.tokens(row))


def test_tokens_are_a_view_of_the_file(project: Path) -> None:
    tokens = built().tokens(2)
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


# ── files that are no bank ──────────────────────────────────────────────────────────────────────


def one_line(path: Path) -> str:
    with pytest.raises(VapError) as caught:
        PromptBank(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path) in line
    return line


def test_files_that_are_no_bank_are_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    whole = write_bank(tmp_path / "bank.arrow").read_bytes()
    assert "no such file" in one_line(tmp_path / "absent.arrow")
    file = tmp_path / "other.arrow"
    for content in (b"", b"ARROW1", b"text\n" * 100, whole[:-1], whole[: len(whole) // 2]):
        file.write_bytes(content)
        assert "no readable Arrow file" in one_line(file)
    folder = tmp_path / "folder.arrow"
    folder.mkdir()
    one_line(folder)


def test_arrow_of_another_kind_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert "found latents" in one_line(write_latents(tmp_path / "latents.arrow"))
    table = pa.table({"a": [1, 2]})
    with pa.ipc.new_file(str(tmp_path / "foreign.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert "an Arrow file of another program" in one_line(tmp_path / "foreign.arrow")
    schema = table.schema.with_metadata({"vap.kind": "bank"})
    with pa.ipc.new_file(str(tmp_path / "old.arrow"), schema) as writer:
        writer.write_table(table.cast(schema))
    assert "bank columns ['a']" in one_line(tmp_path / "old.arrow")


# ── MiniLM ──────────────────────────────────────────────────────────────────────────────────────

LONG = "a large oval brown lesion with an irregular border on fair skin without hair " * 4
TEXTS = ["", "a small round pink lesion", LONG, "Ulcère, érosion — 12 %"]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    torch.set_num_threads(1)
    return TextEncoder("minilm", 48)


def test_minilm_states_are_transformers(minilm: TextEncoder) -> None:
    """One text at a time, no padding, called as the library's own pages do."""
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder("minilm")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    for text, found in zip(TEXTS, minilm.encode(TEXTS), strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=48)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        expected = states.numpy()
        assert found.tokens.shape == expected.shape
        np.testing.assert_allclose(found.tokens, expected, atol=2e-3)
        np.testing.assert_allclose(found.pooled, expected.mean(0), atol=2e-3)


def test_minilm_lengths(minilm: TextEncoder) -> None:
    lengths = [len(encoded.tokens) for encoded in minilm.encode(TEXTS)]
    assert lengths[0] == 2  # [CLS] [SEP]
    assert lengths[1] == 8  # a small round pink les ##ion
    assert lengths[2] == 48
    assert minilm.width == 384
    minilm.max_tokens = 5
    try:
        assert [len(e.tokens) for e in minilm.encode(TEXTS)] == [2, 5, 5, 5]
    finally:
        minilm.max_tokens = 48


def test_a_folder_that_is_no_encoder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VapError, match=r"no config.json in that folder") as caught:
        TextEncoder(str(tmp_path / "absent"), 48)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(VapError, match="no loadable text encoder"):
        TextEncoder(str(tmp_path), 48)


def test_damaged_weights_are_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_folder("minilm"), tmp_path / "minilm"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(VapError, match="no loadable text encoder"):
        TextEncoder(str(folder), 48)
