"""encode: descriptions to the class-specific prompt bank (CSPB), each distinct text once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vap.artifacts import SCHEMAS, ArrowFile, build_arrow, provenance
from vap.errors import VapError
from vap.params import Params
from vap.prompts.encoders import TextEncoder, encoder_folder
from vap.stages.common import bank_path, captions_path, prepared_path, set_up_torch

PART_TEXTS = 512


def run(params: Params, dataset: str) -> Path:
    """Write data/prompts/{dataset}.arrow: the null prompt in row 0, then the texts by class.

    The metadata holds `encoder`, `revision` (of its weights), `width`, `max_tokens` and `classes`.

    Raises:
        VapError: an image has no description, or the encoder cannot be loaded.
    """
    device = set_up_torch(params.compute)
    settings = params.encode
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    texts = _texts(prepared, captions_path(dataset))
    encoder = TextEncoder(settings.encoder, settings.max_tokens, device)
    record = provenance(
        "encode",
        (dataset,),
        params={"encode": settings.model_dump()},
        inputs={
            "prepared": prepared.path,
            "captions": captions_path(dataset),
            "encoder": encoder_folder(settings.encoder),
        },
        libraries=("numpy", "pyarrow", "tokenizers", "torch", "transformers"),
    )
    record["inputs"]["encoder"]["path"] = settings.encoder  # not where this machine keeps it
    schema = SCHEMAS["bank"]

    def make_part(rows: range) -> pa.RecordBatch:
        chosen = texts[rows.start : rows.stop]
        tokens, pooled = [], []
        for start in range(0, len(chosen), settings.batch_size):
            batch = chosen[start : start + settings.batch_size]
            for encoded in encoder.encode([entry["text"] for entry in batch]):
                tokens.append(encoded.tokens.reshape(-1))
                pooled.append(encoded.pooled)
        columns: dict[str, Any] = {"tokens": tokens, "pooled": pooled}
        for name in ("text", "ids", "labels", "splits"):
            columns[name] = [entry[name] for entry in chosen]
        arrays = [pa.array(columns[field.name], field.type) for field in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    metadata = {
        "encoder": settings.encoder,
        "revision": encoder.revision,
        "width": encoder.width,
        "max_tokens": settings.max_tokens,
        "classes": prepared.metadata["classes"],
    }
    build_arrow(
        bank_path(dataset),
        "bank",
        len(texts),
        make_part,
        record,
        part_rows=PART_TEXTS,
        unit="text",
        metadata=metadata,
    )
    return bank_path(dataset)


def _texts(prepared: ArrowFile, captions: Path) -> list[dict[str, Any]]:
    """Distinct descriptions with the images, classes and splits that share them.

    The null prompt comes first, then class by class (a text of several classes with its first), by text.
    """
    if not captions.exists():
        raise VapError(captions, "no such file", "the descriptions", "run the caption stage")
    try:
        table = pq.read_table(captions, columns=["id", "t_mix"])
    except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
        raise VapError(
            captions, f"no readable captions ({error})", "the caption stage's Parquet", "caption again"
        ) from None
    text_of = dict(zip(table["id"].to_pylist(), table["t_mix"].to_pylist(), strict=True))
    order = {name: i for i, name in enumerate(prepared.metadata["classes"])}
    entries: dict[str, dict[str, Any]] = {}
    for row in prepared.rows(["id", "label", "split"]):
        text = text_of.get(row["id"])
        if not text:
            raise VapError(captions, f"no description of image {row['id']}", "one an image", "caption again")
        entry = entries.setdefault(text, {"text": text, "ids": [], "labels": [], "splits": []})
        entry["ids"].append(row["id"])
        entry["labels"].append(row["label"])
        entry["splits"].append(row["split"])
    first = {text: int(np.min([order[label] for label in e["labels"]])) for text, e in entries.items()}
    ordered = sorted(entries.values(), key=lambda e: (first[e["text"]], e["text"]))
    return [{"text": "", "ids": [], "labels": [], "splits": []}, *ordered]
