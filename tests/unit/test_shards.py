"""An artefact that several processes make together."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

from vap import artifacts
from vap.artifacts import SCHEMAS, build_arrow

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
def test_processes_share_the_parts_and_make_the_same_file(order: tuple[int, ...]) -> None:
    make(0, 1, [], Path("one.arrow"))
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


def test_only_the_first_process_writes_the_file() -> None:
    made: list[int] = []
    make(1, 2, made, Path("two.arrow"))
    assert made == [5, 15]
    assert not Path("two.arrow").exists()
    make(1, 2, made, Path("two.arrow"))  # started again: its parts are there
    assert made == [5, 15]
