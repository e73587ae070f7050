"""The text tower of an open_clip model with a Hugging Face text encoder: BiomedCLIP."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vap.common.errors import VapError, in_brief
from vap.common.weights import code_in
from vap.prompts.encoders import Encoded, whole_lengths
from vap.prompts.places import KEY, Place, text_config

TOWER = "text."  # of the checkpoint's keys


class OpenClipEncoder:
    """Built and loaded by itself: the image tower is neither made nor read.

    Every batch is padded to `max_tokens`, as open_clip's tokenizer pads, so that the states are open_clip's
    to the last bit; another padded length changes the last digits of float32.

    Raises:
        VapError: a file is damaged or does not fit the others, or max_tokens is beyond the model's context.
    """

    pooled = "projected text embedding (open_clip's encode_text, not normalised)"

    def __init__(self, name: str, place: Place, max_tokens: int, device: Any = "cpu") -> None:
        embed_dim, text = text_config(place.folder)
        from open_clip.hf_model import HFTextEncoder
        from open_clip.tokenizer import HFTokenizer
        from safetensors import SafetensorError

        try:
            self.tokenizer = HFTokenizer(
                str(place.tokenizer),
                context_length=max_tokens,
                tokenizer_mode=text.get("tokenizer_mode"),
                local_files_only=True,
                **text.get("tokenizer_kwargs") or {},
            )
            tower = HFTextEncoder(
                str(place.config),  # open_clip's own loader asks the hub for text["hf_model_name"] here
                output_dim=embed_dim,
                pooler_type=text.get("hf_pooler_type", "mean_pooler"),
                proj_type=text.get("hf_proj_type", "mlp"),
                pretrained=False,
                output_tokens=True,
            )
            tower.load_state_dict(_tower_weights(place.weights[0], tower))
        except (
            OSError,
            ValueError,
            KeyError,
            RuntimeError,
            SafetensorError,
            pickle.UnpicklingError,
        ) as error:
            said = code_in(error) or f"{type(error).__name__}: {in_brief(error)}"
            raise VapError(
                place.folder,
                f"no loadable open_clip model ({said})",
                "open_clip_config.json, config.json, tokenizer and weights of one model",
                "fetch the files again",
            ) from None
        positions = min(tower.context_length or max_tokens, text.get("context_length", 77))
        if max_tokens > positions:
            raise VapError(
                f"{KEY}: {name}", f"encode.max_tokens: {max_tokens}", f"{positions} or fewer", "lower it"
            )
        self.tower = tower.eval().to(device)
        self.name, self.place, self.max_tokens, self.device = name, place, max_tokens, device
        self.width: int = tower.config.hidden_size
        self.revision = place.revision

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode one batch."""
        ids = self.tokenizer(list(texts)).to(self.device)  # (B, max_tokens)
        with torch.inference_mode():
            pooled, states = self.tower(ids)  # (B, embed_dim), (B, S, width)
        if states.shape[1] < ids.shape[1]:  # open_clip leaves [CLS] out for the pooler cls_pooler
            ids = ids[:, 1:]
        real = (ids != self.tower.config.pad_token_id).cpu()
        states, pooled = states.float().cpu(), pooled.float().cpu()
        whole = whole_lengths(self.tokenizer.tokenizer, [self.tokenizer.clean_fn(text) for text in texts])
        rows = zip(states, real, pooled, whole, strict=True)
        return [Encoded(s[m].numpy(), p.numpy(), n) for s, m, p, n in rows]


def _tower_weights(file: Path, tower: torch.nn.Module) -> dict[str, Tensor]:
    """The checkpoint's weights of the text tower alone; the rest of the file is not read."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="pt") as checkpoint:
            weights = {key: checkpoint.get_tensor(key) for key in checkpoint.keys() if TOWER in key}  # noqa: SIM118
    else:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=_zipped(file))
        weights = checkpoint.get("state_dict", checkpoint)
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    weights = {key.removeprefix(TOWER): value for key, value in weights.items() if key.startswith(TOWER)}
    known = tower.state_dict().keys()
    # transformers before 4.31 saved the positions 0, 1, 2 ... with the weights
    return {key: value for key, value in weights.items() if key in known or not key.endswith("position_ids")}


def _zipped(file: Path) -> bool:
    """Whether torch.save wrote the file in its present format, which a memory map can read."""
    with file.open("rb") as handle:
        return handle.read(2) == b"PK"
