"""FID, KID, IS, precision and recall of 10,000 x 10,000 images from stored features: ours, which adds density
and coverage, against torch-fidelity's functions called one by one.

Each side runs in a process of its own, so that its peak memory is its own (VmHWM, so Linux only). Features
are made here: 2,048 of them, not negative, of a falling spectrum, as Inception's are. VAP_BENCH_IMAGES=1500
makes it a quick run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import Result, sized

if TYPE_CHECKING:
    from torch import Tensor

IMAGES = int(os.environ.get("VAP_BENCH_IMAGES", sized(10_000, 1500)))
WIDTH, CLASSES = 2048, 1008
NEIGHBOURS, SPLITS, SUBSETS, SEED = 3, 10, 100, 2020
SUBSET_SIZE = min(1000, IMAGES)
PROJECT = Path(__file__).resolve().parent.parent
# relative, of the two sides' numbers: torch-fidelity's distance is rounded where covariances are singular
# (`frechet_distance`), and its KID is summed in float32: 4e-8 off a subset, beside a spread of 1e-4 here
FID = 1e-6 if IMAGES > WIDTH else 1e-4
TOLERANCE = {"fid": FID, "isc_mean": 1e-6, "isc_std": 1e-6, "kid_mean": 1e-4, "kid_std": 1e-3}
IMAGE_TOLERANCE = 1.5 / IMAGES  # of shares: one image in or out of a ball by rounding


def write_features(path: Path) -> None:
    """Generated x and real y (IMAGES, WIDTH), and the logits of x, as safetensors."""
    import torch
    from safetensors.torch import save_file

    rng = torch.Generator().manual_seed(0)
    spectrum = torch.arange(1, WIDTH + 1) ** -0.7
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=rng)).Q

    def features(scale: float, shift: float) -> Tensor:
        z = torch.randn(IMAGES, WIDTH, generator=rng) * spectrum * scale
        return torch.relu(4 * z @ turn + 0.3 + shift)

    x, y = features(1.02, 0.04), features(1.0, 0.0)
    logits = x[:, :CLASSES] * 8
    save_file({"x": x, "y": y, "logits": logits.contiguous()}, path)


def ours(x: Tensor, y: Tensor, logits: Tensor) -> dict[str, Callable[[], dict[str, float | None]]]:
    from vap.metrics.fidelity import frechet_distance, inception_score
    from vap.metrics.kernel import pair_metrics

    def pairs() -> dict[str, float | None]:
        near, kid = pair_metrics(x, y, NEIGHBOURS, SUBSETS, SUBSET_SIZE, SEED)
        return {**near, "kid_mean": kid.mean, "kid_std": kid.std}

    return {
        "fid": lambda: {"fid": frechet_distance(x, y)},
        "isc": lambda: dict(zip(("isc_mean", "isc_std"), inception_score(logits, SPLITS, SEED), strict=True)),
        "kid_prc": pairs,
    }


def theirs(x: Tensor, y: Tensor, logits: Tensor) -> dict[str, Callable[[], dict[str, float | None]]]:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    def fid() -> dict[str, float | None]:
        statistics = [fid_features_to_statistics(z) for z in (x, y)]
        found = fid_statistics_to_metric(*statistics, verbose=False)
        return {"fid": found["frechet_inception_distance"]}

    def isc() -> dict[str, float | None]:
        found = isc_features_to_metric(logits, SPLITS, shuffle=True, rng_seed=SEED)
        return {f"isc_{part}": found[f"inception_score_{part}"] for part in ("mean", "std")}

    def kid() -> dict[str, float | None]:
        options = {"kid_subsets": SUBSETS, "kid_subset_size": SUBSET_SIZE, "rng_seed": SEED, "verbose": False}
        found = kid_features_to_metric(x, y, **options)
        return {f"kid_{part}": found[f"kernel_inception_distance_{part}"] for part in ("mean", "std")}

    def prc() -> dict[str, float | None]:
        found = prc_features_to_metric(x, y, prc_neighborhood=NEIGHBOURS, verbose=False)
        return {name: found[name] for name in ("precision", "recall")}

    return {"fid": fid, "isc": isc, "kid": kid, "prc": prc}


def side(name: str, path: str) -> None:
    """Measure one side in this process; print its numbers, seconds and peak MB as JSON."""
    from safetensors.torch import load_file

    features = load_file(path)
    works = {"ours": ours, "theirs": theirs}[name](features["x"], features["y"], features["logits"])
    numbers: dict[str, float | None] = {}
    seconds = {}
    for metric, work in works.items():
        start = time.perf_counter()
        numbers |= work()
        seconds[metric] = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps({"numbers": numbers, "seconds": seconds, "MB": int(peak[1]) / 1e3}))


def run() -> Result:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.safetensors"
        write_features(path)
        for name in ("ours", "theirs"):
            done = subprocess.run(
                [sys.executable, "-c", f"from benchmarks.metrics import side; side({name!r}, {str(path)!r})"],
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[name] = json.loads(done.stdout)
    one, other = (found[name]["numbers"] for name in ("ours", "theirs"))
    for metric, value in other.items():
        within = TOLERANCE[metric] * abs(value) if metric in TOLERANCE else IMAGE_TOLERANCE
        assert abs(one[metric] - value) <= within, (metric, one[metric], value)
    details: dict[str, float | str] = {"images": IMAGES}
    for name, result in found.items():
        details |= {f"{name}_{metric}_s": value for metric, value in result["seconds"].items()}
        details |= {f"{name}_MB": result["MB"]}
        details |= {f"{name}_{metric}": value for metric, value in result["numbers"].items()}
    seconds = {name: sum(result["seconds"].values()) for name, result in found.items()}
    return Result(seconds["ours"], seconds["theirs"], "s", details)
