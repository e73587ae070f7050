"""The prompt bank and the encode stage that builds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy import CLASSES, settings, write, write_bank, write_latents

import vap.prompts.encode as stage
from vap.common.artifacts import file_sha256
from vap.common.errors import VapError
from vap.prompts.bank import NULL_ROW, PromptBank
from vap.prompts.encoders import Encoded
from vap.prompts.places import Place, locate
from vap.prompts.states import TORCH, pack, store, unpack

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

    width, revision, pooled = 3, "stub", "the mean"

    def __init__(self, name: str, max_tokens: int, _device: Any = "cpu") -> None:
        self.name, self.max_tokens = name, max_tokens
        self.place: Place = locate(name)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        found = []
        for text in texts:
            n = min(2 + len(text.split()), self.max_tokens)
            tokens = np.arange(n * 3, dtype=np.float32).reshape(n, 3) + len(text) + 0.1
            found.append(Encoded(tokens, tokens.mean(0), 2 + len(text.split())))
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_settings: None) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(stage, "load_encoder", Stub)
    write_captions()
    return tmp_path


def write_captions(images: Sequence[tuple[str, str, str, str | None]] = IMAGES) -> None:
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
        expected = Stub("encoder", 99).encode([bank.text(row)])[0].tokens
        np.testing.assert_array_equal(tokens, expected.astype(np.float16))


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
def test_an_image_without_description_gets_the_null_prompt(
    project: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_captions([(*image[:3], text if image[0] == "b1" else image[3]) for image in IMAGES])
    bank = built()
    assert bank.row_of["b1"] == NULL_ROW
    assert "1 of 8 images have no description" in capsys.readouterr().err
    assert bank.metadata["undescribed"] == 1
    assert [bank.text(int(row)) for row in bank.rows("scar")] == ["a long thin pale line"]  # b1 is not drawn


def test_an_image_that_the_captions_lack_is_named(project: Path) -> None:
    write_captions([image for image in IMAGES if image[0] != "b1"])
    with pytest.raises(VapError, match="no row of image b1"):
        built()


def test_a_class_without_any_description_is_told_when_drawn(project: Path) -> None:
    write_captions([(*image[:3], None if image[1] == "scar" else image[3]) for image in IMAGES])
    bank = built()
    assert not bank.has("scar")
    with pytest.raises(VapError, match="no description of class 'scar' in split train"):
        bank.draw("scar", np.random.default_rng(0))


def test_a_killed_stage_goes_on_where_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "PART_TEXTS", 2)
    whole = built(encode__dtype="int8")
    content, metadata = list(whole.file.rows()), whole.metadata
    BANK.unlink()

    class Dying(Stub):
        def encode(self, texts: Sequence[str]) -> list[Encoded]:
            if "a long thin pale line" in texts:
                raise KeyboardInterrupt
            return super().encode(texts)

    monkeypatch.setattr(stage, "load_encoder", Dying)
    with pytest.raises(KeyboardInterrupt):
        built(encode__dtype="int8")
    seen: list[str] = []

    class Counting(Stub):
        def encode(self, texts: Sequence[str]) -> list[Encoded]:
            seen.extend(texts)
            return super().encode(texts)

    monkeypatch.setattr(stage, "load_encoder", Counting)
    again = built(encode__dtype="int8")
    assert set(seen) == {"", "a long thin pale line", "wide"}  # the empty text is asked for its sizes
    assert list(again.file.rows()) == content
    assert again.metadata == metadata  # the measured error too


def test_the_metadata_says_what_made_the_bank(project: Path) -> None:
    metadata = built().metadata
    assert metadata["encoder"] == "encoder"
    assert metadata["revision"] == "stub"
    assert metadata["pooled"] == "the mean"
    assert (metadata["width"], metadata["pooled_width"], metadata["dtype"]) == (3, 3, "fp16")
    assert 0 < metadata["error"]["rms"] <= metadata["error"]["max"] < 2**-11 + 1e-6


def test_descriptions_that_are_cut_are_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = built().metadata
    assert (whole["cut"], whole["longest"]) == (0, 7)
    assert "cut" not in capsys.readouterr().err
    BANK.unlink()
    metadata = built(encode__max_tokens=4).metadata
    assert (metadata["cut"], metadata["longest"]) == (2, 7)  # of the texts: not of the images that share one
    said = capsys.readouterr().err
    assert "2 of 5 descriptions are longer than encode.max_tokens: 4, the longest has 7 tokens" in said


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


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_collate_is_the_plain_loop(project: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several record batches, with rows that repeat."""
    monkeypatch.setattr(stage, "PART_TEXTS", 2)
    bank = built(encode__dtype=dtype)
    rows = [4, 0, 2, 4, 5, 1, 3]
    context, mask = bank.collate(rows)
    assert context.dtype == torch.float32
    for i, row in enumerate(rows):
        states = bank.tokens(row).astype(np.float32)
        assert mask[i].tolist() == [j < len(states) for j in range(mask.shape[1])]
        np.testing.assert_array_equal(context[i, : len(states)].numpy(), states)
        assert not context[i, len(states) :].any()
    narrow, same = bank.collate(rows, bank.native)
    assert narrow.dtype == {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}[dtype]
    assert torch.equal(same, mask)
    assert torch.equal(narrow.float(), context)


@pytest.mark.parametrize(("dtype", "bound"), [("fp16", 2**-11), ("bf16", 2**-8), ("int8", 0.5 / 127)])
def test_each_dtype_keeps_its_bound(project: Path, dtype: str, bound: float) -> None:
    bank = built(encode__dtype=dtype)
    assert bank.dtype == dtype
    for row in range(len(bank)):
        exact = Stub("encoder", 99).encode([bank.text(row)])[0].tokens
        error = np.abs(bank.tokens(row) - exact).max(1) / np.abs(exact).max(1)
        assert error.max() <= bound * 1.001
    error = bank.metadata["error"]
    assert 0 < error["rms"] <= bound
    assert 0 < error["max"] <= bound * 1.001


def test_int8_is_half_of_fp16(tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((80, 768)).astype(np.float32)
    sizes = {dtype: len(pack(states, dtype).data) + pack(states, dtype).scales.nbytes for dtype in TORCH}
    assert sizes["fp16"] == sizes["bf16"] == 80 * 768 * 2
    assert sizes["int8"] == 80 * (768 + 4)


def test_states_that_fp16_cannot_hold_are_one_line() -> None:
    states = np.full((2, 3), 1e5, np.float32)
    with pytest.raises(VapError, match="use bf16"):
        pack(states, "fp16")
    assert pack(states, "bf16").error.largest < 2**-8


def test_a_token_of_zeros_stays_zero() -> None:
    states = np.zeros((2, 4), np.float32)
    states[1] = [1, -2, 3, -4]
    stored, scales = store(torch.from_numpy(states), "int8")
    back = unpack(stored, scales)
    assert not back[0].any()
    assert torch.allclose(back[1], torch.from_numpy(states[1]), atol=4 / 254)


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
