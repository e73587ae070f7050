"""Peak memory of the encode stage at 20,000 texts (ours) and at 1,000 (reference), about 80 tokens each.

A ratio of 1 is a stage whose memory does not grow with the data. The encoder is a small BERT of width 256,
made here. MB of VmHWM, so Linux only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, sized

FEW, MANY = sized(1_000, 20), sized(20_000, 60)
PROJECT = Path(__file__).resolve().parent.parent


def write_encoder(folder: Path) -> None:
    """A BERT of one layer, random weights, MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from vap.prompts.places import locate

    tokenizer = AutoTokenizer.from_pretrained(locate("minilm").folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=256,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_captions(n: int) -> None:
    """data/prepared/d.arrow and data/captions/d.parquet of n images with n different descriptions."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from vap.common.artifacts import SCHEMAS, build_arrow
    from vap.common.places import captions_path, prepared_path

    rng = np.random.default_rng(0)
    words = ["large", "small", "oval", "round", "irregular", "brown", "black", "pink", "rough", "smooth"]

    def make_part(rows: range) -> pa.RecordBatch:
        made = [
            {"id": f"{i:06d}", "label": "c", "split": "train", "group": "", "sha256": "", "image": b""}
            for i in rows
        ]
        return pa.RecordBatch.from_pylist(made, schema=SCHEMAS["prepared"])

    record = {"stage": "benchmark", "item": [str(n)]}
    build_arrow(prepared_path("d"), "prepared", n, make_part, record, metadata={"classes": ["c"]})
    texts = [" ".join(rng.choice(words, 78)) for _ in range(n)]
    captions_path("d").parent.mkdir(parents=True)
    table = pa.table({"id": [f"{i:06d}" for i in range(n)], "t_mix": texts})
    pq.write_table(table, captions_path("d"))


def encode(encoder: str) -> None:
    """Run the stage in this process and print its peak memory in MB."""
    import yaml

    from vap.params import parse
    from vap.prompts.encode import run as stage

    data = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = ["d"], {"d": {"adapter": "folder", "modality": "dermoscopy"}}
    data["encode"] |= {"encoder": encoder, "max_tokens": 256, "dtype": "fp16"}
    data["compute"] |= {"device": "cpu", "threads": 1}
    stage(parse(data), "d")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    print(int(found[1]) / 1e3)


def run() -> Result:
    from vap.common.places import bank_path

    peaks, sizes = {}, {}
    with tempfile.TemporaryDirectory() as name:
        encoder = Path(name) / "encoder"
        write_encoder(encoder)
        here = os.getcwd()
        for n in (FEW, MANY):
            folder = Path(name) / str(n)
            folder.mkdir()
            try:
                os.chdir(folder)
                write_captions(n)
            finally:
                os.chdir(here)
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"from benchmarks.encode_memory import encode; encode({str(encoder)!r})",
                ],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            peaks[n], sizes[n] = float(done.stdout), (folder / bank_path("d")).stat().st_size / 1e6
    details = {f"bank_{n}_texts": sizes[n] for n in sizes}
    return Result(peaks[MANY], peaks[FEW], "MB", details)
