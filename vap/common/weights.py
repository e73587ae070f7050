"""Names of timm's networks; files of weights: of PyTorch's nothing but tensors is unpickled."""

from __future__ import annotations

import contextlib
import difflib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vap.common.errors import VapError, in_brief, tell


def require_timm(where: str, name: str) -> None:
    """Refuse a name that timm does not have; one may have the tag of pretrained weights behind a dot.

    Raises:
        VapError: there is no such network, or it has no such tag.
    """
    import timm

    tagged = timm.list_models(pretrained=True)
    if timm.is_model(name) and ("." not in name or name in tagged):
        return
    near = difflib.get_close_matches(name.lower(), [*timm.list_models(), *tagged])
    expected = f"a model of timm {timm.__version__}" + (f", such as {', '.join(near)}" if near else "")
    raise VapError(where, repr(name), expected, "see timm.list_models()")


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


# Keys under which trainers keep the weights, the averaged ones first; and what wrappers put before names.
CONTAINERS = (
    *("ema", "ema_state_dict", "state_dict_ema", "model_ema", "params_ema"),
    *("state_dict", "model_state_dict", "model", "params", "net", "network", "module", "weights"),
)
PREFIXES = ("module.", "_orig_mod.", "ema_model.", "averaged_model.", "model.", "net.", "network.")


def read_tensors(path: Path, expected: str, fix: str) -> dict[str, Tensor]:
    """The tensors of a file, by name, on the CPU.

    Of a training checkpoint the weights are taken, the averaged ones where it has them, and what
    DataParallel, torch.compile, Lightning and the like put before every name is taken off; both are told.

    Args:
        expected, fix: for errors.

    Raises:
        VapError: the file is absent, damaged, or holds no tensors by name, or objects of other kinds.
    """
    if not path.is_file():
        raise VapError(path, "no such file", expected, fix)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: object = dict(load_file(path))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way
        if found_code := code_in(error):
            how = f"open it where it was made and save its tensors alone, as .safetensors; or {fix}"
            raise VapError(path, found_code, expected, how) from None
        raise VapError(path, f"no readable weights ({in_brief(error)})", expected, fix) from None
    where: list[str] = []
    while isinstance(found, dict) and not _are_tensors(found):
        inner = next((key for key in CONTAINERS if isinstance(found.get(key), dict) and found[key]), None)
        if inner is None:
            break
        where.append(inner)
        found = found[inner]
    if not (isinstance(found, dict) and _are_tensors(found)):
        raise VapError(path, f"a {type(found).__name__} of other things", expected, fix)
    while found and (prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in found)), None)):
        where.append(f"{prefix}*")
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    if where:
        tell(f"{path}: the weights are those under {' '.join(where)}")
    return found


def code_in(error: BaseException) -> str | None:
    """What torch.load refused to unpickle, in words; None where it failed of something else.

    Its own message must not be shown: it advises weights_only=False, which runs the code.
    """
    said = str(error)
    if other := re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", said):
        return f"objects of the kind {other[1]}, which could run code"
    other_things = "no readable weights (not tensors alone; other objects could run code and are not loaded)"
    return other_things if "weights_only" in said else None


def _are_tensors(found: dict[object, object]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
