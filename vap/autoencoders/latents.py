"""latents: data/prepared/NAME.arrow to the moments of f_E, and the autoencoder that made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from vap.autoencoders import autoencoder, linear
from vap.autoencoders.autoencoder import KL, Autoencoder, Linear
from vap.autoencoders.reconstruction import reconstruction
from vap.autoencoders.training import AutoencoderLearner, DecoderLearner, FitParams, WholeLearner, images_at
from vap.common.artifacts import (
    SCHEMAS,
    ArrowFile,
    atomic,
    build_arrow,
    provenance,
    require_place,
    work_folder,
    write_json,
)
from vap.common.places import autoencoder_path, latents_log_path, latents_path, prepared_path, set_up_torch
from vap.params import LatentsParams, Params
from vap.training.loop import train
from vap.training.watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG_EVERY = 10  # steps
CHECKPOINT_EVERY = 500  # steps
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
    inputs, size = {"prepared": prepared.path}, params.prepare.image_size
    ae = _network(settings, size, params.seed)  # says what is wrong with weights before they are hashed
    if settings.pretrained:
        inputs["weights"] = settings.weights
    require_place(autoencoder_path(dataset))
    learns = settings.autoencoder == "train" or settings.finetune_decoder is not None
    record = provenance(
        "latents",
        (dataset,),
        params={"seed": params.seed, "latents": settings.model_dump()},
        inputs=inputs,
        libraries=(*(("accelerate",) if learns else ()), *ae.libraries, "numpy", "pyarrow", "torch"),
    )

    def learn(
        part: str, section: str, own: FitParams, learner_of: Callable[[Accelerator], AutoencoderLearner]
    ) -> None:
        """A finished training is kept until the stage ends."""
        with work_folder(_part_record(record, part), keep=True) as work:
            train(
                learner_of,
                own.steps,
                own.batch_size,
                work,
                section=f"latents.{section}",
                seed=params.seed,
                precision="fp32",
                log_every=LOG_EVERY,
                checkpoint_every=CHECKPOINT_EVERY,
                device=str(device),
                label=f"latents {dataset} {part}",
                watch=Watch(latents_log_path(dataset, part), device),
            )
        ae.net.eval()

    if settings.autoencoder == "linear":
        assert isinstance(ae, Linear)
        _fit_linear(ae, prepared, settings, params.seed)
    elif settings.autoencoder == "train":
        assert isinstance(ae, KL)
        small, own = ae, settings.train
        learn(
            "autoencoder",
            "train",
            own,
            lambda a: WholeLearner(small, prepared, own, own.kl_weight, a, params.seed),
        )
    ae.net.to(device)

    def moments(rows: npt.NDArray[np.int64]) -> np.ndarray:
        return ae.moments(images_at(prepared, rows).to(device)).float().cpu().numpy()

    C, side = ae.latent_channels, size // ae.factor
    scale = settings.scale or _measure_scale(prepared, moments, params.seed, settings.batch_size)

    def make_part(rows: range) -> pa.RecordBatch:
        parts = [
            moments(np.arange(start, min(start + settings.batch_size, rows.stop)))
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
    if (further := settings.finetune_decoder) is not None:
        learn(
            "decoder",
            "finetune_decoder",
            further,
            lambda a: DecoderLearner(ae, prepared, latents, further, a, params.seed),
        )
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
    chosen = np.sort(np.random.default_rng([seed, 1]).permutation(prepared.rows_of("train"))[:SCALE_IMAGES])
    rng = np.random.default_rng([seed, 2])
    total = total_sq = count = 0.0
    for start in range(0, len(chosen), batch_size):
        mean, logvar = np.split(moments(chosen[start : start + batch_size]), 2, axis=1)
        latents = mean + np.exp(0.5 * logvar) * rng.standard_normal(mean.shape)
        total += float(latents.sum())
        total_sq += float((latents**2).sum())
        count += latents.size
    return 1 / math.sqrt(total_sq / count - (total / count) ** 2)


def _network(settings: LatentsParams, size: int, seed: int) -> Autoencoder:
    """The autoencoder, before it learns what it has to learn here.

    Args:
        size: the images' side.
    """
    if settings.pretrained:
        ae = autoencoder.load(settings.weights, "correct params.yaml: latents.path")
    else:
        torch.manual_seed(seed)
        ae = autoencoder.unfitted(settings, size)
    autoencoder.require_multiple(size, ae.factor)
    return ae


def _fit_linear(ae: Linear, prepared: ArrowFile, settings: LatentsParams, seed: int) -> None:
    """Fit the linear autoencoder to training images, drawn by seed where not all are taken."""
    own, rows = settings.linear, prepared.rows_of("train")
    if own.images is not None:
        rows = np.sort(np.random.default_rng([seed, 4]).permutation(rows)[: own.images])

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), settings.batch_size):
            yield images_at(prepared, rows[start : start + settings.batch_size])

    linear.fit(ae.net, batches, own.noise)
