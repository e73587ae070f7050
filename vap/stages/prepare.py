"""prepare: data/raw/NAME to data/prepared/NAME.arrow, every image at the working resolution."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from vap.artifacts import SCHEMAS, ArrowFile, atomic, build_arrow, canonical, provenance
from vap.datasets import images
from vap.datasets.base import SPLITS, Item, Source, open_source, require_training
from vap.datasets.split import subset
from vap.errors import VapError
from vap.params import Params, PrepareParams

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
PART_ROWS = 256  # images between two points of resumption ...
PART_PIXELS = 2**24  # ... and pixels at most, whatever image_size is

Counts = dict[str, dict[str, int]]


def run(params: Params, dataset: str) -> Path:
    """Write data/prepared/{dataset}.arrow: train, then val, then test, each by id.

    The schema's metadata holds `classes` (canonical order), `modality`, `counts` (split to class to
    images) and `notes` (the files left out under prepare.on_error: skip). A run that was stopped
    goes on where it was; memory use does not grow with the dataset.

    Raises:
        VapError: the dataset is unknown, absent or wrong, or an image is unreadable.
    """
    if dataset not in params.dataset:
        known = ", ".join(params.dataset)
        raise VapError("dataset", repr(dataset), f"one of {known}", "add it to params.yaml")
    settings, prepare = params.dataset[dataset], params.prepare
    root, path = RAW / dataset, PREPARED / f"{dataset}.arrow"
    source = open_source(settings.adapter, root, prepare, params.seed)
    if source.modality not in (None, settings.modality):
        where = f"params.yaml: dataset.{dataset}.modality"
        fix = "correct one of the two"
        raise VapError(where, settings.modality, f"{source.modality}, as in {root}", fix)
    items = subset(source.items, prepare.max_train, prepare.max_test, params.seed)
    record = provenance(
        "prepare",
        (dataset,),
        params={
            "seed": params.seed,
            "prepare": prepare.model_dump(),
            "dataset": settings.model_dump(),
        },
        inputs=source.inputs,
        libraries=("numpy", "pillow", "pyarrow"),
    )
    # loose files are no inputs, but a changed list of them must not go on from another's parts
    record["listing"] = listing_digest(items)

    def make_part(span: range) -> pa.RecordBatch:
        return _batch(source, items[span.start : span.stop], prepare)

    with atomic(path) as part:
        build_arrow(
            part,
            "prepared",
            len(items),
            make_part,
            record,
            part_rows=max(1, min(PART_ROWS, PART_PIXELS // prepare.image_size**2)),
            metadata={
                "classes": source.classes,
                "modality": settings.modality,
                "counts": count([(item.split, item.label) for item in items], source.classes),
            },
        )
        _account_for_skipped(part, root, source.classes)
    return path


def count(rows: Sequence[tuple[str, str]], classes: Sequence[str]) -> Counts:
    """Split to class to number of images, of (split, label) pairs; no split without images."""
    found = Counter(rows)
    table = {split: {label: found[split, label] for label in classes} for split in SPLITS}
    return {split: counts for split, counts in table.items() if sum(counts.values())}


def listing_digest(items: Sequence[Item]) -> str:
    """sha256 over what is known of the items before they are read: names, labels, file sizes."""
    digest = hashlib.sha256()
    for item in items:
        try:
            size = item.source.stat().st_size if item.source else 0
        except OSError:
            size = -1  # a broken link: told when it is read
        row = (item.id, item.label, item.split, item.group, size)
        digest.update(f"{canonical(row)}\n".encode())
    return digest.hexdigest()


def _batch(source: Source, items: Sequence[Item], prepare: PrepareParams) -> pa.RecordBatch:
    rows: list[dict[str, str | bytes | None]] = []
    notes: list[str] = []
    for item in items:
        try:
            raw = source.load(item)
        except images.UnreadableImage as error:
            if prepare.on_error == "stop":
                raise
            notes.append(f"left out {item.id}: {error.where}: {error.found}")
            continue
        rows.append(
            {
                "id": item.id,
                "label": item.label,
                "split": item.split,
                "group": item.group,
                "sha256": raw.sha256,
                "image": images.encode(images.fit(raw.pixels, prepare.image_size, prepare.fit)),
                "attributes": None if raw.attributes is None else canonical(raw.attributes),
            }
        )
    schema = SCHEMAS["prepared"].with_metadata({"vap.notes": json.dumps(notes)})
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _account_for_skipped(path: Path, root: Path, classes: Sequence[str]) -> None:
    """Correct the counts of a file that lacks some of its listed images, and say so.

    Raises:
        VapError: a class has lost all its training images.
    """
    file = ArrowFile(path, "prepared")
    if not (notes := file.metadata["notes"]):
        return
    print(f"{root}: {len(notes)} unreadable images left out; the first: {notes[0]}", file=sys.stderr)
    rows = list(zip(file.column("split"), file.column("label"), strict=True))
    require_training(root, rows, classes)
    with atomic(path) as part, pa.memory_map(str(path)) as mapped:
        reader = pa.ipc.open_file(mapped)
        counts = canonical(count(rows, classes))
        schema = reader.schema.with_metadata({**reader.schema.metadata, b"vap.counts": counts})
        with pa.ipc.new_file(part, schema) as writer:
            for i in range(reader.num_record_batches):
                columns = reader.get_batch(i).columns
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
