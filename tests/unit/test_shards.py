"""An artefact that several processes make together."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from vap.common import artifacts
from vap.common.artifacts import SCHEMAS, build_arrow

ROWS = 23


def make(rank: int, world: int, made: list[int], path: Path) -> None:
    def part(rows: range) -> pa.RecordBatch:
        made.append(rows.start)
        columns = [
            pa.array(list(rows), pa.int64()),
            pa.array([f"c{i}" for i in rows]),
            pa.array([None] * len(rows), pa.string()),
            pa.array([bytes([i]) for i in rows], pa.binary()),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMAS["samples"])

    record = {"stage": "sample", "item": ["own", "vap", "seen"]}
    place.value = rank, world
    build_arrow(path, "samples", ROWS, part, record, part_rows=5, metadata={"classes": []})


place = threading.local()


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(artifacts, "rank_and_world", lambda: place.value)
    monkeypatch.setattr(artifacts, "PART_POLL", 0.01)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_processes_share_the_parts_and_make_the_same_file(
    order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(0, 1, [], Path("one.arrow"))
    monkeypatch.setenv("MASTER_PORT", "1")
    made: dict[int, list[int]] = {rank: [] for rank in range(3)}
    threads = [
        threading.Thread(target=make, args=(rank, 3, made[rank], Path("three.arrow"))) for rank in order
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert made == {0: [0, 15], 1: [5, 20], 2: [10]}
    assert Path("three.arrow").read_bytes() == Path("one.arrow").read_bytes()
    assert not list(Path("work/sample").iterdir())


def test_a_late_process_finds_its_parts_though_the_first_had_them_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a kill: every part is there, and the first process could join them and be gone."""
    monkeypatch.setenv("MASTER_PORT", "1")
    made: list[int] = []
    killed = threading.Thread(target=make, args=(1, 2, made, Path("two.arrow")), daemon=True)
    killed.start()  # waits for its first process, for ever
    first = threading.Thread(target=make, args=(0, 2, [], Path("two.arrow")))
    first.start()
    for thread in (first, killed):
        thread.join(timeout=20)
        assert not thread.is_alive()
    assert made == [5, 15]
    assert not list(Path("work/sample").iterdir())


def test_a_process_of_another_launch_waits_for_its_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "rank_and_world", lambda: (1, 2))
    record = {"stage": "sample", "item": ["own"]}
    key = hashlib.sha256(artifacts.canonical(record).encode()).hexdigest()[:16]
    folder = Path("work/sample") / f"own-{key}"
    folder.mkdir(parents=True)
    (folder / "launch").write_text("an older port")
    monkeypatch.setenv("MASTER_PORT", "new")
    entered = threading.Event()

    def enter() -> None:
        with artifacts.work_folder(record):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.2)
    (folder / "launch").write_text("new")
    assert entered.wait(10)
    thread.join()
    assert (folder / "left-1").exists()
