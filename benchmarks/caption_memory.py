"""Peak memory of the caption stage over 20,000 images against 1,000: a ratio of 1 says that it does not grow.

The images are tiny and the server, a process of its own, gives every question the same answer of 60 words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Result, sized

PROJECT = Path(__file__).resolve().parents[1]
FEW, MANY = sized(1_000, 20), sized(20_000, 60)


def run() -> Result:
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.caption_memory", "serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        few, many = (peak(url, images) for images in (FEW, MANY))
    finally:
        server.terminate()
        server.wait()
    return Result(many, few, "MB", {"images": MANY, "reference_images": FEW})


def peak(url: str, images: int) -> float:
    """MB of resident memory at most, of a process that does nothing but the stage."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.caption_memory", "caption", url, str(images)]
        env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
        out = subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return float(out.stdout)


def caption(url: str, images: int) -> None:
    """Run the stage on blank images in this folder, then print this process's peak in MB."""
    import pyarrow as pa
    import yaml

    from vap.captioning.caption import run as stage
    from vap.common.artifacts import SCHEMAS, build_arrow
    from vap.params import parse

    data = yaml.safe_load((PROJECT / "config/smoke.yaml").read_text(encoding="utf-8"))
    data["datasets"], data["dataset"] = ["own"], {"own": {"adapter": "folder", "modality": "dermoscopy"}}
    data["caption"] |= {"server": url, "model": "none", "concurrency": 16}
    columns = {
        "label": "a",
        "split": "train",
        "group": "g",
        "sha256": "",
        "image": b"tiny",
        "attributes": None,
    }

    def part(span: range) -> pa.RecordBatch:
        rows = [{"id": f"image-{row:06d}", **columns} for row in span]
        return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["prepared"])

    record = {"stage": "blank", "item": ["own"]}
    build_arrow(
        Path("data/prepared/own.arrow"), "prepared", images, part, record, metadata={"classes": ["a"]}
    )
    stage(parse(data), "own")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


async def serve() -> None:
    """Answer whatever is asked, as fast as can be; print the base URL."""
    choice = {"message": {"content": "word " * 60}, "finish_reason": "stop"}
    body = json.dumps({"choices": [choice]}).encode()
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # the client hangs up
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                length = [line for line in head if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                writer.write(reply)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    else:
        caption(sys.argv[2], int(sys.argv[3]))
