"""What the tests with a real vLLM share: where it is, the tiny model, a project of images to describe.

The server's environment and the tiny checkpoint are made by tests/vllm/environment.sh (`make test-vllm`) in
.vllm/, from a kit that is not part of this project: ../shared/vllm, or the folder that VAP_TEST_VLLM names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

PROJECT = Path(__file__).resolve().parents[2]
KIT = Path(os.environ.get("VAP_TEST_VLLM") or PROJECT.parent / "shared" / "vllm")
DATA = Path(os.environ.get("VAP_TEST_DATA") or PROJECT.parent / "shared" / "data")
COMMAND = PROJECT / ".vllm" / "env" / "bin" / "vllm"
MODEL = PROJECT / ".vllm" / "tiny"
NAME = "tiny-vlm"
CONTEXT = 2048  # tokens
ARGS = ["--enforce-eager", "--block-size", "32", "--limit-mm-per-prompt", '{"image": 1}']
ENV = {
    "PYTHONPATH": str(KIT / "shim"),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
}
START = 300.0  # seconds until a server must answer


def missing() -> str:
    """Why these tests cannot run, or nothing."""
    if not (KIT / "shim").is_dir():
        return f"no kit in {KIT}; VAP_TEST_VLLM names its folder"
    if not (COMMAND.is_file() and (MODEL / "model.safetensors").is_file()):
        return "no server; `make test-vllm` makes one in .vllm/"
    return ""


# ── a server ────────────────────────────────────────────────────────────────────────────────────


class Server:
    """`vllm serve` of the tiny model on one port; it can be killed and started again."""

    def __init__(self, port: int, log: Path, more: Sequence[str] = ()) -> None:
        self.port, self.log, self.more = port, log, list(more)
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v1"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(COMMAND), "serve", str(MODEL), "--served-model-name", NAME, "--port", str(self.port)]
        command += [
            "--host",
            "127.0.0.1",
            "--dtype",
            "float32",
            "--max-model-len",
            str(CONTEXT),
            *ARGS,
            *self.more,
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **ENV}, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START
        while not alive(self.root):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < end, "no answer in time"
            time.sleep(0.25)

    def kill(self) -> None:
        """kill -9 of the server and all its processes."""
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def alive(root: str) -> bool:
    try:
        return httpx.get(f"{root}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


# ── a project ───────────────────────────────────────────────────────────────────────────────────


def images(count: int) -> list[np.ndarray]:
    """Real dermoscopic images where there are some, else phantoms; uint8 [64, 64, 3]."""
    from vap.datasets.images import fit, read
    from vap.datasets.phantom import list_samples, load_spec, render

    files = sorted((DATA / "isic2018" / "ISIC2018_Task3_Training_Input").glob("*.jpg"))[:count]
    if len(files) == count:
        return [fit(read(file)[0], 64, "squash") for file in files]
    spec = load_spec(PROJECT / "data/raw/phantom-isic2018/phantom.yaml")
    return [render("dermoscopy", sample, 64) for sample in list_samples(spec, 0)[:count]]


def lay_out(folder: Path, count: int, skip: int = 0, **caption: Any) -> Path:
    """A folder with a prepared dataset `own` of `count` images after the first `skip`, and params.yaml."""
    import pyarrow as pa

    from vap.common.artifacts import SCHEMAS, build_arrow
    from vap.datasets.images import encode

    data = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = ["own"], {"own": {"adapter": "folder", "modality": "dermoscopy"}}
    data["caption"] |= {
        "model": NAME,
        "max_tokens": 24,
        "concurrency": 8,
        "timeout": 120.0,
        "max_failed": 0.5,
    }
    data["caption"] |= caption
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    rows = [
        {
            "id": f"i{i:04d}",
            "label": "mole",
            "split": "train",
            "group": str(i),
            "sha256": "",
            "image": encode(image),
        }
        for i, image in enumerate(images(skip + count)[skip:])
    ]
    schema = SCHEMAS["prepared"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        build_arrow(
            Path("data/prepared/own.arrow"),
            "prepared",
            count,
            lambda span: pa.RecordBatch.from_pylist(rows[span.start : span.stop], schema=schema),
            {"stage": "toy", "item": ["own"]},
            metadata={"classes": ["mole"]},
        )
    finally:
        os.chdir(before)
    return folder


def caption(folder: Path) -> subprocess.Popen[str]:
    """`vap caption own`, started; its output goes to folder/caption.log."""
    log = (folder / "caption.log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "vap", "caption", "own"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=log,
        stderr=log,
        text=True,
    )


def answers(folder: Path) -> int:
    """Entries of the journal so far."""
    return sum(file.read_bytes().count(b"\n") for file in (folder / "work/caption").glob("*/answers.jsonl"))


def wait_for(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the journal has so many entries."""
    end = time.monotonic() + START
    while answers(folder) < count:
        assert process.poll() is None, (folder / "caption.log").read_text()[-3000:]
        assert time.monotonic() < end, "no answers"
        time.sleep(0.02)
