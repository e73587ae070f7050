"""Token states as the bank stores them: fp16, bf16, or int8 with a scale a token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vap.common.errors import VapError

Dtype = Literal["fp16", "bf16", "int8"]
TORCH: dict[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Packed:
    """The states of one description in the bank's dtype, and how far they are from the encoder's."""

    data: bytes  # n_tokens x width numbers, row-major
    scales: npt.NDArray[np.float32]  # (n_tokens,) for int8, else (0,)
    error: StateError


@dataclass(frozen=True)
class StateError:
    """What storing costs, of one description or of many.

    Attributes:
        largest: max over tokens of max |stored - state| / max |state|.
        squared: sum of (stored - state)^2.
        norm: sum of state^2.
    """

    largest: float = 0.0
    squared: float = 0.0
    norm: float = 0.0

    @staticmethod
    def of(errors: Iterable[StateError]) -> StateError:
        """Of all together."""
        rows = [(e.largest, e.squared, e.norm) for e in errors] or [(0.0, 0.0, 0.0)]
        largest, squared, norm = zip(*rows, strict=True)
        return StateError(max(largest), sum(squared), sum(norm))

    def summary(self) -> dict[str, float]:
        """`max` and `rms` relative error, to four digits."""
        rms = (self.squared / self.norm) ** 0.5 if self.norm else 0.0
        return {"max": float(f"{self.largest:.4g}"), "rms": float(f"{rms:.4g}")}


def store(states: Tensor, dtype: Dtype) -> tuple[Tensor, Tensor]:
    """float32 states (n_tokens, width) in `dtype`, and the scales (n_tokens,) of int8, else (0,).

    int8 is symmetric: round(x / scale) with scale = max |x| / 127 of each token.
    """
    if dtype != "int8":
        return states.to(TORCH[dtype]), torch.zeros(0)
    scales = states.abs().amax(dim=1) / LARGEST_INT8
    safe = torch.where(scales > 0, scales, 1.0)[:, None]
    return (states / safe).round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8), scales


def pack(states: npt.NDArray[np.float32], dtype: Dtype) -> Packed:
    """States to the bytes that the bank holds.

    Args:
        states: (n_tokens, width), as the encoder gave them.

    Raises:
        VapError: fp16 cannot hold a state (beyond 65504).
    """
    exact = torch.from_numpy(states)
    largest = exact.abs().amax(dim=1)  # (n_tokens,)
    stored, scales = store(exact, dtype)
    back = unpack(stored, scales)
    if not bool(torch.isfinite(back).all()):
        raise VapError(
            f"params.yaml: encode.dtype: {dtype}",
            f"a token state of {float(largest.max()):.3g}",
            "states that this dtype holds",
            "use bf16",
        )
    off = back - exact
    relative = off.abs().amax(dim=1) / torch.where(largest > 0, largest, 1.0)
    error = StateError(
        float(relative.max()), float(off.double().square().sum()), float(exact.double().square().sum())
    )
    return Packed(stored.view(torch.uint8).numpy().tobytes(), scales.numpy(), error)


def unpack(stored: Tensor, scales: Tensor) -> Tensor:
    """Stored states (n_tokens, width) as float32.

    Args:
        scales: (n_tokens,) for int8; not read for the other dtypes.
    """
    return stored * scales[:, None] if stored.dtype == torch.int8 else stored.float()
