"""caption: the three steps of VAPS for every image, asked over HTTP (paper §2.2)."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vap.captioning.ask import ask_all, image_steps
from vap.captioning.journal import Journal
from vap.captioning.questions import load_questions, questions_file, require_server
from vap.captioning.server import serving
from vap.common.artifacts import ArrowFile, atomic, canonical, file_sha256, provenance, work_folder
from vap.common.places import captions_path, prepared_path
from vap.params import CaptionParams, Params

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("t1", pa.string()),  # first impression; null where it was not answered
        ("t2", pa.string()),  # general knowledge; null where it was not asked
        ("t_mix", pa.string()),  # the description; null where the image failed
        ("model", pa.string()),
        ("questions", pa.int32()),  # version
        ("finish_reason", pa.string()),  # of t_mix: stop, or length where it was cut; null where it failed
        ("error", pa.string()),  # why the image has no description; null where it has one
    ]
)
ROW_GROUP = 1024  # images in memory while the Parquet is written
# Where, how many at once, how patiently and with how many losses changes no answer; a resumed run may differ.
ELSEWHERE = {"server", "max_failed", "concurrency", "timeout", "vllm"}
ENGINE = {"revision", "dtype", "max_model_len", "args"}  # what of caption.vllm can change an answer


def run(params: Params, dataset: str) -> Path:
    """Write data/captions/{dataset}.parquet, one row an image in the order of the prepared file.

    Answers are appended to a journal as they come, so that a killed run asks only what is missing; memory
    use does not grow with the dataset but for a few bytes an image.

    Raises:
        VapError: the server cannot be reached or refuses, or too many images failed.
    """
    settings, modality = params.caption, params.dataset[dataset].modality
    questions = load_questions(modality, settings.questions, settings.leave_out)
    require_server(settings.server, dataset, modality)
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    record = provenance(
        "caption",
        (dataset,),
        params={
            "seed": params.seed,
            "caption": settings.model_dump(exclude=ELSEWHERE),
            "modality": modality,
            **_by(settings),
        },
        inputs={"prepared": prepared.path, "questions": questions_file(modality)},
        libraries=("aiohttp", "numpy", "pillow", "pyarrow", "scikit-image", "scipy"),
        modules=["vap.captioning.describer_server"] if settings.server == "measured" else [],
    )
    record["inputs"]["questions"]["path"] = questions_file(modality).name
    with work_folder(record) as work, Journal(work / "answers.jsonl", len(prepared)) as journal:
        too_many = journal.failed > settings.max_failed * len(prepared)
        if too_many or journal.open_rows(image_steps(settings)[-1]):
            try:
                with serving(settings, work / "vllm.log") as served:
                    asyncio.run(ask_all(settings, params.seed, served, questions, prepared, journal))
            except ExceptionGroup as group:  # the workers' errors; one line is enough
                raise _first(group) from None
        _write(captions_path(dataset), settings, prepared, journal, record)
    return captions_path(dataset)


def _by(settings: CaptionParams) -> dict[str, Any]:
    """What kind of server answers; of our own vLLM also the options that change answers."""
    if settings.server != "vllm":
        return {"by": "measured" if settings.server == "measured" else "http"}
    engine: dict[str, Any] = settings.vllm.model_dump(include=ENGINE)
    config = Path(settings.vllm.model or settings.model) / "config.json"
    if config.is_file():  # a local folder: what it holds matters, not where it lies
        weights = sorted(p for p in config.parent.iterdir() if p.suffix in (".safetensors", ".bin"))
        known = {"config": file_sha256(config), "weights": {p.name: _head(p) for p in weights}}
        return {"by": "vllm", "vllm": {**engine, **known}}
    return {"by": "vllm", "vllm": {**engine, "model": settings.vllm.model or settings.model}}


def _head(weights: Path) -> str:
    """Tells files of weights apart without reading them whole: size, beginning and end."""
    size, piece = weights.stat().st_size, 1 << 20
    with weights.open("rb") as file:
        digest = hashlib.sha256(str(size).encode() + file.read(piece))
        file.seek(max(0, size - piece))
        digest.update(file.read())
    return digest.hexdigest()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


def _write(
    path: Path, settings: CaptionParams, prepared: ArrowFile, journal: Journal, record: dict[str, Any]
) -> None:
    """The Parquet, in the order of the prepared file, a row group in memory at a time."""
    schema = SCHEMA.with_metadata({"vap.kind": "captions", "vap.provenance": canonical(record)})
    with atomic(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for start in range(0, len(prepared), ROW_GROUP):
            span = range(start, min(start + ROW_GROUP, len(prepared)))
            rows = [_row(row, settings, prepared, journal) for row in span]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=ROW_GROUP)


def _row(row: int, settings: CaptionParams, prepared: ArrowFile, journal: Journal) -> dict[str, Any]:
    answers = {step: journal.answer(row, step) for step in image_steps(settings)}
    if settings.steps != "impression" and settings.step2 == "shared":
        answers[2] = journal.shared
    error = journal.error(row)
    # with two steps the description is both answers; with one or three it is the last
    joined = (1, 2) if settings.steps == "impression+knowledge" else (max(answers),)
    parts = [answers[step] for step in joined]
    mixed = [part for part in parts if part is not None] if error is None else []
    texts = {step: answer.text for step, answer in answers.items() if answer is not None}
    reasons = [part.finish_reason for part in mixed]
    return {
        "id": prepared.value("id", row),
        "t1": texts.get(1),
        "t2": texts.get(2),
        "t_mix": " ".join(part.text for part in mixed) or None,
        "model": settings.model,
        "questions": settings.questions,
        "finish_reason": ("length" if "length" in reasons else reasons[-1]) if reasons else None,
        "error": error,
    }
