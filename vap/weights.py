"""Files of weights: safetensors, or PyTorch's, of which nothing but tensors is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vap.errors import VapError, in_brief


def read_tensors(path: Path, expected: str, fix: str, wrappers: Sequence[str] = ()) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.

    Args:
        expected, fix: for errors.
        wrappers: keys under which a checkpoint may keep them.

    Raises:
        VapError: the file is absent, damaged, or holds other things than tensors by name.
    """
    if not path.is_file():
        raise VapError(path, "no such file", expected, fix)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        raise VapError(path, f"no readable weights ({in_brief(error)})", expected, fix) from None
    if isinstance(found, dict):
        found = next((found[key] for key in wrappers if isinstance(found.get(key), dict)), found)
    if not (isinstance(found, dict) and all(isinstance(value, Tensor) for value in found.values())):
        raise VapError(path, f"a {type(found).__name__} of other things", expected, fix)
    return found
