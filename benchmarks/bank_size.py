"""The prompt bank's file for 20,000 descriptions of about 80 tokens at width 768, against one .npy file of
256 x 768 float32 a description. The row is fp16, the default; the other dtypes are details."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import Result, sized

CAPTIONS, WIDTH, PADDED = sized(20_000, 600), 768, 256
DISTINCT = 512  # random states are made once for so many, then repeated: what they are changes no size


def write_bank(path: Path, dtype: str, captions: int = CAPTIONS) -> Path:
    """A bank of random states, 60 to 100 tokens each, written as the encode stage writes it."""
    import contextlib

    import pyarrow as pa

    from vap.common.artifacts import SCHEMAS, build_arrow
    from vap.prompts.states import Packed, pack

    rng = np.random.default_rng(0)
    lengths = rng.integers(60, 101, captions)
    pool = rng.standard_normal((DISTINCT, 100, WIDTH), np.float32)
    packed: list[Packed] = [pack(states, dtype) for states in pool]  # type: ignore[arg-type]
    size = len(packed[0].data) // 100  # bytes a token

    def make_part(rows: range) -> pa.RecordBatch:
        states = [packed[i % DISTINCT] for i in rows]
        columns = {
            "text": ["word " * 77 if i else "" for i in rows],
            "tokens": [s.data[: size * lengths[i]] for s, i in zip(states, rows, strict=True)],
            "scales": [s.scales[: lengths[i]] for s, i in zip(states, rows, strict=True)],
            "pooled": [np.zeros(512, np.float16)] * len(rows),
            "ids": [[f"image-{i:06d}"] if i else [] for i in rows],
            "labels": [["class"] if i else [] for i in rows],
            "splits": [["train"] if i else [] for i in rows],
        }
        schema = SCHEMAS["bank"]
        return pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)

    metadata = {"width": WIDTH, "max_tokens": PADDED, "dtype": dtype, "classes": ["class"]}
    record = {"stage": "benchmark", "item": [dtype]}
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(path.parent):  # the unfinished parts lie there too
        build_arrow(Path(path.name), "bank", captions, make_part, record, unit="text", metadata=metadata)
    return path


def run() -> Result:
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.npy"
        np.save(one, np.zeros((PADDED, WIDTH), np.float32))
        reference = one.stat().st_size * CAPTIONS / 1e6  # each file has this size: no need to write them all
        for dtype in ("fp16", "bf16", "int8"):
            bank = write_bank(Path(folder) / f"{dtype}.arrow", dtype)
            sizes[dtype] = bank.stat().st_size / 1e6
            bank.unlink()
    ratios = {f"ratio_{dtype}": reference / size for dtype, size in sizes.items()}
    return Result(sizes["fp16"], reference, "MB", sizes | ratios)
