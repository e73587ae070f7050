"""Every benchmark starts, at toy size, and writes what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NOT_BENCHMARKS = ("__init__", "__main__", "common")
NAMES = sorted(p.stem for p in (PROJECT / "benchmarks").glob("*.py") if p.stem not in NOT_BENCHMARKS)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_writes_its_ratio(name: str, tmp_path: Path) -> None:
    env = {**os.environ, "VAP_BENCH_TOY": "1", "VAP_BENCH_OUT": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "benchmarks", name]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((tmp_path / f"{name}.json").read_text())
    assert row["name"] == name
    assert row["ratio"] > 0
    assert row["toy"] is True
    assert name in done.stdout
