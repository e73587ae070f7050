"""First impressions of 200 images: the caption stage's client against that of `vllm bench serve`, with the
same requests, concurrency and server, where `make test-vllm` has installed one. Elsewhere: against threads
with http.client, on the measured describer.

The two take turns, after a pass of each that fills the prefix cache; the total times are compared, because a
machine that others use is not equally fast in all turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Result, sized

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "tests" / "vllm"))

IMAGES, CONCURRENCY, TOKENS, TURNS = sized(200, 8), 8, 24, sized(6, 1)


def run() -> Result:
    import kit

    from vap.captioning.server import serving
    from vap.params import load

    why = kit.missing()
    own: dict[str, Any] = {"server": "measured", "model": "measured-describer"}
    if not why:
        engine = {"command": str(kit.COMMAND), "model": str(kit.MODEL), "dtype": "float32", "args": kit.ARGS}
        base = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))["caption"]["vllm"]
        vllm = {**base, **engine, "max_model_len": kit.CONTEXT, "env": kit.ENV}
        own = {"server": "vllm", "model": kit.NAME, "vllm": vllm}
    else:
        print(f"caption_client: without vLLM: {why}", file=sys.stderr)
    own |= {"steps": "impression", "max_tokens": TOKENS, "concurrency": CONCURRENCY}
    with tempfile.TemporaryDirectory() as name:
        folder = kit.lay_out(Path(name), IMAGES, **own)
        settings = load(folder / "params.yaml").caption
        prepare_requests(folder)
        with serving(settings, folder / "vllm.log") as served, ExitStack() as stack:
            client = (
                by_threads(folder, settings, served) if why else stack.enter_context(by_vllm(folder, served))
            )
            turns = [(ours(folder, settings, served), client()) for _ in range(TURNS + 1)][1:]
    mine, theirs = (sum(times) for times in zip(*turns, strict=True))
    requests = IMAGES * TURNS
    return Result(requests / mine, requests / theirs, "req/s")


def prepare_requests(folder: Path) -> None:
    """The content of each request, as replay.py reads it."""
    from vap.captioning.questions import load_questions
    from vap.common.artifacts import ArrowFile

    ask = load_questions("dermoscopy", 1)
    prepared = ArrowFile(folder / "data/prepared/own.arrow", "prepared")
    with (folder / "requests.jsonl").open("w", encoding="utf-8") as file:
        for row in range(IMAGES):
            (message,) = ask.impression(prepared.value("image", row))
            file.write(json.dumps({"content": message["content"]}) + "\n")


def ours(folder: Path, settings: Any, served: Any) -> float:
    """Seconds of all requests, journal included."""
    from vap.captioning.ask import ask_all
    from vap.captioning.journal import Journal
    from vap.captioning.questions import load_questions
    from vap.common.artifacts import ArrowFile

    ask = load_questions("dermoscopy", 1)
    prepared = ArrowFile(folder / "data/prepared/own.arrow", "prepared")
    path = folder / "answers.jsonl"
    path.unlink(missing_ok=True)
    with Journal(path, IMAGES) as journal:
        start = time.perf_counter()
        asyncio.run(ask_all(settings, 0, served, ask, prepared, journal))
        return time.perf_counter() - start


@contextmanager
def by_vllm(folder: Path, served: Any) -> Iterator[Callable[[], float]]:
    """A function that sends all requests with vLLM's client, in a process of its own; gives the seconds."""
    import kit

    python, script = kit.COMMAND.with_name("python"), PROJECT / "tests/vllm/replay.py"
    words = [served.urls[0], kit.NAME, TOKENS, CONCURRENCY, folder / "requests.jsonl"]
    process = subprocess.Popen(
        [str(python), str(script), *map(str, words)],
        env={**os.environ, **kit.ENV},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    to, answers = process.stdin, process.stdout
    assert any(line == "ready\n" for line in answers)

    def send() -> float:
        to.write("\n")
        to.flush()
        return float(answers.readline())

    yield send
    to.close()
    process.wait()


def by_threads(folder: Path, settings: Any, served: Any) -> Callable[[], float]:
    """A function that sends all requests from threads that do nothing else, and gives the seconds."""
    host = served.urls[0].split("/")[2]
    lines = (folder / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    base = {"model": settings.model, "max_tokens": TOKENS, "temperature": 0.0, "seed": 0}

    def work(part: list[str]) -> None:
        connection = HTTPConnection(host)
        for line in part:
            body = {**base, "messages": [{"role": "user", **json.loads(line)}]}
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            assert connection.getresponse().read()
        connection.close()

    def send() -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            list(pool.map(work, [lines[i::CONCURRENCY] for i in range(CONCURRENCY)]))
        return time.perf_counter() - start

    return send
