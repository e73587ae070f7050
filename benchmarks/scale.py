"""The stages on 100,000 images (ours) and on 10,000 (reference): their peak memory, and images a second.

`ours` and `reference` are the sums over the stages; a ratio of 1 is a pipeline whose memory does not grow
with the data. Images are JPEGs of 64 pixels, some hundreds of them different, under as many names as there
are images. The caption server, a process of its own, answers every question with 60 random words, so that
nearly every image has a description of its own. The text encoder is a BERT of one layer and width 256, the
network of the metrics timm's `test_vit`, both with random weights: memory is measured here, not models. As
many samples as half the images are measured. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import Result, sized

PROJECT = Path(__file__).resolve().parents[1]
FEW, MANY = sized(10_000, 60), sized(100_000, 120)
SIDE = 64  # pixels
STAGES = ("prepare", "caption", "encode", "latents", "evaluate")
METRICS_NETWORK = "test_vit"  # of timm
WORDS = ["large", "small", "oval", "round", "irregular", "brown", "black", "pink", "rough", "smooth", "pale"]


def run() -> Result:
    peaks: dict[int, float] = {}
    details: dict[str, float | str] = {}
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", "serve"], stdout=subprocess.PIPE, text=True, cwd=PROJECT
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        for images in (FEW, MANY):
            with tempfile.TemporaryDirectory() as folder:
                of_stage = {stage: in_its_process(stage, Path(folder), images, url) for stage in STAGES}
            peaks[images] = sum(peak for _, peak in of_stage.values())
            for stage, (seconds, peak) in of_stage.items():
                details |= {
                    f"{stage}_{images}_img_s": images / seconds,
                    f"{stage}_{images}_peak_mb": peak,
                }
    finally:
        server.terminate()
        server.wait()
    return Result(peaks[MANY], peaks[FEW], "MB", details)


def in_its_process(stage: str, folder: Path, images: int, url: str) -> tuple[float, float]:
    """(seconds, MB of its own memory at most) of a process that does nothing but the stage."""
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": str(os.cpu_count())}
    for step in (f"before-{stage}", stage):
        command = [sys.executable, "-m", "benchmarks.scale", step, str(images), url]
        done = subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    print(f"{stage}, {images:,} images: {images / seconds:,.0f} a second, {peak:,.0f} MB", file=sys.stderr)
    return seconds, peak


# ── what a stage needs ──────────────────────────────────────────────────────────────────────────────


def params(images: int, url: str) -> dict[str, Any]:
    """The smoke profile for one folder of images, with what the module's docstring says."""
    from vap.profiles import read_profile

    data = read_profile(PROJECT / "config/smoke.yaml")
    data["datasets"], data["dataset"] = ["own"], {"own": {"adapter": "folder", "modality": "dermoscopy"}}
    data["prepare"] |= {"image_size": SIDE, "max_train": None, "max_test": None}
    data["caption"] |= {"server": url, "model": "none", "concurrency": 32}
    data["encode"] |= {"encoder": str(Path("encoder").resolve()), "max_tokens": 256, "batch_size": 64}
    data["latents"] |= {"autoencoder": "linear"}
    data["latents"]["linear"] |= {"patch": 4, "latent_channels": 8}
    data["sample"]["n"] = data["evaluate"]["n"] = images // 2
    network = {"features": f"timm:{METRICS_NETWORK}", "features_path": "network.safetensors"}
    data["evaluate"] |= {**network, "bootstrap": 2, "batch_size": 256}
    data["compute"] |= {"device": "cpu", "threads": os.cpu_count()}
    return data


def write_images(images: int) -> None:
    rng = np.random.default_rng(0)
    originals = []
    Path("originals").mkdir()
    for number in range(min(500, images)):
        blobs = Image.fromarray(rng.integers(60, 220, (6, 6, 3), dtype=np.uint8)).resize((SIDE, SIDE), 3)
        pixels = np.asarray(blobs) + rng.normal(0, 5, (SIDE, SIDE, 3))
        originals.append(Path("originals") / f"{number}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(originals[-1], quality=90)
    for label in "ab":
        (Path("data/raw/own") / label).mkdir(parents=True)
    for number in range(images):
        os.link(originals[number % len(originals)], f"data/raw/own/{'ab'[number % 2]}/{number:06d}.jpg")


def write_encoder() -> None:
    """A BERT of one layer, with MiniLM's tokenizer."""
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
    BertModel(config).save_pretrained("encoder")
    tokenizer.save_pretrained("encoder")


def write_samples(images: int) -> None:
    """As many samples as are measured: the images themselves, with noise. And the network that measures."""
    import pyarrow as pa
    import timm
    import torch
    from safetensors.torch import save_file

    from vap.common.artifacts import SCHEMAS, ArrowFile, build_arrow
    from vap.common.places import prepared_path, samples_path
    from vap.datasets.images import decode, encode_image

    torch.manual_seed(0)
    save_file(timm.create_model(METRICS_NETWORK, pretrained=False).state_dict(), "network.safetensors")
    prepared = ArrowFile(prepared_path("own"), "prepared")
    rng = np.random.default_rng(1)
    some = [decode(prepared.value("image", row)) for row in range(min(400, len(prepared)))]
    made = [
        encode_image(
            Image.fromarray(np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8))
        )
        for pixels in some
    ]

    def part(span: range) -> pa.RecordBatch:
        rows = [{"index": i, "label": "ab"[i % 2], "text": None, "image": made[i % len(made)]} for i in span]
        return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["samples"])

    record = {"stage": "benchmark", "item": ["own"]}
    build_arrow(samples_path("own", "uvit", "seen"), "samples", images // 2, part, record)


# ── processes ───────────────────────────────────────────────────────────────────────────────────────


def before(stage: str, images: int) -> None:
    if stage == "prepare":
        write_images(images)
    elif stage == "encode":
        write_encoder()
    elif stage == "evaluate":
        write_samples(images)


def measure(stage: str, images: int, url: str) -> None:
    """Run the stage in this folder, then print its seconds and the most of `own_memory`."""
    from vap.params import parse

    settings = parse(params(images, url))
    start, done, most = time.perf_counter(), threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    if stage == "prepare":
        from vap.datasets.prepare import run as prepare

        prepare(settings, "own")
    elif stage == "caption":
        from vap.captioning.caption import run as caption

        caption(settings, "own")
    elif stage == "encode":
        from vap.prompts.encode import run as encode

        encode(settings, "own")
    elif stage == "latents":
        from vap.autoencoders.latents import run as latents

        latents(settings, "own")
    else:
        from vap.metrics.evaluate import run as evaluate

        evaluate(settings, "own", "uvit", "seen")
    done.set()
    watcher.join()
    print(json.dumps([time.perf_counter() - start, most[0]]))


def own_memory() -> float:
    """MB of this process's memory without the pages of mapped files, which the system takes back at need."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


async def serve() -> None:
    """Answer whatever is asked, as fast as can be; print the base URL."""
    rng = np.random.default_rng(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client hangs up
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
                length = [line for line in head if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                text = " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), 60))
                choice = {"message": {"content": text}, "finish_reason": "stop"}
                body = json.dumps({"choices": [choice]}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    elif sys.argv[1].startswith("before-"):
        before(sys.argv[1].removeprefix("before-"), int(sys.argv[2]))
    else:
        measure(sys.argv[1], int(sys.argv[2]), sys.argv[3])
