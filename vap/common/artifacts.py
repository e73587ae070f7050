"""Every file that crosses a stage: schemas, atomic writes, resumable builds, provenance.

Arrow artefacts are IPC files, uncompressed, so that a memory map reads any row in place. Their schema
metadata holds `vap.kind` and `vap.provenance`, the record of what made the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vap.common.code import STAGES, code_hash
from vap.common.errors import VapError
from vap.common.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
WORK = Path("work")
PART_POLL = 0.2  # seconds between looks at the parts of the other processes
Kind = Literal["prepared", "bank", "latents", "samples"]

SCHEMAS: dict[str, pa.Schema] = {
    "prepared": pa.schema(
        [
            ("id", pa.string()),  # of the image, unique
            ("label", pa.string()),  # class
            ("split", pa.string()),  # train | val | test
            ("group", pa.string()),  # lesion, patient or video: never on two sides of a split
            ("sha256", pa.string()),  # of the raw image file (of the pixels, for a phantom)
            ("image", pa.binary()),  # PNG, RGB, image_size x image_size
            (
                "attributes",
                pa.string(),
            ),  # JSON of a phantom's known attributes; null for real images
        ]
    ),
    "bank": pa.schema(
        [
            ("text", pa.string()),  # a description; the null prompt "" is row 0
            ("tokens", pa.large_binary()),  # n_tokens x width states in vap.dtype, row-major, no padding
            ("scales", pa.list_(pa.float32())),  # n_tokens, of int8: state = int8 x scale; else empty
            ("pooled", pa.list_(pa.float16())),  # vap.pooled_width
            ("ids", pa.list_(pa.string())),  # the images that it describes (row 0: those without a text)
            ("labels", pa.list_(pa.string())),  # ... their classes
            ("splits", pa.list_(pa.string())),  # ... and splits
        ]
    ),
    "latents": pa.schema(
        [
            ("id", pa.string()),
            ("label", pa.string()),
            ("split", pa.string()),
            (
                "moments",
                pa.list_(pa.float32()),
            ),  # 2C x h x w: mean, then log-variance, of f_E, unscaled
        ]
    ),
    "samples": pa.schema(
        [
            ("index", pa.int64()),
            ("label", pa.string()),
            ("text", pa.string()),  # the description it was drawn from; null for class-only methods
            ("image", pa.binary()),  # PNG, RGB
        ]
    ),
}


# ── provenance ──────────────────────────────────────────────────────────────────────────────────────


def canonical(data: Any) -> str:
    """JSON with one spelling for one meaning: sorted keys, no spaces."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def file_sha256(path: Path) -> str:
    """sha256 of a file, or of a folder's relative paths and contents, in order."""
    if path.is_dir():
        digest = hashlib.sha256()
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path).as_posix()}:{file_sha256(child)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(
    stage: str,
    item: Sequence[str],
    params: Mapping[str, Any],
    inputs: Mapping[str, Path],
    libraries: Sequence[str],
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of what makes an artefact; nothing in it depends on the time or the place.

    Args:
        stage, item: e.g. "train", ("phantom-isic2018", "vap").
        params: the keys of params.yaml that the stage reads, with their values.
        inputs: name to file; recorded as sha256 of the content.
        libraries: distributions whose version can change the result.
        modules: modules that the stage loads by name, beside its own imports.
    """
    return {
        "stage": stage,
        "item": list(item),
        "params": dict(params),
        "inputs": {name: {"path": str(path), "sha256": file_sha256(path)} for name, path in inputs.items()},
        "code": code_hash([STAGES[stage], *modules]),
        "libraries": {name: version(name) for name in sorted(libraries)},
    }


# ── atomic writes ───────────────────────────────────────────────────────────────────────────────────


def require_place(path: Path) -> None:
    """Fail before the work is done, not after it, where `path` could not be written.

    Raises:
        OSError: its folder cannot be made, or takes no file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling to write; it replaces `path` when the block ends well, else it goes.

    Works for a file and for a folder (make the folder at the yielded path).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        yield part
        if part.is_file():
            with part.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            shutil.rmtree(path)
        os.replace(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Indented JSON, written atomically."""
    with atomic(path) as part:
        part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """torch tensors to a safetensors file, on the CPU and contiguous.

    Raises:
        OSError: the disk is full (safetensors has an error of its own for that).
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: value.detach().contiguous().cpu() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise


def rank_and_world() -> tuple[int, int]:
    """(number of this process, number of processes) of a command that runs in several together."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def work_folder(record: Mapping[str, Any], keep: bool = False) -> Iterator[Path]:
    """The folder of a run's unfinished state, named by what makes the run; removed when it ends well,
    or kept if `keep`, for a stage that has more to do.

    It lies outside both graphs, because Snakemake and DVC delete a stage's outputs before they run it.
    A second process waits for the first: after a kill the old one may live on for seconds.
    """
    key = hashlib.sha256(canonical(record).encode()).hexdigest()[:16]
    folder = WORK / record["stage"] / "-".join([*record["item"], key])
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = rank_and_world()
    launch, token = folder / "launch", os.environ.get("MASTER_PORT", "")
    if rank:  # the first process holds the lock for all, and keeps the folder until all have left it
        while not launch.exists() or launch.read_text() != token:
            time.sleep(PART_POLL)
        yield folder
        (folder / f"left-{rank}").touch()
        return
    lock = folder.parent / f"{folder.name}.lock"
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        folder.mkdir(parents=True, exist_ok=True)
        for other in range(1, world):
            (folder / f"left-{other}").unlink(missing_ok=True)
        if world > 1:
            with atomic(launch) as part:
                part.write_text(token)
        yield folder
        while not all((folder / f"left-{other}").exists() for other in range(1, world)):
            time.sleep(PART_POLL)
        if not keep:
            shutil.rmtree(folder)
            lock.unlink(missing_ok=True)


# ── Arrow artefacts ─────────────────────────────────────────────────────────────────────────────────


def build_arrow(
    path: Path,
    kind: Kind,
    rows: int,
    make_part: Callable[[range], pa.RecordBatch],
    record: Mapping[str, Any],
    *,
    part_rows: int = 256,
    unit: str = "img",
    metadata: Mapping[str, Any] | Callable[[list[Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Write an Arrow artefact part by part: constant memory, resumed where it was killed.

    Several processes take turns at the parts; the first waits for the others' and joins all, the others
    return when theirs are done.

    Args:
        rows: number of source rows; `make_part` gets consecutive ranges of at most `part_rows`.
        make_part: range of source rows to a batch of SCHEMAS[kind]; it may leave rows out and say so
            in the batch's metadata `vap.notes` (a JSON list of strings).
        record: what `provenance` returned; it also names the work folder.
        metadata: further JSON values for the schema's metadata, under `vap.NAME`; or a function to them of
            what the parts' batches have under `vap.part` in their own metadata, in order.
    """
    label = " ".join([record["stage"], *record["item"]])
    with work_folder(record) as work, Progress(label, rows, unit) as progress:
        parts: list[Path] = []
        notes: list[str] = []
        rank, world = rank_and_world()
        starts = range(0, rows, part_rows)
        # the first process comes to the others' parts last, to wait for them
        for number in sorted(range(len(starts)), key=lambda number: number % world != rank):
            part = work / f"{starts[number]:012d}.arrow"
            span = range(starts[number], min(starts[number] + part_rows, rows))
            if number % world != rank:
                if rank:
                    return
                while not part.exists():
                    time.sleep(PART_POLL)
                progress.advance(len(span))
            elif part.exists():
                progress.skip(len(span))
            else:
                batch = make_part(span)
                with atomic(part) as temporary, pa.ipc.new_file(temporary, batch.schema) as writer:
                    writer.write_batch(batch)
                progress.advance(len(span))
            parts.append(part)
        parts.sort()
        if rank:
            return
        told: list[Any] = []
        with atomic(path) as temporary:
            for part in parts:
                with pa.memory_map(str(part)) as source:
                    found = pa.ipc.open_file(source).schema.metadata or {}
                    notes += json.loads(found.get(b"vap.notes", b"[]"))
                    told.append(json.loads(found.get(b"vap.part", b"null")))
            extra = dict(metadata(told) if callable(metadata) else metadata or {})
            schema = SCHEMAS[kind].with_metadata(
                {
                    "vap.kind": kind,
                    "vap.provenance": canonical(record),
                    "vap.notes": canonical(notes),
                    **{f"vap.{name}": canonical(value) for name, value in extra.items()},
                }
            )
            with pa.ipc.new_file(temporary, schema) as writer:
                for part in parts:
                    with pa.memory_map(str(part)) as source:
                        for batch in pa.ipc.open_file(source).read_all().to_batches():
                            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))


class ArrowFile:
    """A memory-mapped Arrow artefact: rows are read in place, none is loaded before it is asked for.

    Raises:
        VapError: the file is absent, corrupt, or not an artefact of `kind`.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        self.path, self.kind = path, kind
        remake = "run the stage that makes it again"
        if not path.exists():
            raise VapError(path, "no such file", f"the {kind} artefact", remake)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            schema, metadata = reader.schema, reader.schema.metadata or {}
            found = metadata.get(b"vap.kind", b"").decode() or "an Arrow file of another program"
            names = schema.names
            self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
            self.metadata: dict[str, Any] = {
                key.decode().removeprefix("vap."): json.loads(value)
                for key, value in metadata.items()
                if key.startswith(b"vap.") and key != b"vap.kind"
            }
        except (pa.ArrowException, ValueError, OSError) as error:
            raise VapError(path, f"no readable Arrow file ({error})", f"a {kind} artefact", remake) from None
        if found != kind or not schema.equals(SCHEMAS[kind], check_metadata=False):
            what = found if found != kind else f"{kind} columns {names}"
            raise VapError(path, what, f"a {kind} artefact with {SCHEMAS[kind].names}", remake)
        self._starts = np.cumsum([0] + [batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def column(self, name: str) -> list[Any]:
        """A whole column as Python values; for small columns (id, label, split)."""
        return [value for batch in self._batches for value in batch.column(name).to_pylist()]

    def rows_of(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of a split, in order."""
        return np.flatnonzero(np.asarray(self.column("split")) == split)

    def locate(self, row: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds `row`, and the row's place in it."""
        i = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._batches[i], int(row - self._starts[i])

    def value(self, name: str, row: int) -> Any:
        """One value as a Python object."""
        batch, i = self.locate(row)
        return batch.column(name)[i].as_py()

    def array(self, name: str, row: int) -> npt.NDArray[Any]:
        """One list value as a 1-d view of the file, without a copy."""
        batch, i = self.locate(row)
        view: npt.NDArray[Any] = batch.column(name)[i].values.to_numpy(zero_copy_only=True)
        return view

    def rows(self, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """All rows as dicts, a batch in memory at a time."""
        for batch in self._batches:
            yield from (batch.select(list(names)) if names else batch).to_pylist()
