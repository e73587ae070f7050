"""Two processes of one training on CPUs, as `accelerate launch` starts them, against one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import write_bank, write_latents

CODE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from toy import settings
from vap.stages.train import run
run(settings(), "own", sys.argv[1])
"""


def run(method: str, processes: int) -> dict[str, torch.Tensor]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    together = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, method],
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                **(shared if processes > 1 else {}),
                **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}),
            },
        )
        for rank in range(processes)
    ]
    try:
        assert [process.wait(timeout=60) for process in together] == [0] * processes
    finally:
        for process in together:
            process.kill()
            process.wait()
    return load_file(f"results/models/own/{method}/model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uvit", "vap"])
def test_two_processes_train_what_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_latents(Path("data/latents/own.arrow"))
    write_bank(Path("data/prompts/own.arrow"))
    one, two = run(method, 1), run(method, 2)
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0)
