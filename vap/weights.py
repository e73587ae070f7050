"""Files of weights: safetensors, or PyTorch's, of which nothing but tensors is unpickled."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vap.errors import VapError, in_brief


@contextlib.contextmanager
def clean_copies(files: Mapping[str, Path], expected: str, fix: str) -> Iterator[Path]:
    """A folder with copies of weights that hold nothing but tensors, for a library that opens them itself.

    The library may open a file in other ways than we did when we checked it: torch.hub takes a zip of one
    pickle that hangs behind a sound file, and runs what it says.

    Args:
        files: names in the folder to the user's files.
        expected, fix: for errors.

    Raises:
        VapError: as `read_tensors`.
    """
    with tempfile.TemporaryDirectory(prefix="vap-weights-") as folder:
        for name, file in files.items():
            copy = Path(folder) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            torch.save(read_tensors(file, expected, fix), copy)
        yield Path(folder)


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
