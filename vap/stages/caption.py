"""caption: the three steps of VAPS for every image, asked over HTTP (paper §2.2)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from vap.artifacts import ArrowFile, atomic, canonical, provenance, work_folder
from vap.captioning.client import Answer, ChatClient
from vap.captioning.questions import Questions, load_questions, questions_file
from vap.captioning.server import measured_describer
from vap.errors import VapError
from vap.params import Params
from vap.progress import Progress
from vap.stages.common import captions_path, prepared_path

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("t1", pa.string()),  # first impression
        ("t2", pa.string()),  # general knowledge, one answer for all images
        ("t_mix", pa.string()),  # the description
        ("model", pa.string()),
        ("questions", pa.int32()),  # version
        ("finish_reason", pa.string()),  # of t_mix: stop, or length where it was cut
    ]
)

Done = dict[str, tuple[str, str, str]]  # image id to t1, t_mix, finish_reason


def run(params: Params, dataset: str) -> Path:
    """Write data/captions/{dataset}.parquet, one row an image in the order of the prepared file.

    Answers are appended to a journal as they come, so that a killed run asks only what is missing.

    Raises:
        VapError: the server cannot be reached or refuses.
    """
    settings, modality = params.caption, params.dataset[dataset].modality
    questions = load_questions(modality, settings.questions)
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    record = provenance(
        "caption",
        (dataset,),
        params={
            "seed": params.seed,
            # where, how many at once and how patiently changes no answer; a resumed run may ask elsewhere
            "caption": settings.model_dump(exclude={"server", "concurrency", "timeout"}),
            "by": "measured" if settings.server == "measured" else "http",
            "modality": modality,
        },
        inputs={"prepared": prepared.path, "questions": questions_file(modality)},
        libraries=("httpx", "numpy", "pillow", "pyarrow", "scikit-image", "scipy"),
        modules=["vap.captioning.describer_server"] if settings.server == "measured" else [],
    )
    record["inputs"]["questions"]["path"] = questions_file(modality).name
    with work_folder(record) as work:
        with _server(params) as url:
            try:
                t2, done = asyncio.run(_ask_all(params, url, questions, prepared, work / "answers.jsonl"))
            except* VapError as group:  # the workers' errors come as a group; one line is enough
                raise _first(group) from None
        _write(captions_path(dataset), prepared, t2, done, settings.model, questions.version, record)
    return captions_path(dataset)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@contextlib.contextmanager
def _server(params: Params) -> Iterator[str]:
    """The URL of the server that params.yaml names; the measured describer lives as long as the block."""
    if params.caption.server != "measured":
        yield params.caption.server
        return
    with measured_describer() as url:
        yield url


async def _ask_all(
    params: Params, url: str, questions: Questions, prepared: ArrowFile, journal: Path
) -> tuple[str, Done]:
    """Step 2 once, steps 1 and 3 for every image that the journal lacks."""
    settings = params.caption
    t2, done = _read_journal(journal)
    rows = iter([row for row, image in enumerate(prepared.column("id")) if image not in done])
    client = ChatClient(
        url,
        settings.model,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        concurrency=settings.concurrency,
        timeout=settings.timeout,
        seed=params.seed,
    )
    label = f"caption {journal.parent.name.rsplit('-', 1)[0]}"
    with journal.open("a", encoding="utf-8") as log, Progress(label, len(prepared), "caption") as progress:
        if done:
            progress.skip(len(done))
        async with client, asyncio.TaskGroup() as group:
            if t2 is None:
                t2 = (await client.ask(questions.knowledge())).text
                _append(log, {"t2": t2})
            knowledge = t2

            async def work() -> None:
                for row in rows:  # shared: each worker takes the next image
                    image, png = prepared.value("id", row), prepared.value("image", row)
                    t1 = (await client.ask(questions.impression(png))).text
                    answer: Answer = await client.ask(questions.summary(png, t1, knowledge))
                    done[image] = (t1, answer.text, answer.finish_reason)
                    entry = {"id": image, "t1": t1, "t_mix": answer.text}
                    _append(log, {**entry, "finish_reason": answer.finish_reason})
                    progress.advance(1)

            for _ in range(settings.concurrency):
                group.create_task(work())
    return knowledge, done


def _append(log: TextIO, entry: dict[str, Any]) -> None:
    log.write(json.dumps(entry, ensure_ascii=False) + "\n")
    log.flush()


def _read_journal(journal: Path) -> tuple[str | None, Done]:
    """What an interrupted run had; a torn last line is cut off."""
    t2: str | None = None
    done: Done = {}
    if not journal.exists():
        return t2, done
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(journal, len(whole))
    for line in whole.splitlines():  # of bytes: str would also split at U+2028
        entry = json.loads(line)
        if "t2" in entry:
            t2 = entry["t2"]
        else:
            done[entry["id"]] = (entry["t1"], entry["t_mix"], entry["finish_reason"])
    return t2, done


def _write(
    path: Path,
    prepared: ArrowFile,
    t2: str,
    done: Done,
    model: str,
    version: int,
    record: dict[str, Any],
) -> None:
    ids = prepared.column("id")
    columns = {
        "id": ids,
        "t1": [done[i][0] for i in ids],
        "t2": [t2] * len(ids),
        "t_mix": [done[i][1] for i in ids],
        "model": [model] * len(ids),
        "questions": [version] * len(ids),
        "finish_reason": [done[i][2] for i in ids],
    }
    schema = SCHEMA.with_metadata({"vap.kind": "captions", "vap.provenance": canonical(record)})
    with atomic(path) as part:
        pq.write_table(pa.Table.from_pydict(columns, schema=schema), part, compression="zstd")
