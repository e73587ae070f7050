"""What a cost rule works with: a job, its row, the rates, and the arithmetic that several rules share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vap.costs.count import Sizes, Work, autoencoder, method_sizes, one_step, sampling_pass, training_pass
from vap.costs.images import Images, images_of
from vap.params import Params

Device = Literal["cpu", "cuda"]
Rates = dict[str, Any]

FAMILY = {"stylegan": "stylegan", "cbdm": "convolution", "ldm": "convolution"}  # others are transformers
NULL_TOKENS = 2  # of the empty description


@dataclass(frozen=True)
class Job:
    """A stage with its matrix item; `words` are its command's, after `vap`."""

    stage: str
    item: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """What one job takes.

    Attributes:
        scales: what its cost grows with, in words.
        place: "GPU" or "CPU", whose hours they are.
        hours: of the job alone; None: not known.
        memory_gb: at its largest, of the device that computes.
        disk_gb: that stays; scratch_gb: more while it runs.
        basis: "measured", "assumed" or "measured + assumed", of the rates.
    """

    stage: str
    item: str
    scales: str
    place: str
    hours: float | None
    memory_gb: float | None
    disk_gb: float | None
    basis: str
    scratch_gb: float = 0.0
    notes: tuple[str, ...] = ()


# ── the arithmetic ──────────────────────────────────────────────────────────────────────────────────


def fid_flops(n: int, m: int, d: int) -> float:
    """Of a Fréchet distance as vap/metrics/fidelity.py has it: covariances of sets of more than d, the
    product of their roots, and its singular values (about 4 times the smaller side's cube).
    """
    roots = min(n, d), min(m, d)
    covariances = sum(2.0 * size * d**2 for size in (n, m) if size > d)
    return covariances + roots[0] * roots[1] * (2.0 * d + 4.0 * min(roots))


def pair_flops(n: int, m: int, d: int) -> float:
    """Of the inner products of all pairs, within either set and between them."""
    return float(d) * (n + m) ** 2


def training(params: Params, method: str, sizes: Sizes, batch: int) -> Work:
    """A training step of `batch` images: three times the forward pass; a GAN's step is counted whole."""
    work = training_pass(method, params.method[method], params.train, sizes, batch)
    return work if one_step(method) else work * 3


def sampling(params: Params, method: str, sizes: Sizes, batch: int, device: Device) -> tuple[Work, int, int]:
    """All evaluations for `batch` samples, without decoder; the sampler's steps, and the passes of a step."""
    entry = params.method[method]
    if one_step(method):
        return sampling_pass(method, entry, sizes, batch, 0), 1, 1
    own = entry.sample.model_dump().get("sampler")
    steps = params.sample.steps if own is None else int(own["steps"])
    once = sampling_pass(method, entry, sizes, batch, sizes.tokens)
    if entry.sample.guidance_scale in (0.0, 1.0):
        return once * steps, steps, 1
    # a GPU takes both halves together, the null prompt padded to the description
    tokens = sizes.tokens if device == "cuda" else min(NULL_TOKENS, sizes.tokens)
    other = sampling_pass(method, entry, sizes, batch, tokens)
    both = Work(
        once.flops + other.flops,
        once.kernels + other.kernels,
        once.activations,
        once.largest * (2 if device == "cuda" else 1),
        once.parameters,
    )
    return both * steps, steps, 2


class Model:
    """Rates, settings and counts, and what a rule asks of them."""

    def __init__(self, params: Params, device: Device, rates: Rates) -> None:
        self.params, self.device, self.rates = params, device, rates
        self.own = rates["devices"][device]
        self._images: dict[str, Images] = {}
        self.used: set[str] = set()  # where the rates of the job at hand come from

    @property
    def place(self) -> str:
        return "GPU" if self.device == "cuda" else "CPU"

    @property
    def basis(self) -> str:
        return " + ".join(sorted(self.used, reverse=True)) or "known"

    def rate(self, entry: Mapping[str, Any]) -> float:
        """A rate, remembered by its source."""
        self.used.add(str(entry["from"]).partition(":")[0])
        return float(entry["rate"])

    def threads(self, device: Device) -> int:
        return self.params.compute.threads if self.rates["devices"][device]["per_thread"] else 1

    def seconds(
        self, work: Work, what: str, precision: str, family: str, device: Device | None = None
    ) -> float:
        """Time of network passes on the device.

        Args:
            what: "train" or "sample".
            family: a method's name, or "transformer" or "convolution".
        """
        device = device or self.device
        own = self.rates["devices"][device]
        rates = own[what].get(family) or own[what][FAMILY.get(family, "transformer")]
        key = "fp32" if precision == "fp32" else "bf16"
        fallback = own[what][FAMILY.get(family, "transformer")] if key not in rates else rates
        flops_s = self.rate(fallback[key]) * 1e12 * self.threads(device)
        return float(work.flops / flops_s + work.kernels * own["kernel_s"]["rate"])

    def algebra(self, flops: float, key: str) -> float:
        return flops / (self.rate(self.own["metrics"][key]) * 1e12 * self.threads(self.device))

    def start(self) -> float:
        return float(self.rates["start_s"]["rate"])

    def images(self, dataset: str) -> Images:
        if dataset not in self._images:
            self._images[dataset] = images_of(self.params, dataset, self.rates["images"])
        return self._images[dataset]

    def stored(self, n: int | None, side: int | None = None, storage: str | None = None) -> float | None:
        """Bytes of n images."""
        side = side or self.params.prepare.image_size
        share = self.rates["prepare"]["stored"][storage or self.params.prepare.storage]
        return None if n is None else n * side**2 * 3 * share

    def text(self) -> tuple[int, int, tuple[str, ...]]:
        """Width and number of a description's token states, and a note where the width is not known."""
        known = self.rates["encode"]["encoders"].get(self.params.encode.encoder)
        tokens = min(self.rates["encode"]["description_tokens"], self.params.encode.max_tokens)
        if known is None:
            return (
                768,
                tokens,
                (f"encoder {self.params.encode.encoder} is not known: 768 numbers a token assumed",),
            )
        return known["width"], tokens, ()

    def sizes(self, dataset: str, method: str) -> Sizes:
        coder = autoencoder(self.params.latents.model_dump_json(), self.params.prepare.image_size)
        width, tokens, _ = self.text()
        classes = self.images(dataset).classes or 8
        return method_sizes(self.params, method, (coder.channels, coder.side), classes, width, tokens)
