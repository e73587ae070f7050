"""`vap audit copies`: are there copies of training images among the samples?

Each sample is compared with every training image by the correlation of their grey values, on 32 x 32 pixels,
over mirror images and over crops of the training image. Images of one kind of examination are alike, so what
counts is not how large the best correlation is but how much larger than that with an image of any other
group (lesion, patient, video): the ratio (1 - best) / (1 - best of another group), near 1 for a new image and
near 0 for a copy. The test images, which no generator has seen, give the ratio below which a sample is called
a copy: 1 % of them lie below. What the audit finds is measured in the same run, on planted copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from vap.common.artifacts import ArrowFile, atomic
from vap.common.errors import VapError
from vap.common.markup import markdown, write_csv
from vap.common.places import prepared_path, samples_path, set_up_torch
from vap.common.progress import Progress
from vap.datasets.images import Pixels, decode, fit, write_grid
from vap.metrics.evaluate import SPLITS, ImageSets, split_rows
from vap.params import Params

SIDE = 32  # pixels at which images are compared
SMALLEST = 24  # pixels of the smallest crop that is looked for: three quarters of the side
BLUR = 0.7  # pixels: standard deviation of the blur of both sides, so that a blurred copy correlates as well
FALSE_ALARMS = 0.01  # share of the test images below the threshold
MOST = 1000  # test images looked at
PLANTED = 100  # copies of each kind
SHOWN = 12  # pairs on the picture
QUERIES, BLOCK = 32, 512  # samples and training images compared at once
COLUMNS = ("index", "label", "training_image", "training_label", "correlation", "ratio", "copy")


@dataclass
class Copies:
    """What an audit found.

    Attributes:
        index: place of each sample in the samples' file.
        nearest: row of the training image that correlates best, of each sample.
        correlation, ratio: of each sample, in -1..1 and 0..1.
        threshold: ratio below which a sample is called a copy.
        test_ratio: of the test images.
        found: kind of planted copy to the share that was called.
        features: network to the median distance of a sample to its nearest training image, over that of a
            test image.
    """

    nearest: list[int]
    correlation: Tensor
    ratio: Tensor
    threshold: float
    test_ratio: Tensor
    found: dict[str, float]
    features: dict[str, float]

    @property
    def called(self) -> Tensor:
        return self.ratio < self.threshold


class TrainingImages:
    """The training split of a dataset, ready to be compared with: 4 kB an image."""

    def __init__(self, prepared: ArrowFile, device: torch.device) -> None:
        self.rows = prepared.rows_of("train")
        groups, ids = prepared.column("group"), prepared.column("id")
        names = [groups[row] or ids[row] for row in self.rows]
        _, codes = np.unique(names, return_inverse=True)
        self.groups = torch.from_numpy(codes).to(device)
        pieces = [
            small_grey(piece).to(device)
            for piece in _pieces((decode(prepared.value("image", int(row))) for row in self.rows), BLOCK)
        ]
        self.images = torch.cat(pieces)

    def compare(
        self, images: Iterable[Pixels], progress: Progress | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest training image of each image.

        Args:
            images: uint8 (H, W, 3).

        Returns:
            place (n,) among the training images; correlation (n,); ratio (n,) in 0..1.
        """
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for piece in _pieces(images, QUERIES):
            queries = small_grey(piece).to(self.images.device)
            parts = (self.images[i : i + BLOCK] for i in range(0, len(self.images), BLOCK))
            correlation = torch.cat([correlations(queries, part) for part in parts], dim=1)  # (B, N)
            best, place = correlation.max(dim=1)
            own = self.groups[place][:, None] == self.groups[None]
            other = correlation.masked_fill(own, -1).amax(dim=1)
            ratio = (1 - best).clamp_min(0) / (1 - other).clamp_min(1e-6)
            found.append((place.cpu(), best.cpu(), ratio.clamp_max(1).cpu()))
            if progress is not None:
                progress.advance(len(piece))
        place, best, ratio = (torch.cat(values) for values in zip(*found, strict=True))
        return place, best, ratio


def small_grey(images: Sequence[Pixels]) -> Tensor:
    """Grey values (n, 1, SIDE, SIDE), float32, slightly blurred, of images uint8 (H, W, 3)."""
    pixels = torch.from_numpy(np.stack([fit(image, SIDE, "squash") for image in images]))
    grey = pixels.float().mean(dim=3)[:, None]
    radius = math.ceil(3 * BLUR)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * BLUR**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(grey, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))


def correlations(queries: Tensor, images: Tensor) -> Tensor:
    """The best correlation of each query, or its mirror image, with a square part of each image.

    Args:
        queries, images: (B, 1, S, S) and (N, 1, S, S).

    Returns:
        (B, N) in -1..1: the maximum of the Pearson correlation over parts of SMALLEST to S pixels a side, to
        whose size the query is scaled down, at all places. Of a part without contrast it is 0.
    """
    side, best = images.shape[-1], torch.full((len(queries), len(images)), -1.0, device=images.device)
    for width in range(side, SMALLEST - 1, -1):
        scaled = queries
        if width < side:
            scaled = F.interpolate(queries, (width, width), mode="bilinear", antialias=True)
        templates = torch.cat([scaled, scaled.flip(-1)])
        templates = templates - templates.mean((-1, -2), keepdim=True)
        templates = templates / templates.flatten(1).norm(dim=1).clamp_min(1).view(-1, 1, 1, 1)
        mean = F.avg_pool2d(images, width, 1)
        variance = F.avg_pool2d(images**2, width, 1) - mean**2
        spread = (variance.clamp_min(1e-3) * width**2).sqrt()
        found = (F.conv2d(images, templates) / spread).flatten(2).amax(dim=2)  # (N, 2B)
        plain, mirrored = found[:, : len(queries)], found[:, len(queries) :]
        best = torch.maximum(best, torch.maximum(plain, mirrored).T)
    return best.clamp(-1, 1)


# ── planted copies ──────────────────────────────────────────────────────────────────────────────────


def _recolored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    values = (np.asarray(image) / 255) ** rng.uniform(0.8, 1.25) * rng.uniform(0.7, 1.3, 3)
    return Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))


def _cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = round(image.width * rng.uniform(0.78, 0.95))
    left, top = rng.integers(0, image.width - side + 1, 2)
    return image.crop((left, top, left + side, top + side)).resize(image.size, Image.Resampling.BICUBIC)


def _noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    noisy = np.asarray(image) + rng.normal(0, 6, (*image.size[::-1], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(image.width / 64 * rng.uniform(1, 2)))


def _mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


KINDS: dict[str, Sequence[Callable[[Image.Image, np.random.Generator], Image.Image]]] = {
    "exact": (),
    "noise": (_noisy,),
    "mirrored": (_mirrored,),
    "recolored": (_recolored,),
    "cropped": (_cropped,),
    "blurred": (_blurred,),
    "mirrored, cropped, recolored": (_mirrored, _cropped, _recolored),
}


def planted(prepared: ArrowFile, kind: str, seed: int) -> Iterator[Pixels]:
    """At most PLANTED copies of training images, changed as `kind` says: uint8 (H, W, 3)."""
    rng = np.random.default_rng([seed, 36])
    for row in rng.permutation(prepared.rows_of("train"))[:PLANTED]:
        image = Image.fromarray(decode(prepared.value("image", int(row))))
        for change in KINDS[kind]:
            image = change(image, rng)
        yield np.asarray(image)


# ── the audit ───────────────────────────────────────────────────────────────────────────────────────


def audit_copies(
    params: Params, dataset: str, method: str, condition: str, folder: Path = Path("results/audit")
) -> Path:
    """Write METHOD-CONDITION-copies.csv, .md and .png under results/audit/{dataset}/.

    Returns:
        their path without a suffix.

    Raises:
        VapError: there are no samples, or no training or test images.
    """
    device = set_up_torch(params.compute)
    prepared = ArrowFile(prepared_path(dataset), "prepared")
    samples = ArrowFile(samples_path(dataset, method, condition), "samples")
    for split in SPLITS:
        if not len(prepared.rows_of(split)):
            expected = "images to compare with" if split == "train" else "images that no generator has seen"
            raise VapError(prepared.path, f"no image of split {split}", expected, "prepare the dataset again")
    result = find(params, prepared, samples, device)
    target = folder / dataset / f"{method}-{condition}-copies"
    labels, ids = prepared.column("label"), prepared.column("id")
    columns = zip(
        samples.column("index"), samples.column("label"), result.nearest, result.correlation, result.ratio,
        result.called, strict=True,
    )  # fmt: skip
    rows = [
        (index, label, ids[row], labels[row], f"{c:.4f}", f"{ratio:.4f}", int(called))
        for index, label, row, c, ratio, called in columns
    ]
    with atomic(target.with_suffix(".csv")) as part, part.open("w", encoding="utf-8", newline="") as file:
        write_csv(file, COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in rows))
    with atomic(target.with_suffix(".md")) as part:
        title = (
            f"Copies of training images among the samples of {method} on {dataset}, {condition} descriptions"
        )
        part.write_text(_markdown(title, result), encoding="utf-8")
    likest = result.ratio.argsort(stable=True)[:SHOWN].tolist()
    pairs = [decode(samples.value("image", i)) for i in likest]
    pairs += [decode(prepared.value("image", result.nearest[i])) for i in likest]
    write_grid(target.with_suffix(".png"), pairs, columns=len(likest))
    return target


def find(params: Params, prepared: ArrowFile, samples: ArrowFile, device: torch.device) -> Copies:
    """Compare all samples, the test images and the planted copies with the training images."""
    training = TrainingImages(prepared, device)
    tests = split_rows(prepared, "test", MOST, params.seed)
    with Progress(f"copies {samples.path.stem}", len(samples) + len(tests), "img") as progress:
        drawn = (decode(samples.value("image", row)) for row in range(len(samples)))
        place, correlation, ratio = training.compare(drawn, progress)
        unseen = (decode(prepared.value("image", row)) for row in tests)
        test_ratio = training.compare(unseen, progress)[2]
    threshold = test_ratio.sort().values[int(FALSE_ALARMS * len(tests))].item()
    found = {
        kind: (training.compare(planted(prepared, kind, params.seed))[2] < threshold).float().mean().item()
        for kind in KINDS
    }
    nearest = [int(training.rows[i]) for i in place.tolist()]
    features = in_features(params, prepared, samples, tests, device)
    return Copies(nearest, correlation, ratio, threshold, test_ratio, found, features)


def in_features(
    params: Params, prepared: ArrowFile, samples: ArrowFile, tests: Sequence[int], device: torch.device
) -> dict[str, float]:
    """Network to the median distance of a sample to the nearest training image, over that of a test image."""
    sets = ImageSets(params.evaluate, device)
    train = [int(row) for row in prepared.rows_of("train")]
    label = f"copies {samples.path.stem}"
    of_train = sets.get(prepared, train, label)
    of_samples, of_tests = sets.get(samples, range(len(samples)), label), sets.get(prepared, tests, label)
    names = {"pooled": params.evaluate.features, "prc": params.evaluate.prc_features}
    found = {}
    for key, network in names.items():
        if network is not None and key in of_train:
            far, unseen = (nearest(own[key], of_train[key])[0].median() for own in (of_samples, of_tests))
            found[network] = (far / unseen).item()
    return found


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(distance, place in b) of the nearest row of b (N, d) for each row of a (n, d); a block at a time."""
    found = [torch.cdist(a[i : i + QUERIES], b).min(dim=1) for i in range(0, len(a), QUERIES)]
    return torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])


def _pieces(images: Iterable[Pixels], size: int) -> Iterator[list[Pixels]]:
    piece: list[Pixels] = []
    for image in images:
        piece.append(image)
        if len(piece) == size:
            yield piece
            piece = []
    if piece:
        yield piece


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    z = 1.959964
    middle = (count + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(count * (n - count) / n + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _markdown(title: str, result: Copies) -> str:
    count, n = int(result.called.sum()), len(result.ratio)
    low, high = wilson(count, n)
    alarms = (result.test_ratio < result.threshold).float().mean().item()
    medians = [f"{values.median().item():.2f}" for values in (result.ratio, result.test_ratio)]
    rows: list[tuple[str, Any]] = [
        ("samples called copies", f"{count} of {n}: {count / n:.1%} [{low:.1%}, {high:.1%}]"),
        ("test images called copies", f"{alarms:.1%} of {len(result.test_ratio)}"),
        ("threshold of the ratio", f"{result.threshold:.3f}"),
        ("median ratio of samples, of test images", " and ".join(medians)),
        *((f"planted copies found: {kind}", f"{share:.0%}") for kind, share in result.found.items()),
        *(
            (
                f"distance to the nearest training image in {markdown(name)}, over that of test images",
                f"{far:.2f}",
            )
            for name, far in result.features.items()
        ),
    ]
    lines = [f"# {markdown(title)}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += [
        "",
        "A sample is called a copy where it correlates with one training image much better than with those",
        "of all other groups: where (1 - best correlation) / (1 - best of another group) lies below the",
        "threshold. The threshold is that of the test images, which the generator has not seen. The picture",
        "shows the samples of the smallest ratios, and below each its nearest training image.",
        "docs/metrics.md says what this finds, and what it cannot find.",
    ]
    return "\n".join(lines) + "\n"
