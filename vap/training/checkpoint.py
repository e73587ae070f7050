"""Checkpoints that hold a whole training state in safetensors and JSON; nothing is unpickled."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vap.common.artifacts import atomic, file_sha256, write_safetensors
from vap.common.errors import VapError, in_brief, tell

KEEP = 2  # newest checkpoints


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state as "parameter:slot" to tensor."""
    state = optimizer.state_dict()["state"]
    return {
        f"{name}:{slot}": torch.as_tensor(value)
        for i, name in enumerate(names)
        for slot, value in state.get(i, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: dict[str, Tensor]
) -> None:
    """Take over what `optimizer_tensors` returned, in the memory layout of the parameters, which files do not
    keep."""
    state: dict[int, dict[str, Tensor]] = {}
    index = {name: i for i, name in enumerate(names)}
    for key, value in tensors.items():
        name, slot = key.rsplit(":", 1)
        state.setdefault(index[name], {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, slots in optimizer.state.items():
        for slot, value in slots.items():
            if value.shape == parameter.shape:  # a fused step goes through both in the order of their memory
                slots[slot] = torch.empty_like(parameter).copy_(value)


def save(folder: Path, step: int, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> Path:
    """Write checkpoint `step` atomically and drop all but the newest few.

    Args:
        folder: of the run's checkpoints.
        parts: file name (without extension) to tensors.
        state: further JSON values.
    """
    target = folder / f"step-{step:08d}"
    with atomic(target) as part:
        part.mkdir(parents=True)
        hashes = {}
        for name, tensors in parts.items():
            file = part / f"{name}.safetensors"
            write_safetensors(file, tensors)
            hashes[name] = file_sha256(file)
        (part / "state.json").write_text(json.dumps({"step": step, "sha256": hashes, **state}))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)
    return target


def load_newest(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """The newest checkpoint that is whole, as (parts, state); a damaged one is named and passed over."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = json.loads((candidate / "state.json").read_text())
            parts = {}
            for name, expected in state["sha256"].items():
                file = candidate / f"{name}.safetensors"
                if file_sha256(file) != expected:
                    raise ValueError(f"{file.name} does not match its sha256")
                parts[name] = load_file(file)
            return parts, state
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            tell(f"{candidate}: damaged ({error}); trying the one before")
    return None


def load_weights(net: nn.Module, file: Path) -> None:
    """Load a network's weights from safetensors.

    Raises:
        VapError: the file is absent or damaged, or a name or shape does not fit.
    """
    try:
        net.load_state_dict(load_file(file))
    except (OSError, RuntimeError, SafetensorError) as error:
        found = f"no weights that fit ({in_brief(error)})"
        raise VapError(file, found, "this network's", "train again") from None
