"""latents: data/prepared/NAME.arrow to the moments of f_E, and the autoencoder that made them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from vap.artifacts import (
    SCHEMAS,
    ArrowFile,
    atomic,
    build_arrow,
    provenance,
    work_folder,
    write_json,
)
from vap.datasets.images import decode
from vap.errors import VapError
from vap.metrics.reconstruction import reconstruction
from vap.models import autoencoder, linear
from vap.models.autoencoder import Autoencoder, Linear
from vap.models.linear import LinearNet
from vap.params import AutoencoderTrainParams, FinetuneParams, LinearParams, Params
from vap.stages.common import (
    autoencoder_path,
    latents_path,
    prepared_path,
    set_up_torch,
    to_tensor,
)
from vap.training.fit import fit
from vap.training.seeds import step_generator

SCALE_IMAGES = 512  # training images that the latent scale is measured on


def run(params: Params, dataset: str) -> Path:
    """Write data/autoencoders/{dataset}/ and data/latents/{dataset}.arrow.

    The metadata of the latents holds `shape` (C, h, w), `scale`, `factor` and `classes`. Beside the network,
    reconstruction.json says how well it reconstructs images of the test split: no generator can do better.

    Raises:
        VapError: the autoencoder's weights are absent or do not fit the images.
    """
    device = set_up_torch(params.compute)
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    settings = params.latents
    inputs = {"prepared": prepared.path}
    if settings.path is not None and settings.pretrained:
        inputs["weights"] = Path(settings.path)
        autoencoder.load(Path(settings.path))  # says what is wrong before it is hashed
    diffusers = ("diffusers",) if settings.autoencoder != "linear" else ()
    record = provenance(
        "latents",
        (dataset,),
        params={"seed": params.seed, "latents": settings.model_dump()},
        inputs=inputs,
        libraries=(*diffusers, "numpy", "pyarrow", "torch"),
    )
    size = params.prepare.image_size

    if settings.pretrained:
        ae = autoencoder.load(Path(inputs["weights"]))
    elif settings.autoencoder == "linear":
        ae = _fit_linear(prepared, settings.linear, size, params.seed, settings.batch_size)
    else:
        ae = _train(prepared, settings.train, size, params.seed, record, device)
    _check_side(size, ae.factor)
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
    latents = ArrowFile(latents_path(dataset), "latents")
    measured = {"before": reconstruction(ae, prepared, settings.lpips_path, settings.batch_size, device)}
    if settings.finetune_decoder is not None:
        _finetune(ae, prepared, latents, settings.finetune_decoder, params.seed, record, device)
        measured["after"] = reconstruction(ae, prepared, settings.lpips_path, settings.batch_size, device)
    with atomic(autoencoder_path(dataset)) as part:
        ae.save(part)
        write_json(part / "reconstruction.json", measured)
    for name in ("autoencoder", "decoder"):
        with work_folder(_part_record(record, name)):
            pass  # all outputs are there: what training kept may go
    return latents_path(dataset)


def _part_record(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Names the work folder of a part of the stage."""
    return {**record, "item": [*record["item"], part]}


def _measure_scale(prepared: ArrowFile, moments: Any, seed: int, batch_size: int) -> float:
    """1 / std of latents that are sampled for some training images (Rombach et al., 2022, appendix G)."""
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(_training_rows(prepared))[:SCALE_IMAGES])
    rng = np.random.default_rng([seed, 2])
    total = total_sq = count = 0.0
    for start in range(0, len(chosen), batch_size):
        mean, logvar = np.split(moments(chosen[start : start + batch_size]), 2, axis=1)
        latents = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape)
        total += float(latents.sum())
        total_sq += float((latents**2).sum())
        count += latents.size
    return 1 / math.sqrt(total_sq / count - (total / count) ** 2)


def _check_side(size: int, factor: int) -> None:
    if size % factor:
        raise VapError(
            "params.yaml: prepare.image_size",
            str(size),
            f"a multiple of {factor}, the autoencoder's down-sampling",
            "change it, or the autoencoder",
        )


def _fit_linear(
    prepared: ArrowFile, settings: LinearParams, size: int, seed: int, batch_size: int
) -> Autoencoder:
    """Fit the linear autoencoder to training images, drawn by seed where not all are taken."""
    _check_side(size, settings.patch)
    rows = _training_rows(prepared)
    if settings.images is not None:
        rows = np.sort(np.random.default_rng([seed, 4]).permutation(rows)[: settings.images])

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            yield to_tensor([decode(prepared.value("image", int(row))) for row in chosen])

    net = LinearNet(settings.patch, settings.latent_channels)
    linear.fit(net, batches, settings.noise)
    return Linear(net)


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
    _check_side(size, settings.patch * 2 ** (len(settings.channels) - 1))
    ae = autoencoder.small_kl(size, settings.patch, settings.channels, settings.latent_channels)
    rows = _training_rows(prepared)

    def loss(step: int) -> Tensor:
        chosen = np.random.default_rng([seed, step]).choice(rows, settings.batch_size)
        images = to_tensor([decode(prepared.value("image", int(row))) for row in chosen])
        return ae.loss(images.to(device), settings.kl_weight, step_generator(seed, step))

    with work_folder(_part_record(record, "autoencoder"), keep=True) as work:
        net = ae.net.to(device).train()
        fit(net, list(net.parameters()), loss, settings, work, f"latents {record['item'][0]} autoencoder")
    net.eval()
    return ae


def _finetune(
    ae: Autoencoder,
    prepared: ArrowFile,
    latents: ArrowFile,
    settings: FinetuneParams,
    seed: int,
    record: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Train f_D further on the training split, f_E as it is: mean |f_D(z) - x|, z drawn from the moments."""
    rows = _training_rows(prepared)
    C, h, w = latents.metadata["shape"]

    def loss(step: int) -> Tensor:
        chosen = np.random.default_rng([seed, 3, step]).choice(rows, settings.batch_size)
        images = to_tensor([decode(prepared.value("image", int(row))) for row in chosen]).to(device)
        moments = np.stack([latents.array("moments", int(row)) for row in chosen]).reshape(-1, 2 * C, h, w)
        mean, logvar = torch.from_numpy(moments).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=step_generator(seed, step))
        z = (mean + (0.5 * logvar).exp() * noise).to(device)
        return (ae.reconstruct(z) - images).abs().mean()

    with work_folder(_part_record(record, "decoder"), keep=True) as work:
        ae.net.train()
        fit(ae.net, ae.decoder_parameters(), loss, settings, work, f"latents {record['item'][0]} decoder")
    ae.net.eval()


def _training_rows(prepared: ArrowFile) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.asarray(prepared.column("split")) == "train")
