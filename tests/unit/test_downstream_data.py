"""What classifiers are trained on: subsets, synthetic images, pools, batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from downstream_toy import CLASSES, PREPARED, image, write_prepared, write_samples
from toy import write

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets.images import decode
from vap.datasets.share import real_rows, subset_rows
from vap.downstream.data import ImagePool, batch_numbers, synthetic_rows


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(counts: dict[str, int], order: int = 0) -> ArrowFile:
    """Training images of these classes, shuffled by `order`, and a test image."""
    ids = [(f"{label}{i}", label, "train") for label, n in counts.items() for i in range(n)]
    ids = [*(ids[i] for i in np.random.default_rng(order).permutation(len(ids))), ("t", "a", "test")]
    rows = [
        {
            "id": name,
            "label": label,
            "split": split,
            "group": "g",
            "sha256": "",
            "image": b"",
            "attributes": None,
        }
        for name, label, split in ids
    ]
    return ArrowFile(write(PREPARED, "prepared", rows), "prepared")


# ── subsets ─────────────────────────────────────────────────────────────────────────────────────────


def test_subsets_are_nested_and_stratified_with_an_image_of_every_class() -> None:
    file = prepared({"a": 670, "b": 55, "c": 3, "d": 1})
    labels = file.column("label")
    subsets = {percent: subset_rows(file, percent, 0) for percent in (1, 2, 10, 50, 100)}
    counts = {percent: Counter(labels[row] for row in rows) for percent, rows in subsets.items()}
    assert counts[1] == {"a": 7, "b": 1, "c": 1, "d": 1}
    assert counts[10] == {"a": 67, "b": 6, "c": 1, "d": 1}
    assert counts[50] == {"a": 335, "b": 28, "c": 2, "d": 1}
    assert subsets[100] == real_rows(file, "train")
    assert all(rows == sorted(rows) for rows in subsets.values())
    for smaller, larger in ((1, 2), (2, 10), (10, 50), (50, 100)):
        assert set(subsets[smaller]) < set(subsets[larger])


def test_a_subset_depends_on_seed_and_ids_alone() -> None:
    names = [
        {file.value("id", row) for row in subset_rows(file, 10, 0)}
        for file in (prepared({"a": 60, "b": 20}, order) for order in (0, 1))
    ]
    assert names[0] == names[1]
    file = prepared({"a": 60, "b": 20})
    assert subset_rows(file, 10, 0) != subset_rows(file, 10, 1)


def test_a_split_without_images_is_one_line() -> None:
    with pytest.raises(VapError, match="found no image of split val; expected some"):
        real_rows(prepared({"a": 2}), "val")


# ── synthetic images ────────────────────────────────────────────────────────────────────────────────


def test_synthetic_images_are_the_first_or_as_many_of_each_class() -> None:
    file = ArrowFile(write_samples(9), "samples")  # light: 0, 3 and 6
    assert synthetic_rows(file, None, "as_sampled", CLASSES) == list(range(9))
    assert synthetic_rows(file, 4, "as_sampled", CLASSES) == [0, 1, 2, 3]
    assert synthetic_rows(file, 5, "balanced", CLASSES) == [0, 1, 2, 3]
    assert synthetic_rows(file, None, "balanced", CLASSES) == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize(
    ("n", "balance", "words"),
    [
        (10, "as_sampled", "found 9 images; expected 10 or more"),
        (8, "balanced", "found 3 images of the rarest class; expected 4 or more"),
        (1, "balanced", "expected 1 or more"),
    ],
)
def test_too_few_synthetic_images_are_one_line(n: int, balance: str, words: str) -> None:
    file = ArrowFile(write_samples(9), "samples")
    with pytest.raises(VapError, match=words):
        synthetic_rows(file, n, balance, CLASSES)  # type: ignore[arg-type]


# ── pools ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("hold", [0, 2 * 3 * 16**2, 2**20])
def test_a_pool_gives_the_images_of_its_files_whatever_it_holds(hold: int) -> None:
    real, synthetic = ArrowFile(write_prepared(), "prepared"), ArrowFile(write_samples(), "samples")
    pool = ImagePool([(real, [3, 4]), (synthetic, [0])], CLASSES, 16, hold)
    assert len(pool) == 3
    for _ in range(2):
        images, labels = pool.batch([2, 0, 1, 2])
        assert labels.tolist() == [1, 1, 0, 1]
        wanted = [image(1000, True), image(3, True), image(4, False), image(1000, True)]
        assert (images.permute(0, 2, 3, 1).numpy() == np.stack([decode(png) for png in wanted])).all()
    assert len(pool._held) == min(3, hold // (3 * 16**2))


def test_a_pool_resizes() -> None:
    pool = ImagePool([(ArrowFile(write_prepared(), "prepared"), [0])], CLASSES, 8)
    assert pool.batch([0])[0].shape == (1, 3, 8, 8)


def test_a_class_of_another_dataset_and_a_broken_image_are_one_line() -> None:
    file = ArrowFile(write_prepared(), "prepared")
    with pytest.raises(VapError, match="class 'light' in row 1; expected one of dark"):
        ImagePool([(file, [0, 1])], ["dark"], 16)
    file = prepared({"a": 1})
    with pytest.raises(VapError, match="no image in row 0"):
        ImagePool([(file, [0])], ["a"], 16).batch([0])


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_pool_is_gone_through_again_and_again() -> None:
    drawn = np.concatenate([batch_numbers(step, 4, 3, 2, None, 0) for step in range(5)])
    passes = drawn.reshape(4, 5)
    assert all(sorted(one) == list(range(5)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert not np.array_equal(drawn[:4], batch_numbers(0, 4, 3, 2, None, 1))


def test_a_batch_has_its_share_of_real_images() -> None:
    batches = [batch_numbers(step, 8, 5, 100, 0.25, 0) for step in range(5)]
    assert all((numbers < 5).sum() == 2 for numbers in batches)
    assert sorted(np.concatenate(batches)[np.concatenate(batches) < 5]) == sorted([*range(5)] * 2)
    assert (batch_numbers(0, 8, 5, 100, 0.01, 0) < 5).sum() == 1
    assert (batch_numbers(0, 8, 5, 100, 0.99, 0) < 5).sum() == 7
    assert (batch_numbers(0, 8, 5, 0, 0.25, 0) < 5).all()  # real alone
