"""prepare: data/raw/NAME to data/prepared/NAME.arrow, every image at the working resolution.

The images are read, fitted and encoded in as many threads as there are processors: Pillow releases the
interpreter's lock for all three. What is written does not depend on how many.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from PIL import Image

from vap.common.artifacts import SCHEMAS, ArrowFile, atomic, build_arrow, canonical, provenance
from vap.common.errors import VapError, tell
from vap.datasets import archives, images
from vap.datasets.ahead import Ahead
from vap.datasets.base import SPLITS, Item, RawImage, Source, open_source, require_training
from vap.datasets.borders import content_box
from vap.datasets.split import subset
from vap.params import Params, PrepareParams

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
PART_ROWS = 256  # images between two points of resumption ...
PART_PIXELS = 2**24  # ... and pixels at most, whatever image_size is

Counts = dict[str, dict[str, int]]
Row = dict[str, str | bytes | None]


def run(params: Params, dataset: str) -> Path:
    """Write data/prepared/{dataset}.arrow: train, then val, then test, each by id.

    The schema's metadata holds `classes` (canonical order), `modality`, `counts` (split to class to
    images) and `notes` (what is left out under prepare.on_error: skip). A run that was stopped goes
    on where it was; memory use does not grow with the dataset.

    Raises:
        VapError: the dataset is unknown, absent or wrong, or an image is unreadable.
    """
    if dataset not in params.dataset:
        known = ", ".join(params.dataset)
        raise VapError("dataset", repr(dataset), f"one of {known}", "add it to params.yaml")
    settings, prepare = params.dataset[dataset], params.prepare
    root, path = RAW / dataset, PREPARED / f"{dataset}.arrow"
    source = open_source(settings, root, prepare, params.seed)
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

    for note in source.left_out.notes:
        tell(f"{root}: {note}")

    # a phantom is drawn under the interpreter's lock, where a second thread is only in the way
    workers = None if any(item.source for item in items) else 1
    with Ahead(items, lambda item: _row(source, item, prepare), workers) as rows, atomic(path) as part:

        def make_part(span: range) -> pa.RecordBatch:
            return _batch(rows, span, source.left_out.notes if span.start == 0 else [])

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
        _account_for_skipped(part, root, source.classes, len(items))
        _tell_untested(part, root)
    archives.discard(root)
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
        size = archives.size_of(item.source) if item.source else 0
        row = (item.id, item.label, item.split, item.group, size)
        digest.update(f"{canonical(row)}\n".encode())
    return digest.hexdigest()


def _row(source: Source, item: Item, prepare: PrepareParams) -> Row | str:
    """The row of an image, or the note of why it is left out."""
    # a border is looked for in the whole image; else a JPEG need not be decoded larger than is of use
    at_least = 0 if prepare.crop_borders else images.GAP * prepare.image_size
    try:
        raw = source.load(item, at_least)
    except images.UnreadableImage as error:
        if prepare.on_error == "stop":
            raise
        return f"left out {item.id}: {error.where}: {error.found}"
    return {
        "id": item.id,
        "label": item.label,
        "split": item.split,
        "group": item.group,
        "sha256": raw.sha256,
        "image": images.encode_image(_fitted(raw, prepare), prepare.storage),
        "attributes": None if raw.attributes is None else canonical(raw.attributes),
    }


def _fitted(raw: RawImage, prepare: PrepareParams) -> Image.Image:
    image = raw.image
    if prepare.crop_borders:
        image = image.crop(content_box(image))
    return images.fit_image(image, prepare.image_size, prepare.fit)


def _batch(ahead: Ahead[Item, Row | str], span: range, notes: Sequence[str]) -> pa.RecordBatch:
    found = ahead.take(span)
    rows = [row for row in found if not isinstance(row, str)]
    told = [*notes, *(row for row in found if isinstance(row, str))]
    schema = SCHEMAS["prepared"].with_metadata({"vap.notes": json.dumps(told)})
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def _tell_untested(path: Path, root: Path) -> None:
    """Name the classes without test images, before anything is trained."""
    metadata = ArrowFile(path, "prepared").metadata
    tested = metadata["counts"].get("test", {})
    if untested := [label for label in metadata["classes"] if not tested.get(label)]:
        tell(
            f"{root}: no test image of {', '.join(untested)}: these classes have no unseen descriptions "
            "(Table 2) and no scores (Table 3); move some to the test split, or raise prepare.test_fraction"
        )


def _account_for_skipped(path: Path, root: Path, classes: Sequence[str], listed: int) -> None:
    """Correct the counts of a file that lacks some of its listed images, and say so.

    Raises:
        VapError: a class has lost all its training images.
    """
    file = ArrowFile(path, "prepared")
    if not (missing := listed - len(file)):
        return
    first = file.metadata["notes"][-missing]
    tell(f"{root}: {missing} unreadable images left out; the first: {first}")
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
