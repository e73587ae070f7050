"""encode: descriptions to the class-specific prompt bank (CSPB), each distinct text once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vap.common.artifacts import SCHEMAS, ArrowFile, build_arrow, canonical, provenance
from vap.common.errors import VapError, tell
from vap.common.places import bank_path, captions_path, prepared_path, set_up_torch
from vap.params import EncodeParams, Params
from vap.prompts.encoders import TextEncoder, load_encoder
from vap.prompts.states import Packed, StateError, pack

PART_TEXTS = 256
LIBRARIES = ("numpy", "pyarrow", "tokenizers", "torch", "transformers")
MEASURE = "max over tokens of max |error| / max |state|; rms of all errors / rms of all states"


def run(params: Params, dataset: str) -> Path:
    """Write data/prompts/{dataset}.arrow: the null prompt in row 0, then the texts by class.

    Row 0 also names the images that have no description (t_mix null), which get the null prompt. The texts
    are held in memory, the token states only of one part. The metadata holds `encoder`, `revision` (of its
    weights), `pooled` (what the pooled vector is), `width`, `pooled_width`, `max_tokens`, `dtype`, `error`
    (of the dtype, measured on all states), `undescribed` (images), `cut` (texts of more than `max_tokens`,
    whose end the states do not see), `longest` (tokens of a text before it was cut) and `classes`.

    Raises:
        VapError: an image is missing from the captions, or the encoder cannot be loaded.
    """
    device = set_up_torch(params.compute)
    settings = params.encode
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    texts = _texts(prepared, captions_path(dataset))
    if undescribed := len(texts[0]["ids"]):
        tell(
            f"encode {dataset}: {undescribed} of {len(prepared)} images have no description; "
            "they get the null prompt"
        )
    encoder = load_encoder(settings.encoder, settings.max_tokens, device)
    record = provenance(
        "encode",
        (dataset,),
        params={"encode": settings.model_dump()},
        inputs={
            "prepared": prepared.path,
            "captions": captions_path(dataset),
            **encoder.place.inputs(),
        },
        libraries=LIBRARIES + (("open-clip-torch",) if encoder.place.kind == "open_clip" else ()),
    )
    for name in encoder.place.inputs():
        record["inputs"][name]["path"] = settings.encoder  # not where this machine keeps it
    sizes = {"width": encoder.width, "pooled_width": len(encoder.encode([""])[0].pooled)}

    def make_part(rows: range) -> pa.RecordBatch:
        return _part(texts[rows.start : rows.stop], encoder, settings)

    def metadata(parts: list[Any]) -> dict[str, Any]:
        error = StateError.of(StateError(**part["error"]) for part in parts)
        cut, longest = sum(part["cut"] for part in parts), max(part["longest"] for part in parts)
        if cut:
            tell(
                f"encode {dataset}: {cut} of {len(texts) - 1} descriptions are longer than "
                f"encode.max_tokens: {settings.max_tokens}, the longest has {longest} tokens; their ends "
                "are cut off"
            )
        return {
            "encoder": settings.encoder,
            "revision": encoder.revision,
            "pooled": encoder.pooled,
            **sizes,
            "max_tokens": settings.max_tokens,
            "dtype": settings.dtype,
            "error": {**error.summary(), "of": MEASURE},
            "undescribed": undescribed,
            "cut": cut,
            "longest": longest,
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


def _part(entries: list[dict[str, Any]], encoder: TextEncoder, settings: EncodeParams) -> pa.RecordBatch:
    """The bank's rows of some texts; what storing and cutting cost them is in the batch's metadata."""
    packed: list[Packed] = []
    pooled, whole = [], []
    for start in range(0, len(entries), settings.batch_size):
        texts = [entry["text"] for entry in entries[start : start + settings.batch_size]]
        for encoded in encoder.encode(texts):
            packed.append(pack(encoded.tokens, settings.dtype))
            pooled.append(encoded.pooled.astype(np.float16))
            whole.append(encoded.whole)
    columns: dict[str, Any] = {
        "tokens": [states.data for states in packed],
        "scales": [states.scales for states in packed],
        "pooled": pooled,
    }
    for name in ("text", "ids", "labels", "splits"):
        columns[name] = [entry[name] for entry in entries]
    told = {
        "error": asdict(StateError.of(states.error for states in packed)),
        "cut": sum(tokens > settings.max_tokens for tokens in whole),
        "longest": max(whole),
    }
    schema = SCHEMAS["bank"]
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema.with_metadata({"vap.part": canonical(told)}))


def _captions(path: Path) -> Iterator[tuple[str, str | None]]:
    """(image id, description) of the captions, a batch in memory at a time.

    Raises:
        VapError: no such file, or no captions in it.
    """
    if not path.exists():
        raise VapError(path, "no such file", "the descriptions", "run the caption stage")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "t_mix"]):
                yield from zip(batch["id"].to_pylist(), batch["t_mix"].to_pylist(), strict=True)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise VapError(
            path, f"no readable captions ({error})", "the caption stage's Parquet", "caption again"
        ) from None


def _texts(prepared: ArrowFile, captions: Path) -> list[dict[str, Any]]:
    """Distinct descriptions with the images, classes and splits that share them.

    The null prompt comes first, with the images that have no description; then class by class (a text of
    several classes with its first), by text.

    Raises:
        VapError: an image is missing from the captions.
    """
    distinct: dict[str, str] = {}
    text_of = {image: distinct.setdefault(text or "", text or "") for image, text in _captions(captions)}
    order = {name: i for i, name in enumerate(prepared.metadata["classes"])}
    null: dict[str, Any] = {"text": "", "ids": [], "labels": [], "splits": []}
    entries: dict[str, dict[str, Any]] = {"": null}
    for row in prepared.rows(["id", "label", "split"]):
        if row["id"] not in text_of:
            raise VapError(captions, f"no row of image {row['id']}", "one an image", "caption again")
        text = text_of[row["id"]]
        entry = entries.setdefault(text, {"text": text, "ids": [], "labels": [], "splits": []})
        entry["ids"].append(row["id"])
        entry["labels"].append(row["label"])
        entry["splits"].append(row["split"])
    del entries[""]
    first = {text: int(np.min([order[label] for label in e["labels"]])) for text, e in entries.items()}
    return [null, *sorted(entries.values(), key=lambda e: (first[e["text"]], e["text"]))]
