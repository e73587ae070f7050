"""Bundles: folders that `vap publish` writes (vap/publishing), with all that drawing needs.

One holds

    config.json             the train stage's, and under `bundle` what drawing needs, with the files' hashes
    model.safetensors       averaged weights
    autoencoder/            of methods on latents
    prompts.arrow           of methods with descriptions: those that the model was trained on
    encoder/                the text encoder, unless it comes as a package
    README.md               the model card

and needs nothing else of the project.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vap.common.artifacts import file_sha256
from vap.common.code import module_file
from vap.common.errors import VapError
from vap.generators.trained import CONFIG, WEIGHTS

FORMAT = 1  # of bundles
BUNDLE, DECODER, BANK, ENCODER, CARD = "bundle", "autoencoder", "prompts.arrow", "encoder", "README.md"
REMAKE = "publish the model again"


def read_bundle(folder: Path) -> dict[str, Any]:
    """config.json of a bundle whose files are all there and as they were published.

    Raises:
        VapError: it is no bundle, of a newer format or an unknown method, or a file is absent or changed.
    """
    expected = "a folder that `vap publish` wrote"
    if not folder.is_dir():
        raise VapError(folder, "no such folder", expected, "name one")
    if not is_bundle(folder):
        raise VapError(folder, f"no {CONFIG} of a bundle", expected, "name one, or publish the model")
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    own = config[BUNDLE]
    if own.get("format") != FORMAT:
        found = f"bundle.format {own.get('format')!r}"
        raise VapError(folder / CONFIG, found, f"{FORMAT}", "use the version of vap that wrote it")
    method = str(config.get("method"))
    if not method.isidentifier() or module_file(f"vap.generators.{method}") is None:
        raise VapError(
            folder / CONFIG, f"method {method!r}", "one of this vap", "install the code that trained it"
        )
    files = own.get("files")
    if not isinstance(files, dict) or WEIGHTS not in files:
        raise VapError(folder / CONFIG, "no bundle.files", "the sha256 of each file", REMAKE)
    for name, recorded in files.items():
        if not isinstance(recorded, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            found, expected = f"bundle.files: {name!r}", "files within the bundle, with their sha256"
            raise VapError(folder / CONFIG, found, expected, REMAKE)
        file = folder / name
        if not file.is_file():
            raise VapError(
                file, "no such file", f"a file of this bundle, sha256 {recorded[:12]}", "copy it again"
            )
        if (found := file_sha256(file)) != recorded:
            raise VapError(file, f"sha256 {found[:12]}", f"{recorded[:12]}, as published", "copy it again")
    return config


def is_bundle(folder: Path) -> bool:
    """Whether a folder has the config.json of a bundle."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and isinstance(config.get(BUNDLE), dict)


def bundle_hash(folder: Path) -> str:
    """sha256 of config.json, which holds that of every other file but the card."""
    return file_sha256(folder / CONFIG)
