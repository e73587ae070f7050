"""Text encoders: description to per-token states and one pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vap.common.errors import VapError, in_brief
from vap.prompts.places import KEY, Place, locate


@dataclass(frozen=True)
class Encoded:
    """One description.

    Attributes:
        tokens: (n_tokens, width) last hidden states, real tokens only.
        pooled: (pooled_width,) the encoder's own vector of the whole text; TextEncoder.pooled says which.
        whole: tokens of the description as it is written; more than `max_tokens` where its end was cut.
    """

    tokens: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]
    whole: int


class TextEncoder(Protocol):
    """What the encode stage, `vap draw` and `vap bank search` ask of an encoder.

    Attributes:
        name: as encode.encoder spells it.
        place: its files.
        revision: the hash of its weights.
        width: of a token state.
        max_tokens: longer descriptions are cut, [CLS] and [SEP] kept.
        pooled: what the pooled vector is, in words.
    """

    name: str
    place: Place
    revision: str
    width: int
    max_tokens: int
    pooled: str

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode one batch; "" gives [CLS][SEP]."""


def load_encoder(name: str, max_tokens: int, device: Any = "cpu") -> TextEncoder:
    """The encoder that encode.encoder names (vap.prompts.places says how).

    Raises:
        VapError: its files are absent or damaged, or it takes fewer than `max_tokens` tokens.
    """
    place = locate(name)
    if place.kind == "open_clip":
        from vap.prompts.open_clip_text import OpenClipEncoder

        return OpenClipEncoder(name, place, max_tokens, device)
    return TransformersEncoder(name, place, max_tokens, device)


class TransformersEncoder:
    """Any Hugging Face text encoder; of an encoder-decoder, the encoder.

    Raises:
        VapError: the folder holds no such model.
    """

    pooled = "mean of the real tokens' states"

    def __init__(self, name: str, place: Place, max_tokens: int, device: Any = "cpu") -> None:
        from pickle import UnpicklingError

        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        from vap.common.weights import code_in

        logging.disable_progress_bar()  # of a second's loading
        try:
            # without trust_remote_code a terminal is asked whether to run a folder's own code, for 15 s
            asked: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            self.tokenizer = AutoTokenizer.from_pretrained(place.folder, **asked)
            model, info = AutoModel.from_pretrained(place.folder, output_loading_info=True, **asked)
            # else they would be drawn at random; masked language models have no pooler, which is not read
            if absent := sorted(key for key in info["missing_keys"] if "pooler" not in key):
                raise ValueError(f"no weights of {absent[0]} and {len(absent) - 1} more")
        except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise VapError(
                place.folder,
                f"no loadable text encoder ({code_in(error) or in_brief(error)})",
                "a Hugging Face folder",
                "check its files",
            ) from None
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        width = getattr(model.config, "hidden_size", None)
        positions = getattr(model.config, "max_position_embeddings", None) or max_tokens
        if not isinstance(width, int) or self.tokenizer.pad_token is None:
            raise VapError(
                place.folder,
                f"a {model.config.model_type} model, which is no text encoder",
                "a model with one hidden_size and a padding token",
                "name another",
            )
        if max_tokens > positions:
            raise VapError(
                f"{KEY}: {name}", f"encode.max_tokens: {max_tokens}", f"{positions} or fewer", "lower it"
            )
        self.tokenizer.padding_side = "right"
        self.model = model.eval().to(device)
        self.name, self.place, self.max_tokens, self.device = name, place, max_tokens, device
        self.width: int = width
        self.revision = place.revision

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode one batch, padded to its longest text."""
        import torch

        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.device)
        with torch.inference_mode():
            states = self.model(**inputs).last_hidden_state.float().cpu()  # (B, S, width)
        lengths = inputs["attention_mask"].sum(1).tolist()
        real = [states[i, :n] for i, n in enumerate(lengths)]
        whole = whole_lengths(self.tokenizer, texts)
        return [Encoded(s.numpy(), s.mean(0).numpy(), n) for s, n in zip(real, whole, strict=True)]


def whole_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, [CLS] and [SEP] among them, if none is cut; `tokenizer` is of transformers."""
    return [len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]]
