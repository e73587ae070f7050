"""What is wrong with the settings, told before the first stage runs.

The schema (vap.params) sees every key but those that are a method's own; these, and the questions' versions
and attributes, only the module or the file that they belong to can judge. So with what one section asks of
another: whether a network can be built for the images, whether there are samples enough to be measured.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vap.common.errors import VapError
from vap.params import PARAMS_FILE, Params

if TYPE_CHECKING:
    from vap.generators.base import Method

# ── what is judged together ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """Settings that are judged together.

    Attributes:
        judge: raises a VapError.
        settings: all of them that the judgement follows from, as pydantic's `include`; with `latents` the
            autoencoder's config.json too, once it is there.
        code: files that it follows from too: patterns below this package.
        libraries: distributions that it follows from too.
    """

    judge: Callable[[Params], None]
    settings: dict[str, Any]
    code: tuple[str, ...]
    libraries: tuple[str, ...] = ()

    def digest(self, params: Params) -> str:
        """sha256 over all that the judgement follows from."""
        digest = hashlib.sha256(params.model_dump_json(include=self.settings).encode())
        digest.update("".join(map(version, self.libraries)).encode())
        package = Path(__file__).parents[1]
        files = [file for pattern in self.code for file in sorted(package.glob(pattern))]
        if "latents" in self.settings and params.latents.pretrained:
            files += params.latents.weights.glob("config.json")
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def check(params: Params) -> None:
    """Judge all settings. Imports torch, timm and diffusers.

    Raises:
        VapError: a key is unknown, missing or mistyped, a method is listed under a kind that it is not of,
            there is no such version of the questions, or no such attribute; a network cannot be built, or
            timm does not have it; or sections disagree.
    """
    for part in PARTS:
        part.judge(params)


def check_methods(params: Params) -> None:
    """Judge the settings of every method and the questions of every dataset."""
    from vap.captioning.questions import load_questions
    from vap.generators.base import method_of

    names = dict.fromkeys([*params.rows, *params.ablation.without])
    methods = [method_of(params, name) for name in names]
    own = params.caption
    for dataset in params.datasets:
        load_questions(params.dataset[dataset].modality, own.questions, own.leave_out)
    _check_datasets(params, methods)
    _check_counts(params)
    for method in methods:
        _check_training(params, method)
    _check_networks(params, methods)


def check_timm(params: Params) -> None:
    """Judge the names of timm's networks, and the classifiers' image sizes."""
    import torch

    from vap.common.weights import require_timm
    from vap.downstream.classifier import Classifier
    from vap.metrics.features import TIMM

    for key in params.evaluate.with_weights:
        features: str = getattr(params.evaluate, key)
        if features.startswith(TIMM):
            require_timm(f"{PARAMS_FILE}: evaluate.{key}", features.removeprefix(TIMM))
    for name in params.downstream.classifiers:
        fresh = params.downstream.classifier[name].model_copy(update={"weights": None})
        with torch.device("meta"):  # shapes alone: nothing is computed
            Classifier(name, fresh, num_classes=2)


PARTS = (
    Part(
        check_methods,
        {
            **dict.fromkeys(("methods", "learns_from", "method", "datasets", "dataset", "ablation"), True),
            **dict.fromkeys(("prepare", "caption", "latents", "train", "sample", "evaluate"), True),
            "downstream": {"sources", "synthetic"},
            "compute": {"processes"},
        },
        ("workflow/check.py", "generators/**/*.py", "autoencoders/*.py", "captioning/questions/*.yaml"),
    ),
    Part(
        check_timm,
        {"evaluate": {"features", "prc_features"}, "downstream": {"classifiers", "classifier"}},
        ("workflow/check.py", "common/weights.py", "downstream/classifier.py"),
        ("timm",),
    ),
)

# ── methods ─────────────────────────────────────────────────────────────────────────────────────────


def _check_networks(params: Params, methods: list[Method[Any]]) -> None:
    """Build every network, without weights, for the shapes that follow from the settings."""
    import torch

    from vap.autoencoders.autoencoder import require_multiple, sketch
    from vap.generators.base import Shapes, built

    side, factor, channels = params.prepare.image_size, 1, 3
    if any(method.kind in ("latents", "prompts") for method in methods):
        factor, channels = sketch(params.latents, side)
        require_multiple(side, factor)
    for method in methods:
        if method.kind in ("latents", "prompts"):
            shapes = Shapes(side // factor, channels, num_classes=2, context_dim=8, context_tokens=8)
            data = f"latents of prepare.image_size {side} over the autoencoder's {factor}"
        else:
            size = getattr(method.model, "image_size", side)
            if size > side:
                where = f"{PARAMS_FILE}: method.{method.name}.model.image_size"
                expected = f"at most {side}, prepare.image_size"
                raise VapError(where, str(size), expected, "lower it, or prepare larger images")
            shapes, data = Shapes(size, 3, num_classes=2), f"images of side {size}"
        # a network may compute with numbers while it is made, which this device has not: its training judges
        with contextlib.suppress(RuntimeError), torch.device("meta"):
            built(method, shapes, data)


def _check_training(params: Params, method: Method[Any]) -> None:
    """What the training and the sampling of a method would refuse."""
    import torch

    from vap.diffusion.schedule import Schedule
    from vap.generators.diffusion import DiffusionMethod
    from vap.training.loop import batch_share

    section, processes = f"method.{method.name}.train", params.compute.processes
    batch_share(method.train.batch_size, processes, section)
    method.check_training(params.train, processes)
    if isinstance(method, DiffusionMethod):
        method.sampling(params.sample)
    if (schedule := method.schedule(params.train)) is None:
        return
    T = schedule.timesteps
    alpha, sigma = (
        value.float() for value in Schedule(**schedule.model_dump()).alpha_sigma(torch.tensor([1, T]))
    )
    if not (alpha[1] > 0 and sigma[0] > 0):  # NaN is not
        where = "train" if schedule == params.train.schedule else section
        found = f"no noise at step 1 of {T}" if alpha[1] > 0 else f"nothing left of the image at step {T}"
        fix = "raise beta_start" if alpha[1] > 0 else "lower beta_end or timesteps"
        expected = "betas such as 0.0001 to 0.02 over 1000 steps"
        raise VapError(f"{PARAMS_FILE}: {where}.schedule", found, expected, fix)


# ── sections that disagree ──────────────────────────────────────────────────────────────────────────


def _check_counts(params: Params) -> None:
    """More images asked for than will be there."""
    n, own, source = params.sample.n, params.evaluate, params.downstream
    fewer = "lower it, or measure more images"
    synthetic = source.synthetic if source.sources else None
    for key, value, most, what, fix in (
        ("evaluate.n", own.n, n, "sample.n", "lower it, or raise sample.n"),
        ("evaluate.neighbours", own.neighbours, own.n - 1, "evaluate.n - 1", fewer),
        ("evaluate.isc_splits", own.isc_splits, own.n, "evaluate.n", fewer),
        ("downstream.synthetic", synthetic or 0, n, "sample.n", "lower it, or raise sample.n"),
    ):
        if value > most:
            raise VapError(f"{PARAMS_FILE}: {key}", str(value), f"{most} or less ({what})", fix)


def _check_datasets(params: Params, methods: list[Method[Any]]) -> None:
    """What cannot be drawn or described."""
    from vap.captioning.questions import require_server
    from vap.datasets.phantom import SIZES

    for dataset in params.datasets:
        own = params.dataset[dataset]
        if own.adapter == "phantom" and not SIZES[0] <= params.prepare.image_size <= SIZES[1]:
            expected = f"{SIZES[0]} to {SIZES[1]}, the sizes of the phantoms of {dataset}"
            where, found = f"{PARAMS_FILE}: prepare.image_size", str(params.prepare.image_size)
            raise VapError(where, found, expected, "choose another size")
        if any(method.kind == "prompts" for method in methods):
            require_server(params.caption.server, dataset, own.modality)


def named_files(params: Params) -> dict[str, str]:
    """The files and folders of weights, and the font, that the settings name, by dotted key."""
    named: dict[str, str | None] = {}
    if params.latents.pretrained:
        named["latents.path"] = params.latents.path
    named["latents.lpips_path"] = params.latents.lpips_path
    named["figure.font"] = params.figure.font
    for key in params.evaluate.with_weights:
        named[f"evaluate.{key}_path"] = getattr(params.evaluate, f"{key}_path")
    for name in dict.fromkeys([*params.rows, *params.ablation.without]):
        train = params.method[name].train.model_dump()
        named[f"method.{name}.train.start_from"] = train.get("start_from")
    for name in params.downstream.classifiers:
        named[f"downstream.classifier.{name}.weights"] = params.downstream.classifier[name].weights
    return {key: path for key, path in named.items() if path is not None}


def absent_files(params: Params) -> Iterator[str]:
    """A line for each file or folder of weights that the settings name and that is not there (yet)."""
    for key, path in named_files(params).items():
        if not Path(path).exists():
            yield f"{PARAMS_FILE}: {key}: {path}: no such file yet; the stage that reads it will stop there"
