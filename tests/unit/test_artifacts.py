"""Artefacts: atomic writes, resumable builds, reading in place, provenance, a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vap import cli
from vap.common import artifacts
from vap.common.artifacts import (
    SCHEMAS,
    ArrowFile,
    atomic,
    build_arrow,
    canonical,
    file_sha256,
    provenance,
    work_folder,
    write_json,
)
from vap.common.errors import VapError

RECORD = {"stage": "latents", "item": ["own"], "params": {"seed": 0}}
OUT = Path("data/own.arrow")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leftovers(folder: Path, *expected: str) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in expected)


def make_part(span: range) -> pa.RecordBatch:
    rows = [
        {"id": f"i{i}", "label": "a", "split": "train", "moments": np.full(4, i, np.float32)} for i in span
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["latents"])


def build(part: Callable[[range], pa.RecordBatch] = make_part, **options: Any) -> None:
    options = {"part_rows": 4, **options}
    build_arrow(OUT, "latents", 10, part, RECORD, **options)


# ── atomic ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("wrote", [True, False])
def test_a_failed_write_keeps_the_old_file(error: type[BaseException], wrote: bool) -> None:
    file = Path("file")
    file.write_text("old")

    def fail() -> None:
        with atomic(file) as part:
            if wrote:
                part.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert file.read_text() == "old"
    assert not leftovers(Path(), "file")


def test_a_failed_folder_keeps_the_old_one() -> None:
    folder = Path("folder")
    folder.mkdir()
    (folder / "old").write_text("old")

    def fail() -> None:
        with atomic(folder) as part:
            part.mkdir()
            (part / "new").write_text("new")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert leftovers(folder) == ["old"]
    assert not leftovers(Path(), "folder")


def test_a_good_write_replaces_file_and_folder_whole() -> None:
    with atomic(Path("deep/er/file")) as part:
        part.write_text("new")
        assert not Path("deep/er/file").exists()
        assert part.parent == Path("deep/er")  # the same file system
    assert leftovers(Path("deep/er")) == ["file"]
    for name in ("first", "second"):
        with atomic(Path("folder")) as part:
            part.mkdir()
            (part / name).touch()
    assert leftovers(Path("folder")) == ["second"]
    assert not leftovers(Path(), "folder", "deep")


def test_a_folder_may_take_a_files_place_never_silently_lose_it() -> None:
    with atomic(Path("data.json")) as part:
        part.write_text("{}")
    write_json(Path("data.json"), {"é": float(1)})
    assert Path("data.json").read_bytes() == '{\n  "é": 1.0\n}\n'.encode()


# ── work folder ─────────────────────────────────────────────────────────────────────────────────


def test_work_folder_is_named_by_the_record_and_goes_when_all_is_well() -> None:
    with work_folder(RECORD) as first:
        (first / "state").touch()
    assert not first.exists()
    assert not leftovers(first.parent)
    other = {**RECORD, "params": {"seed": 1}}
    with work_folder(other) as second:
        assert second != first
        assert second.name.startswith("own-")
    reordered = dict(reversed(RECORD.items()))
    with work_folder(reordered) as third:
        assert third == first


def test_work_folder_stays_when_the_run_fails() -> None:
    def fail() -> None:
        with work_folder(RECORD) as work:
            (work / "state").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with work_folder(RECORD, keep=True) as work:
        assert (work / "state").read_text() == "half"
    assert (work / "state").exists()


def test_a_second_process_waits_for_the_first() -> None:
    code = (
        "from vap.common.artifacts import work_folder\n"
        f"with work_folder({RECORD!r}) as work: (work / 'second').touch(); print(work.exists())"
    )
    with work_folder(RECORD) as work:
        second = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        time.sleep(1.5)
        assert second.poll() is None
        assert not (work / "second").exists()
    assert second.communicate(timeout=20)[0].strip() == "True"


# ── build_arrow ─────────────────────────────────────────────────────────────────────────────────


def test_build_writes_all_rows_with_their_record() -> None:
    build(metadata={"scale": 0.5, "classes": ["é"]})
    file = ArrowFile(OUT, "latents")
    assert file.column("id") == [f"i{i}" for i in range(10)]
    assert file.metadata["provenance"] == RECORD
    assert file.metadata["scale"] == 0.5
    assert file.metadata["classes"] == ["é"]
    assert not leftovers(OUT.parent, "own.arrow")
    assert not leftovers(Path("work/latents"))


def test_a_killed_build_goes_on_with_the_part_that_was_not_done() -> None:
    build()
    whole = file_sha256(OUT)
    OUT.unlink()
    asked: list[range] = []

    def killed(span: range) -> pa.RecordBatch:
        asked.append(span)
        if span.start == 8:
            raise KeyboardInterrupt
        return make_part(span)

    with pytest.raises(KeyboardInterrupt):
        build(killed)
    assert not OUT.exists()
    assert asked == [range(4), range(4, 8), range(8, 10)]
    asked.clear()

    def again(span: range) -> pa.RecordBatch:
        asked.append(span)
        return make_part(span)

    build(again)
    assert asked == [range(8, 10)]
    assert file_sha256(OUT) == whole


def test_another_record_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(span: range) -> pa.RecordBatch:
        if span.start:
            raise KeyboardInterrupt
        return make_part(span)

    with pytest.raises(KeyboardInterrupt):
        build(killed)
    asked: list[range] = []

    def other(span: range) -> pa.RecordBatch:
        asked.append(span)
        return make_part(span)

    build_arrow(OUT, "latents", 10, other, {**RECORD, "params": {"seed": 1}}, part_rows=4)
    assert asked[0] == range(4)


def test_part_rows_change_the_batches_and_no_row() -> None:
    build(part_rows=4)
    small = list(ArrowFile(OUT, "latents").rows())
    digest = file_sha256(OUT)
    build(part_rows=10)
    assert list(ArrowFile(OUT, "latents").rows()) == small
    assert file_sha256(OUT) != digest  # a part is a record batch of the file


def test_rows_may_be_left_out_with_a_note() -> None:
    def part(span: range) -> pa.RecordBatch:
        kept = [i for i in span if i != 5]
        batch = make_part(range(kept[0], kept[0] + 1))
        batch = pa.concat_batches([make_part(range(i, i + 1)) for i in kept])
        notes = ["left out i5"] if 5 in span else []
        return batch.replace_schema_metadata({"vap.notes": canonical(notes)})

    build(part)
    file = ArrowFile(OUT, "latents")
    assert len(file) == 9
    assert file.metadata["notes"] == ["left out i5"]
    # a row is found although the batches differ in size
    assert [file.value("id", row) for row in range(9)] == file.column("id")


def test_a_row_is_read_in_place() -> None:
    build()
    file = ArrowFile(OUT, "latents")
    for row in (0, 3, 4, 9):
        view = file.array("moments", row)
        np.testing.assert_array_equal(view, np.full(4, row))
        assert not view.flags.owndata
    assert [r["id"] for r in file.rows(["id"])] == file.column("id")


def test_no_rows_at_all_is_a_file() -> None:
    build_arrow(OUT, "latents", 0, make_part, RECORD)
    assert len(ArrowFile(OUT, "latents")) == 0


def test_a_truncated_file_is_one_line() -> None:
    build()
    whole = OUT.read_bytes()
    for cut in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        OUT.write_bytes(whole[:cut])
        with pytest.raises(VapError) as caught:
            ArrowFile(OUT, "latents")
        assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_one_line_or_harmless() -> None:
    build()
    whole = OUT.read_bytes()
    rng = random.Random(0)
    for i in range(60):
        damaged, file = bytearray(whole), Path(f"damaged{i}.arrow")
        damaged[rng.randrange(len(whole) - 400, len(whole))] ^= 1 << rng.randrange(8)  # the footer
        file.write_bytes(damaged)
        with contextlib.suppress(VapError):
            ArrowFile(file, "latents")


# ── provenance ──────────────────────────────────────────────────────────────────────────────────


def test_provenance_follows_content_not_time_or_place() -> None:
    Path("a").write_text("one")

    def record() -> dict[str, Any]:
        return provenance("latents", ("own",), {"seed": 0}, {"input": Path("a")}, ("numpy",))

    first = record()
    time.sleep(0.01)
    Path("a").write_text("one")
    os.utime("a", (1, 1))
    assert record() == first
    Path("a").write_text("two")
    assert record() != first
    assert first["inputs"]["input"]["path"] == "a"
    assert first["libraries"] == {"numpy": np.__version__}


def test_sha256_of_a_folder_sees_names_and_contents() -> None:
    Path("f/g").mkdir(parents=True)
    Path("f/g/x").write_text("1")
    first = file_sha256(Path("f"))
    Path("f/g/x").rename("f/g/y")
    second = file_sha256(Path("f"))
    Path("f/g/y").write_text("2")
    assert len({first, second, file_sha256(Path("f"))}) == 3


def test_code_of_a_stage_is_in_its_record() -> None:
    Path("a").touch()
    inputs = {"input": Path("a")}
    codes = {provenance(s, (), {}, inputs, ())["code"] for s in ("latents", "caption", "prepare")}
    assert len(codes) == 3


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; only root can mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # the test may stand in it


def large_part(span: range) -> pa.RecordBatch:
    rows = [{"id": f"i{i}", "moments": np.zeros(50_000, np.float32)} for i in span]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["latents"])


def refused(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """The lines on standard error of `vap prepare`, whose stage is `run` and fails."""
    monkeypatch.setattr("vap.datasets.prepare.run", run)
    monkeypatch.setattr(cli, "_params", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["vap", "prepare", "own"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_a_full_disk_is_one_line_and_keeps_the_finished_parts(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(small_disk)

    def run(*_: object) -> None:
        build(large_part)

    lines = refused(run, monkeypatch, capsys)
    assert "No space left on device" in lines[-1]
    assert "finished parts are kept" in lines[-1]
    assert not list(small_disk.rglob("*.part"))
    assert not OUT.exists()
    assert [p.name for p in small_disk.rglob("*.arrow")] == ["000000000000.arrow"]


def test_a_full_disk_at_a_checkpoint_is_one_line(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from vap.training import checkpoint

    def run(*_: object) -> None:
        checkpoint.save(small_disk / "c", 1, {"model": {"w": torch.zeros(10**6)}}, {})

    assert "No space left on device" in refused(run, monkeypatch, capsys)[-1]
    assert not leftovers(small_disk / "c")


def test_a_full_disk_during_the_final_write_keeps_the_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target) == OUT:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(artifacts.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        build()
    monkeypatch.setattr(artifacts.os, "replace", replace)
    assert not leftovers(OUT.parent)

    def unneeded(span: range) -> pa.RecordBatch:
        raise AssertionError(f"{span} was done before")

    build(unneeded)
    assert len(ArrowFile(OUT, "latents")) == 10


def test_readers_see_the_old_or_the_new_file_never_a_part() -> None:
    write_json(Path("x.json"), ["old"] * 1000)
    seen: set[str] = set()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(file_sha256(Path("x.json")))

    reader = threading.Thread(target=read)
    reader.start()
    old = file_sha256(Path("x.json"))
    for _ in range(20):
        write_json(Path("x.json"), ["new"] * 1000)
    stop.set()
    reader.join()
    assert seen <= {old, file_sha256(Path("x.json"))}
