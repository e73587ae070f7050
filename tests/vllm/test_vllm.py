"""The caption stage with a real vLLM: whole, killed and killed again, its server killed under it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import kit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vap.common.artifacts import file_sha256

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(bool(kit.missing()), reason=kit.missing())]

IMAGES = 200
BLOCK = 32  # tokens that the prefix cache keeps together
OUT = "data/captions/own.parquet"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = kit.Server(port, tmp_path_factory.mktemp("server") / "vllm.log")
    try:
        running.start()
        yield running
    finally:
        running.kill()


def caption(folder: Path) -> str:
    """Run the stage to its end; what it said."""
    assert kit.caption(folder).wait() == 0, said(folder)
    return said(folder)


def said(folder: Path) -> str:
    return (folder / "caption.log").read_text(encoding="utf-8")[-3000:]


def kill(process: Any) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def whole(server: kit.Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose stage ran without interruption."""
    folder = kit.lay_out(tmp_path_factory.mktemp("whole"), IMAGES, server=server.url)
    caption(folder)
    return folder


def test_every_image_has_a_description(whole: Path) -> None:
    rows = pq.read_table(whole / OUT).to_pylist()
    assert [row["id"] for row in rows] == [f"i{i:04d}" for i in range(IMAGES)]
    assert all(row["t1"] and row["t2"] and row["t_mix"] and row["error"] is None for row in rows)
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert len({row["t_mix"] for row in rows}) > IMAGES / 2  # it looks at the image


def metric(server: kit.Server, name: str) -> float:
    text = httpx.get(f"{server.root}/metrics", trust_env=False).text
    return sum(float(value) for value in re.findall(rf"^vllm:{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_step_3_finds_step_1_in_the_prefix_cache(server: kit.Server, tmp_path: Path) -> None:
    names = "prefix_cache_queries_total", "prefix_cache_hits_total"
    folder = kit.lay_out(tmp_path, 10, skip=IMAGES, server=server.url)  # images new to the server
    before = [metric(server, name) for name in names]
    caption(folder)
    asked, hit = (metric(server, name) - old for name, old in zip(names, before, strict=True))
    assert asked > 0
    assert hit >= 10 * BLOCK  # of each image at least the block with the image itself


def test_kill_9_loses_at_most_what_is_in_flight(server: kit.Server, whole: Path, tmp_path: Path) -> None:
    folder = kit.lay_out(tmp_path, IMAGES, server=server.url)
    for entries in (60, 150):  # the stage is killed twice ...
        process = kit.caption(folder)
        kit.wait_for(folder, entries, process)
        kill(process)
    process = kit.caption(folder)
    kit.wait_for(folder, 250, process)
    server.kill()  # ... and its server once
    assert process.wait(timeout=180) == 2
    line = said(folder).splitlines()[-1]
    assert line.startswith(f"error: {server.url}: found ClientConnectorError")
    assert "nothing is lost" in line
    kept = kit.answers(folder)
    assert kept >= 250
    server.start()
    process = kit.caption(folder)
    journal = next((folder / "work/caption").glob("*/answers.jsonl"))
    kit.wait_for(folder, min(kept + 100, 2 * IMAGES - 20), process)
    entries = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    places = [(entry.get("row"), entry.get("step")) for entry in entries]
    assert len(places) == len(set(places)), "asked twice"
    assert process.wait() == 0, said(folder)
    assert file_sha256(folder / OUT) == file_sha256(whole / OUT)


def test_an_image_that_the_server_refuses_is_recorded(server: kit.Server, tmp_path: Path) -> None:
    folder = kit.lay_out(tmp_path, 4, server=server.url)
    path = folder / "data/prepared/own.arrow"
    with pa.OSFile(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    images = table["image"].to_pylist()
    images[1], images[2] = images[1][:-200], b"no image"
    table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(images, pa.binary()))
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    caption(folder)
    rows = pq.read_table(folder / OUT).to_pylist()
    assert [row["t_mix"] is None for row in rows] == [False, True, True, False]
    assert all(row["error"].startswith("question 1: HTTP 400") for row in rows[1:3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_tokens": kit.CONTEXT}, f"found a context of {kit.CONTEXT} tokens"),
        ({"model": "gpt"}, "HTTP 404"),
    ],
)
def test_what_cannot_work_ends_at_once(
    server: kit.Server, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = kit.lay_out(tmp_path, 4, server=server.url, **changes)
    assert kit.caption(folder).wait(timeout=60) == 2
    line = said(folder).splitlines()[-1]
    assert line.startswith("error: ")
    assert words in line


# ── a server that the stage starts itself ───────────────────────────────────────────────────────


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def gone(pids: list[int]) -> bool:
    """Whether none of the processes is there; waits for it."""
    end = time.monotonic() + 30
    while any(running(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_server_of_the_stage_ends_with_it_and_is_started_again(whole: Path, tmp_path: Path) -> None:
    with (whole / "params.yaml").open() as file:
        import yaml

        base = yaml.safe_load(file)["caption"]["vllm"]
    engine = {"command": str(kit.COMMAND), "model": str(kit.MODEL), "dtype": "float32", "args": kit.ARGS}
    vllm = {**base, **engine, "max_model_len": kit.CONTEXT, "env": kit.ENV, "start_timeout": kit.START}
    folder = kit.lay_out(tmp_path, IMAGES, server="vllm", vllm=vllm)
    process = kit.caption(folder)
    kit.wait_for(folder, 50, process)
    servers = descendants(process.pid)
    assert len(servers) >= 3  # the guard, the server and its engine
    kill(process)
    assert gone(servers)
    process = kit.caption(folder)
    kit.wait_for(folder, 200, process)
    guard, server, *_ = descendants(process.pid)
    os.killpg(server, signal.SIGKILL)
    assert process.wait(timeout=400) == 0, said(folder)
    assert gone([guard])
    log = said(folder)
    assert "vllm: died" in log
    assert log.count("vllm: ready") >= 2
    table, before = pq.read_table(folder / OUT), pq.read_table(whole / OUT)
    assert table.equals(before)  # the metadata tell that the stage started the server
