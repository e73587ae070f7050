"""Runs: a method, trained and sampled once more under a name of its own.

    METHOD          with `seed`: the method's own run
    METHOD_seedN    with seed N for its weights and samples; splits and metrics keep `seed` (Table 1)
    METHOD_dataR    on R percent of the training images, those of the classifiers of that ratio (Table 3)

A run's name stands wherever a method's does: in params.yaml, commands, paths and records. Its module, its
settings and what it learns from are its method's.
"""

from __future__ import annotations

from dataclasses import dataclass

from vap.common.errors import VapError
from vap.params import Params, method_of, run_parts, seed_run, share_run

__all__ = ["Run", "method_of", "run_of", "runs_of", "seed_run", "share_run"]


@dataclass(frozen=True)
class Run:
    """A method's run.

    Attributes:
        name: of the run.
        method: whose run it is.
        seed: of its weights, batches and samples.
        percent: of the training images that it sees; None: all.
    """

    name: str
    method: str
    seed: int
    percent: int | None = None


def runs_of(params: Params) -> dict[str, Run]:
    """All runs that params.yaml names, by name: `methods` first."""
    listed = [name for names in params.learns_from.values() for name in names]
    runs = {}
    for name in dict.fromkeys([*params.methods, *params.ablation.without, *listed]):
        method, seed, percent = run_parts(name)
        runs[name] = Run(name, method, params.seed if seed is None else seed, percent)
    return runs


def run_of(params: Params, name: str) -> Run:
    """The run of that name.

    Raises:
        VapError: params.yaml names no such run.
    """
    known = runs_of(params)
    if name not in known:
        expected = f"one of {', '.join(known)}"
        raise VapError("method", repr(name), expected, "name one, or add it to params.yaml")
    return known[name]
