"""The model card of a bundle: README.md in the Hugging Face Hub's form, with a YAML head."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from vap import __version__
from vap.common.artifacts import ArrowFile, file_sha256
from vap.common.errors import VapError
from vap.common.markup import markdown
from vap.common.places import captions_path, metrics_path, model_path, samples_path
from vap.generators.trained import WEIGHTS
from vap.params import Params, SamplerParams
from vap.runs import run_of
from vap.sampling.bundle import BUNDLE, DECODER

# Of the data, by adapter: as the Hub spells it for weights that are trained on it, and in words.
LICENCES = {
    "phantom": ("apache-2.0", "drawn by this project; Apache-2.0"),
    "isic2018": ("cc-by-nc-4.0", "CC BY-NC 4.0, https://challenge.isic-archive.com/data/#2018"),
    "isic2019": ("cc-by-nc-4.0", "CC BY-NC 4.0, https://challenge.isic-archive.com/data/#2019"),
    "chestxray14": ("other", "free to use, with citation, https://nihcc.app.box.com/v/ChestXray-NIHCC"),
    "colonoscopy": (
        "other",
        "of each part its own (PolypsSet CC0; SUN on request, research only; Mesejo's not stated)",
    ),
    "folder": ("other", "that of your images, which this project does not know"),
}
SOURCES = {"phantom": "phantoms: procedural drawings with known attributes, no medical images"}
DRAWING = (*SamplerParams.model_fields, "precision")  # keys of `sample` that change an image
# In the order of the card: key of the metrics' JSON, name, type on the Hub, key of the spread or None.
METRICS = (
    ("isc_mean", "Inception Score", "inception_score", "isc_std"),
    ("kid_mean", "KID", "kid", "kid_std"),
    ("precision", "Precision", "precision", None),
    ("recall", "Recall", "recall", None),
    ("density", "Density", "density", None),
    ("coverage", "Coverage", "coverage", None),
)


def card(
    params: Params, dataset: str, name: str, config: Mapping[str, Any], licence: str | None, title: str
) -> str:
    """The card's text.

    Args:
        config: of the bundle.
        licence: of the weights, as the Hub spells it; None: as the data's.
        title: of the bundle: its folder's name.
    """
    settings = params.dataset[dataset]
    method = run_of(params, name).method
    metrics, why = metrics_of(dataset, name, config[BUNDLE])
    text = config[BUNDLE]["encoder"] is not None
    head: dict[str, Any] = {
        "license": licence or LICENCES[settings.adapter][0],
        "library_name": "vap-diffusion",
        "pipeline_tag": "text-to-image" if text else "unconditional-image-generation",
        "tags": ["vap-diffusion", "medical", "image-generation", method, settings.modality],
        "datasets": [dataset],
    }
    if metrics is not None:
        results = [_result(params, dataset, metrics, row) for row in rows_of(metrics)]
        head["metrics"] = [result["metrics"][0]["type"] for result in results]
        head["model-index"] = [{"name": title, "results": results}]
    yaml_head = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=100)
    parts = [
        f"---\n{yaml_head}---\n",
        f"# {markdown(title)}\n",
        *_what(params, dataset, method, config),
        *_use(config, text, title),
        *_data(params, dataset, config),
        *_numbers(metrics, why),
        *_limits(params, dataset, text),
        *_origin(config, dataset, name),
        "## Licence\n",
        f"Of the weights: {markdown(head['license'])}. "
        f"Of the training images: {LICENCES[settings.adapter][1]}. The software is Apache-2.0.\n",
    ]
    return "\n".join(parts)


def metrics_of(dataset: str, name: str, drawing: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The metrics of exactly these weights, or None and why there are none.

    They count only where their samples are there, record the sha256 of the weights, and were drawn as the
    bundle draws.

    Args:
        drawing: of the bundle: `sample` and `method_sample`.
    """
    path = metrics_path(dataset, name, "seen")
    samples = samples_path(dataset, name, "seen")
    if not path.is_file():
        return None, f"not evaluated: there is no {path}"
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = metrics["provenance"]["inputs"]["samples"]["sha256"]
        record = ArrowFile(samples, "samples").metadata["provenance"]
        drawn_from, settings = record["inputs"]["model"]["sha256"], record["params"]
        other = [key for key in DRAWING if settings["sample"][key] != drawing["sample"][key]]
        other += ["method's own"] * (settings["method_sample"] != drawing["method_sample"])
    except (OSError, ValueError, KeyError, TypeError, VapError) as error:
        return None, f"{path} cannot be traced to these weights ({type(error).__name__})"
    if recorded != file_sha256(samples):
        return None, f"{path} is of other samples than {samples}"
    if drawn_from != file_sha256(model_path(dataset, name) / WEIGHTS):
        return None, f"{samples} was drawn from other weights"
    if other:
        return None, f"{samples} was drawn with other settings ({', '.join(other)})"
    return metrics, ""


def rows_of(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, float, str]]:
    """(type on the Hub, name, value, spread in words) of each metric that there is."""
    inception = metrics["features"] == "inception"
    first = ("fid", "FID" if inception else f"Fréchet distance in features of {metrics['features']}")
    kind = "fid" if inception else "frechet_distance"
    for key, name, hub, spread in ((*first, kind, None), *METRICS):
        value = metrics.get(key)
        if value is None:
            continue
        told = "–"
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        if low is not None and high is not None:
            told = f"95 % interval {low:.3f} to {high:.3f}"
        elif spread is not None and metrics.get(spread) is not None:
            told = f"± {metrics[spread]:.3f}, a standard deviation"
        yield hub, name, float(value), told


def _result(
    params: Params, dataset: str, metrics: Mapping[str, Any], row: tuple[str, str, float, str]
) -> dict[str, Any]:
    hub, name, value, spread = row
    task = (
        "text-to-image" if params.kind(metrics["method"]) == "prompts" else "unconditional-image-generation"
    )
    found = {"type": hub, "name": name, "value": round(value, 6)}
    if spread != "–":
        found["args"] = {"spread": spread}
    return {
        "task": {"type": task, "name": "class-conditional image synthesis"},
        "dataset": {"type": dataset, "name": dataset, "split": metrics["reference"]},
        "metrics": [found],
    }


# ── sections ────────────────────────────────────────────────────────────────────────────────────────


def _what(params: Params, dataset: str, method: str, config: Mapping[str, Any]) -> Iterator[str]:
    source = SOURCES.get(params.dataset[dataset].adapter, f"images of {dataset}")
    latent = any(file.startswith(f"{DECODER}/") for file in config[BUNDLE]["files"])
    what = f"a {'latent ' if latent else ''}diffusion model"
    if config["schedule"] is None:
        what = "a generative adversarial network"
    side = config["image_size"]
    yield (
        f"`{method}`, {what}, trained on {markdown(source)}. It makes images of {side} × {side} pixels by "
        f"class{' and description' if config[BUNDLE]['encoder'] else ''}. Made with "
        "VAP-Diffusion, an implementation of *VAP-Diffusion: Enriching Descriptions with MLLMs for Enhanced "
        "Medical Image Generation* (Huang et al., MICCAI 2025).\n"
    )


def _use(config: Mapping[str, Any], text: bool, title: str) -> Iterator[str]:
    label = config["classes"][0]
    said = ', "A sentence that describes the image."' if text else ""
    yield "## Use\n"
    yield (
        "```python\nfrom vap import VAPDiffusion\n\n"
        f"pipe = VAPDiffusion.from_pretrained({title!r})\n"
        f"images = pipe({label!r}{said}, n=4, seed=0).images\n"
        'images[0].save("image.png")\n```\n'
    )
    encoder = config[BUNDLE]["encoder"]
    if encoder is not None:
        where = "in `encoder/`" if encoder["in_bundle"] else f"from the package `{encoder['package']}`"
        yield (
            "Without a sentence each image gets one of its class from the prompt bank in `prompts.arrow`. "
            f"The text encoder is {markdown(encoder['name'])}, {where}, revision `{encoder['revision']}`.\n"
        )


def _data(params: Params, dataset: str, config: Mapping[str, Any]) -> Iterator[str]:
    counts = zip(config["classes"], config["class_counts"], strict=True)
    yield "## Training data\n"
    share = f", {config['percent']} % of its training images" if "percent" in config else ""
    yield (
        f"{markdown(dataset)}{share} ({params.dataset[dataset].modality}, {config['image_size']} × "
        f"{config['image_size']} pixels). Licence: {LICENCES[params.dataset[dataset].adapter][1]}.\n"
    )
    yield "| class | training images |\n|---|---|"
    yield "".join(f"| {markdown(label)} | {count} |\n" for label, count in counts)
    if config[BUNDLE]["encoder"] is not None:
        who = _describer(captions_path(dataset))
        yield (
            f"The descriptions were written by {markdown(who)}. The bank holds those of the training images, "
            "and neither the images nor their names.\n"
        )


def _describer(path: Path) -> str:
    try:
        metadata = pq.read_schema(path).metadata or {}
        caption = json.loads(metadata[b"vap.provenance"])["params"]["caption"]
        return str(caption["model"])
    except (OSError, KeyError, ValueError, TypeError):
        return "a model that is not recorded here"


def _numbers(metrics: Mapping[str, Any] | None, why: str) -> Iterator[str]:
    yield "## Metrics\n"
    if metrics is None:
        yield f"None: {markdown(why)}.\n"
        return
    yield "| metric | value | spread |\n|---|---|---|"
    yield "".join(
        f"| {markdown(name)} | {value:.3f} | {told} |\n" for _, name, value, told in rows_of(metrics)
    )
    yield (
        f"{metrics['n']} samples, with descriptions of training images where it takes any, against "
        f"{metrics['n_reference']} real images of split {metrics['reference']}; features: "
        f"{markdown(metrics['features'])}; precision, recall, density and coverage in "
        f"{markdown(metrics['prc_features'])}. Only with features `inception` are these the numbers of the "
        "literature; otherwise they compare models that were measured in the same way, and no others.\n"
    )


def _limits(params: Params, dataset: str, text: bool) -> Iterator[str]:
    yield "## Intended use and limits\n"
    lines = [
        "For research on image synthesis: comparing methods, enlarging training sets, teaching.",
        "Not for diagnosis, treatment, or any decision about a patient: its images are synthetic.",
        "It was not tested whether training images can be got back from the weights: treat these as you must "
        "treat the images.",
        "It repeats what its data lack or hold too much of: sites, devices, skin tones, rare classes.",
    ]
    if text:
        lines.append(
            "A sentence is followed as far as training went; `vap audit samples` counts that. Words that the "
            "training descriptions do not use have no defined effect."
        )
    if params.dataset[dataset].adapter == "phantom":
        lines.append(
            "The training images are drawings. Nothing follows from these samples for medical images."
        )
    yield "".join(f"- {line}\n" for line in lines)


def _origin(config: Mapping[str, Any], dataset: str, name: str) -> Iterator[str]:
    record, own = config["provenance"], config[BUNDLE]
    yield "## Provenance\n"
    libraries = ", ".join(f"{library} {version}" for library, version in record["libraries"].items())
    lines = [
        f"run `{dataset} {name}`, seed {record['params'].get('seed')}, {config['train']['steps']} steps of "
        f"{config['train']['batch_size']} images",
        f"published with vap {__version__}, commit {own['commit'] or 'not known'}",
        f"training code, sha256 `{record['code']}`",
        f"trained with {libraries}",
        *(f"{key}: sha256 `{value['sha256']}`" for key, value in record["inputs"].items()),
        *(f"`{file}`: sha256 `{digest}`" for file, digest in own["files"].items() if "/" not in file),
    ]
    yield "".join(f"- {line}\n" for line in lines)
