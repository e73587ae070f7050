"""latents: data/prepared/NAME.arrow to the moments of f_E, and the autoencoder that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vap.artifacts import SCHEMAS, ArrowFile, atomic, build_arrow, provenance, work_folder
from vap.datasets.images import decode
from vap.errors import VapError
from vap.models import autoencoder
from vap.models.autoencoder import Autoencoder
from vap.params import AutoencoderTrainParams, Params
from vap.progress import Progress
from vap.stages.common import (
    autoencoder_path,
    latents_path,
    prepared_path,
    set_up_torch,
    to_tensor,
)

SCALE_IMAGES = 512  # training images that the latent scale is measured on


def run(params: Params, dataset: str) -> Path:
    """Write data/autoencoders/{dataset}/ and data/latents/{dataset}.arrow.

    The metadata of the latents holds `shape` (C, h, w), `scale`, `factor` and `classes`.

    Raises:
        VapError: the autoencoder's weights are absent or do not fit the images.
    """
    device = set_up_torch(params.compute)
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    settings = params.latents
    inputs = {"prepared": prepared.path}
    if settings.path is not None and settings.autoencoder != "train":
        inputs["weights"] = Path(settings.path)
        autoencoder.load(Path(settings.path))  # says what is wrong before it is hashed
    record = provenance(
        "latents",
        (dataset,),
        params={"seed": params.seed, "latents": settings.model_dump()},
        inputs=inputs,
        libraries=("diffusers", "numpy", "pyarrow", "torch"),
    )
    size = params.prepare.image_size

    if settings.autoencoder == "train":
        ae: Autoencoder = _train(prepared, settings.train, size, params.seed, record, device)
    else:
        ae = autoencoder.load(Path(inputs["weights"]))
    if size % ae.factor:
        raise VapError(
            "params.yaml: prepare.image_size",
            str(size),
            f"a multiple of {ae.factor}, the autoencoder's down-sampling",
            "change it, or the autoencoder",
        )
    ae.net.to(device)

    def moments(rows: range) -> np.ndarray:
        images = [decode(prepared.value("image", row)) for row in rows]
        return ae.moments(to_tensor(images).to(device)).float().cpu().numpy()

    C, side = ae.latent_channels, size // ae.factor
    scale = settings.scale or _measure_scale(prepared, moments, params.seed, settings.batch_size)

    def make_part(rows: range) -> pa.RecordBatch:
        parts = [
            moments(range(start, min(start + settings.batch_size, rows.stop)))
            for start in range(rows.start, rows.stop, settings.batch_size)
        ]
        flat = np.concatenate(parts).reshape(len(rows), -1)
        return pa.RecordBatch.from_arrays(
            [
                *(
                    pa.array([prepared.value(name, row) for row in rows], pa.string())
                    for name in ("id", "label", "split")
                ),
                pa.array(list(flat), SCHEMAS["latents"].field("moments").type),
            ],
            schema=SCHEMAS["latents"],
        )

    metadata = {
        "shape": [C, side, side],
        "scale": scale,
        "factor": ae.factor,
        "classes": prepared.metadata["classes"],
    }
    build_arrow(latents_path(dataset), "latents", len(prepared), make_part, record, metadata=metadata)
    with atomic(autoencoder_path(dataset)) as part:
        ae.save(part)
    if settings.autoencoder == "train":
        with work_folder(_training_record(record)):
            pass  # both outputs are there: the trained network's folder may go
    return latents_path(dataset)


def _training_record(record: Mapping[str, Any]) -> dict[str, Any]:
    return {**record, "item": [*record["item"], "autoencoder"]}


def _measure_scale(prepared: ArrowFile, moments: Any, seed: int, batch_size: int) -> float:
    """1 / std of latents that are sampled for some training images (Rombach et al., 2022, appendix G)."""
    train = np.flatnonzero(np.asarray(prepared.column("split")) == "train")
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(train)[:SCALE_IMAGES])
    rng = np.random.default_rng([seed, 2])
    total = total_sq = count = 0.0
    for start in range(0, len(chosen), batch_size):
        mean, logvar = np.split(moments(chosen[start : start + batch_size]), 2, axis=1)
        latents = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape)
        total += float(latents.sum())
        total_sq += float((latents**2).sum())
        count += latents.size
    return 1 / math.sqrt(total_sq / count - (total / count) ** 2)


def _train(
    prepared: ArrowFile,
    settings: AutoencoderTrainParams,
    size: int,
    seed: int,
    record: Mapping[str, Any],
    device: torch.device,
) -> Autoencoder:
    """Train a small AutoencoderKL on the training split; a finished one is kept until the stage ends."""
    torch.manual_seed(seed)
    if size % (settings.patch * 2 ** (len(settings.channels) - 1)):
        raise VapError(
            "params.yaml: latents.train",
            f"patch {settings.patch} and {len(settings.channels)} levels",
            f"a down-sampling that divides image_size {size}",
            "change one of them",
        )
    ae = autoencoder.small_kl(size, settings.patch, settings.channels, settings.latent_channels)
    with work_folder(_training_record(record), keep=True) as work:
        if (work / "done").is_dir():
            return autoencoder.load(work / "done")
        net = ae.net.to(device).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=settings.lr, betas=(0.9, 0.99), fused=True)
        rows = np.flatnonzero(np.asarray(prepared.column("split")) == "train")
        generator = torch.Generator().manual_seed(seed)
        with Progress(f"latents {record['item'][0]} autoencoder", settings.steps, "step") as progress:
            for step in range(settings.steps):
                warm = min(1.0, (step + 1) / 20)
                cosine = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
                optimizer.param_groups[0]["lr"] = settings.lr * warm * cosine
                chosen = np.random.default_rng([seed, step]).choice(rows, settings.batch_size)
                images = to_tensor([decode(prepared.value("image", int(row))) for row in chosen])
                loss = ae.loss(images.to(device), settings.kl_weight, generator)
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if not math.isfinite(loss.item()):
                    raise VapError(
                        f"latents {record['item'][0]}, autoencoder step {step}",
                        "a loss that is not finite",
                        "a number",
                        "lower params.yaml: latents.train.lr",
                    )
                progress.advance(1, f"loss {loss.item():.4f}")
        net.eval()
        with atomic(work / "done") as part:
            ae.save(part)
    return ae
