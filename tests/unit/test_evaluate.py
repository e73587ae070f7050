"""The evaluate stage: which images it measures, what it writes, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from test_metrics import SKIN, textures

from vap.artifacts import SCHEMAS, ArrowFile, Kind, build_arrow, file_sha256
from vap.datasets.images import encode
from vap.errors import VapError
from vap.metrics.features import features_of, load_extractor
from vap.metrics.fidelity import measure
from vap.params import Params, parse
from vap.stages import evaluate

PROJECT = Path(__file__).resolve().parents[2]
SAMPLES = Path("results/samples/own/vap-seen.arrow")
PREPARED = Path("data/prepared/own.arrow")
OUT = Path("results/metrics/own/vap-seen.json")


@pytest.fixture(scope="module")
def extractor() -> Any:
    return load_extractor("efficientnet-lite0")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: Any) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "load_extractor", lambda *_: extractor)  # load it once
    threads = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def settings(seed: int = 0, **changes: Any) -> Params:
    data = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    data["seed"] = seed
    data["compute"]["device"] = "cpu"
    small = {"n": 6, "neighbours": 2, "isc_splits": 2, "batch_size": 4}
    data["evaluate"] |= {"features": "efficientnet-lite0", "features_path": None} | small | changes
    return parse(data)


def write(path: Path, kind: Kind, rows: list[dict[str, Any]]) -> None:
    def make_part(span: range) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows[span.start : span.stop], schema=SCHEMAS[kind])

    build_arrow(path, kind, len(rows), make_part, {"stage": kind, "item": []}, part_rows=4)


def prepared(splits: str = "train " * 10 + "test " * 3, size: int = 32) -> list[np.ndarray]:
    """Write a prepared dataset of these splits, and return its images."""
    names = splits.split()
    images = textures(1, len(names), SKIN, size)
    rows = [
        {"id": f"{i}", "label": "a", "split": split, "group": f"{i}", "sha256": "", "image": png}
        for i, (split, png) in enumerate(zip(names, map(encode, images), strict=True))
    ]
    write(PREPARED, "prepared", rows)
    return images


def samples(n: int = 8, size: int = 32, broken: int | None = None) -> list[np.ndarray]:
    """Write n samples, and return their images."""
    images = textures(2, n, (0.9, 0.8, 0.5), size)
    pngs = [encode(image) for image in images]
    if broken is not None:
        pngs[broken] = pngs[broken][:60]
    rows = [{"index": i, "label": "a", "text": None, "image": png} for i, png in enumerate(pngs)]
    write(SAMPLES, "samples", rows)
    return images


def run(params: Params) -> dict[str, Any]:
    assert evaluate.run(params, "own", "vap", "seen") == OUT
    result: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8"))
    return result


# ── what it measures ────────────────────────────────────────────────────────────────────────────


def test_first_samples_against_a_draw_of_the_split(extractor: Any) -> None:
    real, drawn = prepared(), samples()
    params = settings()
    found = run(params)
    reference = evaluate.reference_rows(ArrowFile(PREPARED, "prepared"), params.evaluate, 0)
    expected = measure(
        features_of(drawn[:6], extractor, 6),
        features_of([real[row] for row in reference], extractor, 6),
        neighbours=2,
        isc_splits=2,
        seed=0,
    )
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    head = list(found)[:8]
    assert {key: found[key] for key in head} == {
        "dataset": "own",
        "method": "vap",
        "condition": "seen",
        "features": "efficientnet-lite0",
        "reference": "train",
        "n": 6,
        "n_reference": 6,
        "seed": 0,
    }
    assert list(found)[8:] == ["fid", "isc_mean", "isc_std", "precision", "recall", "provenance"]
    record = found["provenance"]
    assert (record["stage"], record["item"]) == ("evaluate", ["own", "vap", "seen"])
    assert record["params"] == {"seed": 0, "evaluate": params.evaluate.model_dump()}
    assert {name: entry["sha256"] for name, entry in record["inputs"].items()} == {
        "samples": file_sha256(SAMPLES),
        "prepared": file_sha256(PREPARED),
    }
    assert {"scipy", "timm", "torch-fidelity", evaluate.WEIGHTS_PACKAGE} < set(record["libraries"])
    assert str(Path.cwd()) not in OUT.read_text(encoding="utf-8")
    assert [path.name for path in OUT.parent.iterdir()] == [OUT.name]


def test_reference_rows() -> None:
    prepared("test train train val " * 10)
    file = ArrowFile(PREPARED, "prepared")

    base = settings().evaluate

    def draw(seed: int = 0, **changes: Any) -> list[int]:
        return evaluate.reference_rows(file, base.model_copy(update=changes), seed)

    train = [i for i in range(40) if i % 4 in (1, 2)]
    some = draw()
    assert len(set(some)) == 6
    assert set(some) < set(train)
    assert some == sorted(some) == draw()
    assert some != draw(seed=1)
    assert draw(n=20) == draw(n=400) == train
    assert draw(reference="test", n=10) == list(range(0, 40, 4))
    assert {row for seed in range(60) for row in draw(seed)} == set(train)


def test_a_small_reference_is_taken_whole() -> None:
    prepared(), samples()
    found = run(settings(reference="test"))
    assert (found["n"], found["n_reference"], found["reference"]) == (6, 3, "test")


def test_bytes_are_the_same_on_every_run(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    run(settings())
    first = OUT.read_bytes()
    project.setattr(evaluate, "load_extractor", load_extractor)  # a fresh one
    OUT.unlink()
    run(settings())
    assert OUT.read_bytes() == first
    other = run(settings(batch_size=1))
    assert other["fid"] == json.loads(first)["fid"]


def test_samples_that_are_the_reference() -> None:
    images = prepared("train " * 6)
    rows = [{"index": i, "label": "a", "image": encode(im)} for i, im in enumerate(images)]
    write(SAMPLES, "samples", rows)
    found = run(settings())
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == 1.0


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────


def refused(*expected: str, **changes: Any) -> None:
    with pytest.raises(VapError) as error:
        run(settings(**changes))
    line = str(error.value)
    assert "\n" not in line
    assert all(text in line for text in expected), line
    assert not OUT.exists()


def test_absent_and_foreign_files() -> None:
    prepared()
    refused(str(SAMPLES), "no such file")
    write(SAMPLES, "prepared", [])
    refused(str(SAMPLES), "found prepared", "a samples artefact")
    SAMPLES.write_text("no arrow")
    refused(str(SAMPLES), "no readable Arrow file")
    samples()
    PREPARED.unlink()
    refused(str(PREPARED), "no such file")


def test_too_few_images() -> None:
    prepared("train " * 4 + "test "), samples(5)
    refused(str(SAMPLES), "5 samples (sample.n: 256)", "evaluate.n: 6")
    samples(8)
    refused("1 images of split test", reference="test")
    refused("evaluate.neighbours", "4 for 6 samples and 4 reference", "3 or less", neighbours=4)
    refused("evaluate.isc_splits", "6 or less", isc_splits=7)


def test_damaged_and_unequal_images() -> None:
    prepared(), samples(broken=3)
    refused(str(SAMPLES), "no image in row 3")
    samples(size=16)
    refused(str(SAMPLES), "16x16 pixels", "32x32 as in data/prepared/own.arrow")
    rows = [*textures(0, 3, SKIN, 32), *textures(0, 5, SKIN, 48)]
    pngs = [{"index": i, "label": "a", "image": encode(im)} for i, im in enumerate(rows)]
    write(SAMPLES, "samples", pngs)
    refused("48x48 pixels in row 3", "32x32 as in the first")


def test_no_metric_that_is_not_a_number(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    project.setattr(evaluate, "measure", lambda *_: {"fid": float("nan"), "recall": 1.0})
    refused(str(SAMPLES), "fid nan")
