"""sample: draw images from a trained method, by class and description."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from vap.autoencoders import autoencoder
from vap.autoencoders.autoencoder import Autoencoder
from vap.common.artifacts import SCHEMAS, ArrowFile, build_arrow, provenance, rank_and_world
from vap.common.errors import VapError
from vap.common.places import (
    autoencoder_path,
    bank_path,
    model_path,
    preview_path,
    samples_path,
    set_up_torch,
    to_images,
)
from vap.datasets.images import decode, encode, write_grid
from vap.datasets.share import share_of
from vap.diffusion.sampler import noise_of
from vap.generators.base import OneStepMethod, Request, checked
from vap.generators.diffusion import DiffusionMethod
from vap.generators.drawing import draw
from vap.generators.trained import CONFIG, WEIGHTS, open_model
from vap.params import ComputeParams, Kind, MethodParams, Params, SampleParams, SamplerParams, ScheduleParams
from vap.prompts.bank import PromptBank
from vap.prompts.draws import Draws, draws_of, parse_condition, rng_of
from vap.runs import run_of
from vap.training.batch import Condition
from vap.training.data import condition_of, null_of

PREVIEW = 64  # images
WITH_DECODER: tuple[Kind, ...] = ("latents", "prompts")


class Generator:
    """A trained model, with its decoder where it has one, ready to draw.

    Args:
        folder: of the model, as the train stage writes it.
        methods: section `method` of params.yaml, for how to draw.
        settings: section `sample`.
        compute: says whether the network is compiled; None: it is not.
        decoder: folder of the autoencoder; None: the dataset's own.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        methods: Mapping[str, MethodParams],
        settings: SampleParams,
        compute: ComputeParams | None = None,
        decoder: Path | None = None,
    ) -> None:
        self.config, self.method, self.shapes, self.net = open_model(folder, methods)
        self.settings = settings
        self.classes: list[str] = self.config["classes"]
        schedule = self.config["schedule"]
        place = f"{folder / CONFIG}: schedule"
        self.schedule = None if schedule is None else checked(ScheduleParams, schedule, place, "train again")
        self.net.eval()
        passes = -(-settings.n // settings.batch_size) * settings.steps
        mode = None if compute is None else compute.compile_mode(device.type, passes)
        if mode is not None:
            self.net.compile(mode=mode)  # type: ignore[no-untyped-call]
        self.autoencoder: Autoencoder | None = None
        if self.method.kind in WITH_DECODER:
            self.autoencoder = autoencoder.load(decoder or autoencoder_path(self.config["dataset"]))
        self.to(device)

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        self.net.to(device)
        if self.autoencoder is not None:
            self.autoencoder.net.to(device)
        self.device = device

    def varied(
        self,
        guidance_scale: float | None = None,
        steps: int | None = None,
        precision: Literal["fp32", "bf16"] | None = None,
    ) -> Generator:
        """The same networks under other settings; None leaves one as it is.

        Args:
            guidance_scale: w >= 0 in eps_u + w (eps_c - eps_u); 1 is no guidance.
            steps: evaluations of the network, 1 to those of the noise schedule.

        Raises:
            VapError: out of range, or the method makes an image in one pass.
        """
        other, name = copy.copy(self), self.config["method"]
        if precision is not None:
            other.settings = self.settings.model_copy(update={"precision": precision})
        if guidance_scale is None and steps is None:
            return other
        if self.schedule is None or not isinstance(self.method, DiffusionMethod):
            where = "guidance_scale" if guidance_scale is not None else "steps"
            found = f"{guidance_scale if guidance_scale is not None else steps} for {name}"
            raise VapError(where, found, "none: this method makes an image in one pass", "leave it out")
        own = self.method.sample
        if guidance_scale is not None:
            if not (math.isfinite(guidance_scale) and guidance_scale >= 0):
                raise VapError("guidance_scale", str(guidance_scale), "a number of 0 or more", "correct it")
            own = own.model_copy(update={"guidance_scale": float(guidance_scale)})
        if steps is not None:
            most = self.schedule.timesteps
            if not 1 <= steps <= most:
                expected = f"1 to {most}, the steps of the noise schedule"
                raise VapError("steps", str(steps), expected, "correct it")
            other.settings = other.settings.model_copy(update={"steps": steps})
            if own.sampler is not None:
                own = own.model_copy(update={"sampler": own.sampler.model_copy(update={"steps": steps})})
        method = copy.copy(self.method)
        method.sample, other.method = own, method
        return other

    def told(self) -> dict[str, Any]:
        """How it draws: precision, the method's own settings, and a diffusion method's sampler."""
        found: dict[str, Any] = {"precision": self.settings.precision, **self.method.sample.model_dump()}
        if isinstance(self.method, DiffusionMethod):
            how = self.method.sampling(self.settings)
            found["sampler"] = how.model_dump(include=set(SamplerParams.model_fields))
        return found

    def draw(
        self,
        indices: list[int],
        labels: list[int],
        prompts: list[int] | None,
        bank: PromptBank | None,
        seed: int,
        draws: Draws | None = None,
    ) -> np.ndarray:
        """Images of given samples; each depends on its index, class, description and seed alone.

        Args:
            indices: of the samples in the run.
            labels: class indices.
            prompts: numbers of descriptions; None for class-only methods.
            bank: that the method was trained on.
            draws: whose descriptions `prompts` number; None for the bank's rows.

        Returns:
            uint8 [B, image_size, image_size, 3].
        """
        B, s = len(indices), self.shapes
        condition = condition_of(labels, prompts, draws or bank)
        null = null_of(B, s.num_classes, bank if prompts is not None else None)
        return self.draw_from(indices, condition, null, seed)

    @torch.inference_mode()
    def draw_from(self, indices: list[int], condition: Condition, null: Condition, seed: int) -> np.ndarray:
        """As `draw`, from a condition and its unconditional counterpart."""

        def noise(shape: tuple[int, ...], draw: int) -> Tensor:
            return torch.stack([noise_of(seed, i, shape, draw) for i in indices]).to(self.device)

        request = Request(condition.to(self.device), null.to(self.device), noise)
        if isinstance(self.method, OneStepMethod):
            found = self.method.draw(self.net, request, self.settings.precision)
        else:
            assert isinstance(self.method, DiffusionMethod)
            assert self.schedule is not None
            found = draw(self.method, self.net, self.shapes, request, self.settings, self.schedule)
        if self.autoencoder is not None:
            return to_images(self.autoencoder.decode(found / self.config["scale"]))
        if (side := self.config["image_size"]) != self.shapes.size:
            found = F.interpolate(found.float(), (side, side), mode="bicubic", align_corners=False)
        return to_images(found)


def plan_labels(counts: list[int], n: int, how: str, seed: int, kind: Kind = "latents") -> list[int]:
    """Class index of each of n samples: "empirical", as often as in training, or "uniform".

    "paper-released" is what the authors' scripts did: uniform, but for a method that draws with descriptions
    the classes of these, so as often as in training. Exact shares (largest remainder), shuffled by seed, so
    that the label prior has no sampling noise.
    """
    if how == "paper-released":
        how = "empirical" if kind == "prompts" else "uniform"
    weights = np.asarray(counts, float) if how == "empirical" else (np.asarray(counts) > 0).astype(float)
    exact = weights / weights.sum() * n
    shares = np.floor(exact).astype(int)
    for i in np.argsort(-(exact - shares), kind="stable")[: n - shares.sum()]:
        shares[i] += 1
    labels = np.repeat(np.arange(len(counts)), shares)
    return np.random.default_rng([seed, 10]).permutation(labels).tolist()  # type: ignore[no-any-return]


def run(params: Params, dataset: str, name: str, condition: str) -> Path:
    """Write {name}-{condition}.arrow and its preview .png (places: vap.common.places.samples_path).

    Args:
        name: of a method, or of a run of one (vap.runs).
        condition: where the descriptions come from (vap.prompts.draws).

    Raises:
        VapError: params.yaml has no such run; the model, the bank or the decoder is absent or does not fit; a
            class has no description; or a method of the class alone is asked for others than `seen`.
    """
    parse_condition(condition)
    wanted = run_of(params, name)
    method, seed = wanted.method, wanted.seed
    device = set_up_torch(params.compute)
    settings, model = params.sample, model_path(dataset, name)
    generator = Generator(model, device, params.method, settings, params.compute)
    inputs = {"config": model / CONFIG, "model": model / WEIGHTS}
    if generator.autoencoder is not None:
        decoder = autoencoder_path(dataset)
        inputs["autoencoder_config"] = decoder / autoencoder.CONFIG
        inputs["autoencoder"] = decoder / autoencoder.WEIGHTS
    bank, draws = None, None
    if generator.method.kind == "prompts":
        inputs["prompts"] = bank_path(dataset)
        bank = PromptBank(bank_path(dataset))
        share = share_of(bank.file, wanted.percent, params.seed)
        others = params.ablation.other
        draws = draws_of(condition, bank, generator.classes, device, others.get(dataset), share)
        inputs |= draws.inputs
    elif condition != "seen":
        found = f"{method}, which draws by the class alone"
        raise VapError(f"condition {condition}", found, "a method that takes descriptions", "name seen")
    record = provenance(
        "sample",
        (dataset, name, condition),
        params={
            "seed": seed,
            "sample": settings.model_dump(),
            "method_sample": params.method[method].sample.model_dump(),
        },
        inputs=inputs,
        libraries=("numpy", "pillow", "pyarrow", "safetensors", "torch", *libraries_of(generator)),
        modules=[f"vap.generators.{method}"],
    )
    labels = plan_labels(
        generator.config["class_counts"], settings.n, settings.labels, seed, generator.method.kind
    )
    prompts: list[int] | None = None
    if draws is not None:
        prompts = [draws.draw(generator.classes[label], rng_of(seed, i)) for i, label in enumerate(labels)]

    def make_part(rows: range) -> pa.RecordBatch:
        chosen = prompts[rows.start : rows.stop] if prompts is not None else None
        images = generator.draw(
            list(rows),
            labels[rows.start : rows.stop],
            chosen,
            bank,
            seed,
            draws,
        )
        texts = [draws.text(row) for row in chosen] if draws and chosen else [None] * len(rows)
        with ThreadPoolExecutor(writers) as pool:  # PNG takes more time than a GPU takes to draw
            encoded = list(pool.map(encode, images))
        return pa.RecordBatch.from_arrays(
            [
                pa.array(list(rows), pa.int64()),
                pa.array([generator.classes[labels[i]] for i in rows], pa.string()),
                pa.array(texts, pa.string()),
                pa.array(encoded, pa.binary()),
            ],
            schema=SCHEMAS["samples"],
        )

    writers = (os.cpu_count() or 1) if device.type == "cuda" else 1
    path = samples_path(dataset, name, condition)
    build_arrow(
        path,
        "samples",
        settings.n,
        make_part,
        record,
        part_rows=settings.batch_size,
        metadata={"classes": generator.classes},
    )
    if not rank_and_world()[0]:
        _preview(path, preview_path(dataset, name, condition))
    return path


def libraries_of(generator: Generator) -> set[str]:
    """What the networks are built of, beyond torch."""
    decoder = generator.autoencoder
    return {*generator.method.libraries, *(decoder.libraries if decoder is not None else ())}


def _preview(samples: Path, target: Path) -> None:
    """The first samples as one PNG."""
    file = ArrowFile(samples, "samples")
    images = [decode(file.value("image", row)) for row in range(min(PREVIEW, len(file)))]
    write_grid(target, images)
