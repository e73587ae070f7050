"""The audit of copies: what it compares, what it finds of planted copies, what it says of new images."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy import write
from typer.testing import CliRunner

from vap.cli import app
from vap.common.artifacts import ArrowFile
from vap.common.errors import VapError
from vap.datasets.images import decode, encode
from vap.datasets.phantom import list_samples, load_spec, render
from vap.metrics import copies
from vap.metrics.copies import KINDS, TrainingImages, audit_copies, correlations, small_grey, wilson
from vap.params import Params, parse
from vap.profiles import read_profile

PROJECT = Path(__file__).resolve().parents[2]
NAME = "phantom-isic2018"
PREPARED, SAMPLES = Path(f"data/prepared/{NAME}.arrow"), Path(f"results/samples/{NAME}/uvit-seen.arrow")


def settings() -> Params:
    data = read_profile(PROJECT / "config/demo.yaml")
    data["compute"] |= {"device": "cpu", "threads": 1}
    return parse(data)


@pytest.fixture(scope="module")
def images() -> dict[str, list[Any]]:
    """Phantoms of the demo: 160 for training, 100 for testing, 100 that are in neither."""
    spec = load_spec(PROJECT / "data/raw" / NAME / "phantom.yaml")
    every = [render(spec.modality, sample, 64) for sample in list_samples(spec, 3)[::2][:360]]
    return {"train": every[:160], "test": every[160:260], "new": every[260:]}


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def prepared(images: dict[str, list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArrowFile:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"{split}-{i}", "label": "a", "split": split, "group": f"{split}-{i}", "sha256": "",
         "image": encode(image), "attributes": None}
        for split in ("train", "test") for i, image in enumerate(images[split])
    ]  # fmt: skip
    write(PREPARED, "prepared", rows, classes=["a"], modality="dermoscopy")
    return ArrowFile(PREPARED, "prepared")


def samples_of(images: list[Any]) -> None:
    rows = [
        {"index": i, "label": "a", "text": None, "image": encode(image)} for i, image in enumerate(images)
    ]
    write(SAMPLES, "samples", rows, classes=["a"])


def noisy(image: Any, seed: int) -> Any:
    return np.clip(image + np.random.default_rng(seed).normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def test_the_correlation_is_pearsons_over_mirror_images_and_crops() -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    other = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    a, b = small_grey([whole]), small_grey([other])
    # of two images of noise the best part is small; the whole is what numpy gives
    whole_alone = np.corrcoef(a.flatten(), b.flatten())[0, 1]
    assert correlations(a, b).item() >= whole_alone
    assert correlations(a, a).item() == pytest.approx(1, abs=1e-4)
    assert correlations(a.flip(-1), a).item() == pytest.approx(1, abs=1e-4)
    assert correlations(3 * a + 7, a).item() == pytest.approx(1, abs=1e-4)  # brightness and contrast
    part = torch.nn.functional.interpolate(a[..., 3:29, 5:31], (32, 32), mode="bilinear", align_corners=False)
    assert correlations(part, a).item() > 0.9 > 0.6 > correlations(part, b).item()
    flat = torch.full_like(a, 9.0)
    assert correlations(flat, a).item() == pytest.approx(0, abs=1e-3)
    assert correlations(a, flat).item() == pytest.approx(0, abs=0.05)


def test_copies_of_every_kind_are_found_and_new_images_are_not(
    prepared: ArrowFile, images: dict[str, list[Any]]
) -> None:
    """At 1 % of false alarms among test images 95 % of the planted copies of one change are found."""
    samples_of(images["new"])
    target = audit_copies(settings(), NAME, "uvit", "seen")
    result = copies.find(settings(), prepared, ArrowFile(SAMPLES, "samples"), torch.device("cpu"))
    assert set(result.found) == set(KINDS)
    assert result.found.pop("mirrored, cropped, recolored") >= 0.9
    assert min(result.found.values()) >= 0.95, result.found
    assert (result.test_ratio < result.threshold).sum() == 1  # of 100
    assert result.called.sum() <= 4
    text = target.with_suffix(".md").read_text(encoding="utf-8")
    assert "| test images called copies | 1.0% of 100 |" in text
    with target.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(100))
    assert sum(int(row["copy"]) for row in rows) == result.called.sum()


def test_samples_that_are_copies_are_named_with_their_training_image(
    prepared: ArrowFile, images: dict[str, list[Any]]
) -> None:
    stolen = [noisy(image, 1) for image in images["train"][10:30]]
    samples_of([*stolen, *images["new"][:20]])
    target = audit_copies(settings(), NAME, "uvit", "seen")
    with target.with_suffix(".csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    named = [row["training_image"] for row in rows[:20] if int(row["copy"])]
    assert len(named) >= 19
    assert {row["training_image"] for row in rows[:20]} == {f"train-{i}" for i in range(10, 30)}
    assert sum(int(row["copy"]) for row in rows[20:]) <= 1
    page = np.asarray(Image.open(target.with_suffix(".png")))
    assert page.shape == (128, 12 * 64, 3)
    first = next(i for i in range(20) if np.array_equal(page[:64, :64], stolen[i]))
    assert np.array_equal(page[64:, :64], images["train"][10 + first])
    before = {path.name: path.read_bytes() for path in target.parent.iterdir()}
    audit_copies(settings(), NAME, "uvit", "seen")
    assert {path.name: path.read_bytes() for path in target.parent.iterdir()} == before


def test_a_second_picture_of_the_same_lesion_hides_no_copy(
    images: dict[str, list[Any]], tmp_path: Path
) -> None:
    """Two training images of one group are both near a copy; the ratio is to other groups."""
    first, second, copy = (noisy(images["train"][0], seed) for seed in range(3))
    pictures = [first, second, *images["train"][1:20]]
    ratio = {}
    for how, groups in (("one", [0, 0, *range(1, 20)]), ("own", range(21))):
        rows = [
            {"id": f"{i}", "label": "a", "split": "train", "group": f"g{group}", "sha256": "",
             "image": encode(picture), "attributes": None}
            for i, (picture, group) in enumerate(zip(pictures, groups, strict=True))
        ]  # fmt: skip
        path = tmp_path / f"{how}.arrow"
        write(path, "prepared", rows, classes=["a"])
        training = TrainingImages(ArrowFile(path, "prepared"), torch.device("cpu"))
        ratio[how] = training.compare([copy])[2].item()
    assert ratio["one"] < 0.1
    assert ratio["own"] > 0.5


def test_an_interval_of_a_share() -> None:
    low, high = wilson(0, 128)
    assert (low, high) == (pytest.approx(0, abs=1e-9), pytest.approx(0.0291, abs=1e-3))
    assert wilson(64, 128) == (pytest.approx(0.4147, abs=1e-3), pytest.approx(0.5853, abs=1e-3))


def test_the_command_prints_the_table(
    prepared: ArrowFile, images: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples_of(images["new"][:8])
    monkeypatch.setattr(copies, "in_features", lambda *_: {"net": 1.25})
    Path("params.yaml").write_text((PROJECT / "config/demo.yaml").read_text())
    done = CliRunner().invoke(app, ["audit", "copies", NAME, "uvit"])
    assert done.exit_code == 0, done.output
    assert "| planted copies found: mirrored |" in done.output
    assert "over that of test images | 1.25 |" in done.output


def test_what_cannot_be_audited_is_one_line(prepared: ArrowFile) -> None:
    with pytest.raises(VapError, match=r"uvit-seen\.arrow"):
        audit_copies(settings(), NAME, "uvit", "seen")
    samples_of([decode(prepared.value("image", 0))])
    row = {"id": "x", "label": "a", "split": "train", "group": "g", "sha256": "", "attributes": None}
    write(PREPARED, "prepared", [row | {"image": prepared.value("image", 0)}], classes=["a"])
    with pytest.raises(VapError, match="no image of split test"):
        audit_copies(settings(), NAME, "uvit", "seen")
