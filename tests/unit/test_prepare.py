"""The prepare stage: its draws, what it writes, that it resumes, what it does about bad images."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_datasets import PROJECT, classes_folder, isic, picture

from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets import base, images, prepare
from vap.datasets.base import Item, RawImage
from vap.datasets.isic2018 import CLASSES
from vap.datasets.split import split, subset
from vap.params import Params, parse

OUT = Path("data/prepared/own.arrow")
LOAD = base.load_file  # before a test replaces it


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "PART_ROWS", 4)
    monkeypatch.setattr("vap.datasets.ahead.processors", lambda: 1)
    return tmp_path


def settings(adapter: str = "folder", dataset: str = "own", **changes: Any) -> Params:
    data = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    data["datasets"] = [dataset]
    data["dataset"] = {dataset: {"adapter": adapter, "modality": "dermoscopy"}}
    data["prepare"] |= {"image_size": 16, **changes}
    return parse(data)


def own(counts: dict[str, int] | None = None) -> Path:
    return classes_folder(Path("data/raw/own"), counts or {"a": 10, "b": 15})


def leftovers() -> list[str]:
    return [str(p) for p in Path("data/prepared").glob("*") if p != OUT]


# ── split and subset ────────────────────────────────────────────────────────────────────────────


def listing(seed: int, counts: dict[str, int], per_group: int) -> list[Item]:
    rng = np.random.default_rng(seed)
    return [
        Item(f"{c}{j:04d}", c, "train", f"{c}{rng.integers(max(1, n // per_group))}", None)
        for c, n in counts.items()
        for j in range(n)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_split_is_grouped_stratified_and_repeatable(seed: int) -> None:
    counts = {"a": 600, "b": 100, "c": 12, "d": 2, "e": 1}
    items = listing(seed, counts, per_group=3)
    done = split(items, 0.2, seed)
    assert [i.id for i in done] == [i.id for i in items]
    assert done == split(items, 0.2, seed)
    assert {i.id: i.split for i in done} == {i.id: i.split for i in split(items[::-1], 0.2, seed)}
    assert done != split(items, 0.2, seed + 1)
    sides: dict[str, set[str]] = {}
    for item in done:
        sides.setdefault(item.group, set()).add(item.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {i.label for i in done if i.split == "train"} == set(counts)
    test = Counter(i.label for i in done if i.split == "test")
    assert abs(test["a"] - 120) <= 3
    assert abs(test["b"] - 20) <= 3
    assert test["c"] >= 1


def test_split_with_groups_of_several_classes() -> None:
    items = [Item(f"{p}{c}", c, "train", f"p{p}", None) for p in range(50) for c in "abc"]
    done = split(items, 0.2, seed=3)
    assert Counter(i.label for i in done if i.split == "test") == {"a": 10, "b": 10, "c": 10}


def test_split_leaves_every_class_a_training_image() -> None:
    items = [Item(f"{c}{j}", c, "train", f"{c}{j}", None) for c in "abc" for j in range(5)]
    done = split(items, 0.99, seed=0)
    assert Counter(i.label for i in done if i.split == "train") == {"a": 1, "b": 1, "c": 1}
    pair = [Item(f"{j}", "a", "train", f"{j // 3}", None) for j in range(6)]
    assert Counter(i.split for i in split(pair, 0.2, seed=0)) == {"train": 3, "test": 3}


def test_subset_is_nested_and_stratified() -> None:
    counts = dict(zip(CLASSES, [1113, 6705, 514, 327, 1099, 115, 142], strict=True))
    items = listing(0, counts, per_group=1)
    items += [Item(f"t{i.id}", i.label, "test", f"t{i.id}", None) for i in items[::8]]
    larger: set[str] = {item.id for item in items}
    for limit in (5000, 1000, 400, 160, 50, 7):
        chosen = subset(items, limit, 70, seed=1)
        train = Counter(i.label for i in chosen if i.split == "train")
        assert train.total() == limit
        assert sum(i.split == "test" for i in chosen) == 70
        assert {i.id for i in chosen} <= larger
        larger = {i.id for i in chosen}
        assert min(train[c] for c in CLASSES) >= (5 if limit >= 160 else 1)
        if limit >= 1000:
            assert all(abs(train[c] - limit * n / 10_015) < 3 for c, n in counts.items())
    assert subset(items, None, None, seed=1) == items
    assert subset(items, 400, 70, seed=1) != subset(items, 400, 70, seed=2)
    with pytest.raises(VapError, match=r"prepare.max_train: found 6; expected at least 7"):
        subset(items, 6, None, seed=1)


# ── the stage ───────────────────────────────────────────────────────────────────────────────────


def test_isic_artefact(project: Path) -> None:
    root = isic(Path("data/raw/isic2018"), val=7)
    path = prepare.run(settings("isic2018", "isic2018", max_train=10), "isic2018")
    assert path == Path("data/prepared/isic2018.arrow")
    file = ArrowFile(path, "prepared")
    assert file.column("split") == ["train"] * 10 + ["val"] * 7 + ["test"] * 7
    assert file.column("id") == sorted(file.column("id"))
    assert file.column("attributes") == [None] * 24
    assert file.metadata["classes"] == CLASSES
    assert file.metadata["modality"] == "dermoscopy"
    assert file.metadata["counts"]["test"] == dict.fromkeys(CLASSES, 1)
    record = file.metadata["provenance"]
    assert set(record["inputs"]) == {"groups", "train labels", "val labels", "test labels"}
    assert str(project) not in json.dumps(record)
    image = Image.open(io.BytesIO(file.value("image", 0)))
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (16, 16))
    pixels, sha256 = images.read(next(root.rglob(f"{file.value('id', 0)}.jpg")))
    assert file.value("sha256", 0) == sha256
    assert np.array_equal(np.asarray(image), images.fit(pixels, 16, "squash"))


def interrupt_after(n: int, calls: list[str]) -> Callable[[Item], RawImage]:
    def stand_in(item: Item, at_least: int = 0) -> RawImage:
        if len(calls) == n:
            raise KeyboardInterrupt
        calls.append(item.id)
        return LOAD(item, at_least)

    return stand_in


def test_same_bytes_twice_and_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    own()
    prepare.run(settings(), "own")
    first = OUT.read_bytes()
    prepare.run(settings(), "own")
    assert OUT.read_bytes() == first
    OUT.unlink()
    calls: list[str] = []
    monkeypatch.setattr("vap.datasets.base.load_file", interrupt_after(10, calls))
    with pytest.raises(KeyboardInterrupt):
        prepare.run(settings(), "own")
    assert not OUT.exists()
    assert leftovers() == []
    again: list[str] = []
    monkeypatch.setattr("vap.datasets.base.load_file", interrupt_after(-1, again))
    prepare.run(settings(), "own")
    assert OUT.read_bytes() == first
    assert len(again) == 25 - 8  # two parts of four images were whole
    assert not set(calls[:8]) & set(again)
    assert leftovers() == []
    assert not any(Path("work/prepare").iterdir())


def test_an_interrupted_run_does_not_go_on_with_another_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = own()
    with monkeypatch.context() as patch:
        patch.setattr("vap.datasets.base.load_file", interrupt_after(10, []))
        with pytest.raises(KeyboardInterrupt):
            prepare.run(settings(), "own")
    picture(root / "a/000.png", 77, size=(40, 40))
    picture(root / "a/000b.png", 78)
    prepare.run(settings(), "own")
    resumed = OUT.read_bytes()
    prepare.run(settings(), "own")
    assert OUT.read_bytes() == resumed
    assert len(set(ArrowFile(OUT, "prepared").column("id"))) == 26


def spoil(root: Path, name: str) -> None:
    file = root / name
    file.write_bytes(file.read_bytes()[:60])


def test_stop_at_the_first_unreadable_image() -> None:
    root = own()
    spoil(root, "b/003.png")
    with pytest.raises(VapError, match=r"data/raw/own/b/003\.png: found a broken image"):
        prepare.run(settings(), "own")
    assert not OUT.exists()
    assert leftovers() == []


def test_skip_lists_the_unreadable_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = own()
    spoil(root, "a/000.png")
    spoil(root, "b/003.png")
    prepare.run(settings(on_error="skip"), "own")
    file = ArrowFile(OUT, "prepared")
    assert len(file) == 23
    notes = sorted(file.metadata["notes"])
    assert [note.split(":")[0] for note in notes] == ["left out a__000", "left out b__003"]
    assert "data/raw/own/b/003.png" in notes[1]
    counts = file.metadata["counts"]
    assert sum(sum(row.values()) for row in counts.values()) == 23
    assert "data/raw/own: 2 unreadable images left out" in capsys.readouterr().err
    whole = OUT.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("vap.datasets.base.load_file", interrupt_after(20, []))
        with pytest.raises(KeyboardInterrupt):
            prepare.run(settings(on_error="skip"), "own")
    assert OUT.read_bytes() == whole  # the old artefact stands until the new one is whole
    prepare.run(settings(on_error="skip"), "own")
    assert OUT.read_bytes() == whole
    assert leftovers() == []


def test_classes_without_test_images_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    own({"a": 10, "b": 1, "c": 10})
    prepare.run(settings(), "own")
    assert "data/raw/own: no test image of b: " in capsys.readouterr().err
    own({"b": 10})
    prepare.run(settings(), "own")
    assert capsys.readouterr().err.count("no test image") == 0


def test_skip_may_not_empty_a_class() -> None:
    root = own({"a": 10, "b": 1})
    spoil(root, "b/000.png")
    with pytest.raises(VapError, match="no training image of class 'b'"):
        prepare.run(settings(on_error="skip"), "own")
    assert not OUT.exists()
    assert leftovers() == []


def test_missing_dataset_says_where_it_goes() -> None:
    for adapter, text in (
        ("folder", "put the images there as CLASS/"),
        ("isic2018", "fetch ISIC2018_Task3_{Training,Test}_{Input,GroundTruth}.zip"),
        ("phantom", "write its phantom.yaml"),
    ):
        with pytest.raises(VapError) as caught:
            prepare.run(settings(adapter), "own")
        assert str(caught.value).startswith("data/raw/own: found no folder")
        assert text in str(caught.value)
    with pytest.raises(VapError, match="dataset: found 'other'; expected one of own"):
        prepare.run(settings(), "other")


def test_phantom_artefact() -> None:
    spec = PROJECT / "data/raw/phantom-isic2018/phantom.yaml"
    root = Path("data/raw/phantom-isic2018")
    root.mkdir(parents=True)
    (root / "phantom.yaml").write_bytes(spec.read_bytes())
    params = settings("phantom", "phantom-isic2018", max_train=14, max_test=7)
    path = prepare.run(params, "phantom-isic2018")
    file = ArrowFile(path, "prepared")
    assert file.column("split") == ["train"] * 14 + ["test"] * 7
    assert all("shape" in json.loads(text) for text in file.column("attributes"))
    pixels = np.asarray(Image.open(io.BytesIO(file.value("image", 0))))
    assert pixels.shape == (16, 16, 3)
    assert file.value("sha256", 0) == hashlib.sha256(pixels.tobytes()).hexdigest()
    edited = params.model_dump()
    edited["dataset"]["phantom-isic2018"]["modality"] = "chest_xray"
    with pytest.raises(VapError, match="modality: found chest_xray; expected dermoscopy"):
        prepare.run(parse(edited), "phantom-isic2018")
