"""`vap doctor`: what this machine has of all that a run needs, and where to get the rest."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from vap import __version__
from vap.common.errors import VapError, in_brief, plain
from vap.params import PARAMS_FILE, Params, load
from vap.workflow.check import named_files

DISTRIBUTION = "vap-diffusion"
SHOWN = ("torch", "diffusers", "transformers", "timm", "dvc", "snakemake")
PROGRAMS = ("git", "dvc", "snakemake")
LEAST, COMFORTABLE = 0.5, 5.0  # GB of free disk: below the first nothing can be written for long
OK, MISSING, BROKEN = "ok", "missing", "BROKEN"
Finding = tuple[str, str, str]  # state, what, words

# Where weights are to be had. The Hub is Hugging Face's.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity, release v0.2.0"
VGG16 = "vgg16-397923af.pth of download.pytorch.org/models"
AUTOENCODERS = {
    "taesd": "taesd_encoder.safetensors and taesd_decoder.safetensors of madebyollin/taesd on the Hub",
    "kl": "config.json and diffusion_pytorch_model.safetensors of Stable Diffusion's AutoencoderKL, for "
    "example stabilityai/sd-vae-ft-mse on the Hub",
}


def doctor() -> bool:
    """Print what was found; nothing is fetched.

    Returns:
        whether nothing is broken. What is only missing is no fault: a stage that needs it says so.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: it only looks into its cache
    good = True
    for title, findings in (("Software", _software()), ("Machine", _machine()), ("Project", _project())):
        print(f"{title}")
        for state, what, words in findings:
            good &= state != BROKEN
            print(plain(f"  {state:<8} {what}: {words}"))
    print("nothing is broken" if good else "something is BROKEN, see above")
    return good


# ── software ────────────────────────────────────────────────────────────────────────────────────────


def _software() -> Iterator[Finding]:
    yield OK, "vap", f"{__version__}, Python {platform.python_version()}, {Path(__file__).parents[1]}"
    unfit = 0
    try:
        wanted = [Requirement(line) for line in requires(DISTRIBUTION) or []]
    except PackageNotFoundError:
        wanted = []
        yield (
            MISSING,
            "requirements",
            f"{DISTRIBUTION} is not installed as a package; its needs are not known",
        )
    for need in wanted:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            found = None
        if found is None or not need.specifier.contains(found, prereleases=True):
            unfit += 1
            fix = f"install it: pip install '{need.name}{need.specifier}'"
            yield BROKEN, need.name, f"{found or 'not installed'}; expected {need.specifier or 'any'}; {fix}"
    if wanted and not unfit:
        yield OK, "packages", ", ".join(f"{name} {version(name)}" for name in SHOWN)


def _machine() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield BROKEN, "torch", f"cannot be imported ({in_brief(error)}); install it again"
    else:
        yield OK, "CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads unless told"
        yield from _gpus()
    free = shutil.disk_usage(".").free / 1e9
    state = BROKEN if free < LEAST else OK
    more = f"; {COMFORTABLE:g} GB or more are comfortable, see `vap cost`" if free < COMFORTABLE else ""
    yield state, "disk", f"{free:.1f} GB free in {Path.cwd()}{more}"


def _gpus() -> Iterator[Finding]:
    import torch

    if torch.backends.mps.is_available():
        yield OK, "GPU", "Apple's, through mps"
    elif not torch.cuda.is_available():
        yield OK, "GPU", "none that torch can use; everything runs on the CPU"
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        half = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield (
            OK,
            f"GPU {number}",
            f"{about.name}, {about.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}, {half}",
        )


# ── the project ─────────────────────────────────────────────────────────────────────────────────────


def _project() -> Iterator[Finding]:
    if not PARAMS_FILE.is_file():
        yield (
            OK,
            "settings",
            "no params.yaml here: `vap generate` needs none, the stages run in the project's folder",
        )
        return
    try:
        params = load()
    except VapError as error:
        yield BROKEN, "settings", str(error)
        return
    yield (
        OK,
        "settings",
        f"{PARAMS_FILE} of {len(params.datasets)} datasets and {len(params.methods)} methods",
    )
    for program in PROGRAMS:
        place = shutil.which(program)
        yield (
            (OK, program, place)
            if place
            else (MISSING, program, "not on PATH; activate .venv, or install it")
        )
    yield from _device(params)
    for dataset in params.datasets:
        folder = Path("data/raw") / dataset
        if folder.exists():
            yield OK, f"dataset {dataset}", str(folder)
        else:
            yield (
                MISSING,
                f"dataset {dataset}",
                f"no {folder}; `vap data check {dataset}` says where to get it",
            )
    yield from _weights(params)


def _device(params: Params) -> Iterator[Finding]:
    import torch

    name = params.compute.device
    if (name == "cuda" and not torch.cuda.is_available()) or (
        name == "mps" and not torch.backends.mps.is_available()
    ):
        yield BROKEN, "compute.device", f"{name} is not there; set it to auto"


def _weights(params: Params) -> Iterator[Finding]:
    from vap.prompts.places import locate

    name = params.encode.encoder
    try:
        place = locate(name)
        yield OK, "encode.encoder", f"{name}, in {place.folder}"
    except (VapError, ImportError) as error:
        told = (
            f"{error.found}; expected {error.expected}; {error.fix}" if isinstance(error, VapError) else error
        )
        yield MISSING, "encode.encoder", f"{name}: {told}"
    for key, path in named_files(params).items():
        if Path(path).exists():
            yield OK, key, path
        else:
            yield MISSING, key, f"{path}; get {source_of(params, key)}"


def source_of(params: Params, key: str) -> str:
    """Where the weights that a key names are to be had, in words."""
    section, *path = key.split(".")
    if key == "latents.path":
        return AUTOENCODERS[params.latents.autoencoder]
    if key == "latents.lpips_path":
        return f"weights-vgg16-lpips.pth of github.com/toshas/torch-fidelity, and {VGG16}"
    if section == "evaluate":
        features = getattr(params.evaluate, path[0].removesuffix("_path"))
        own = {"inception": INCEPTION, "vgg16": VGG16}
        return own.get(features, f"the weights of timm/{features.partition(':')[2]} on the Hub")
    if section == "method":
        return "official weights of github.com/baofff/U-ViT or facebookresearch/DiT, or a model of yours"
    if section == "downstream":
        model = params.downstream.classifier[path[1]].model
        return f"the weights of timm/{model} on the Hub"
    return "a .ttf, .otf or .ttc file, for example of Noto Sans"
