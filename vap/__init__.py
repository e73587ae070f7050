"""VAP-Diffusion: enriched descriptions for medical image generation (MICCAI 2025)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vap.datasets.samples import Samples as Samples
    from vap.prompts.report import prompt_bank as prompt_bank
    from vap.sampling.pipeline import VAPDiffusion as VAPDiffusion

__version__ = "0.1.0"

# What a user imports from here; loaded when it is asked for, since torch takes seconds.
LAZY = {
    "VAPDiffusion": "vap.sampling.pipeline",
    "Samples": "vap.datasets.samples",
    "prompt_bank": "vap.prompts.report",
}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])
