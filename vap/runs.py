"""Runs: a method trained and sampled once more, under a name of its own.

    METHOD          with `seed`: the method's own run
    METHOD_seedN    with seed N of `seeds`, weights and samples; splits and metrics keep `seed` (Table 1)
    METHOD_dataR    on R percent of the training images, those of the classifiers of that ratio (Table 3)

A run's name stands wherever a method's does: in commands, paths and records. Its module, its settings and
what it learns from are its method's.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

from vap.errors import VapError
from vap.params import RUN_NAME, Params


@dataclass(frozen=True)
class Run:
    """A method's run.

    Attributes:
        name: of the run.
        method: whose run it is.
        seed: of its weights, batches and samples.
        variant: what tells it from the method's own; "" for that.
        percent: of the training images that it sees; None: all.
    """

    name: str
    method: str
    seed: int
    variant: Literal["", "seed", "ratio"] = ""
    percent: int | None = None

    @property
    def item(self) -> str:
        """How DVC's stages name it: METHOD, METHOD-N or METHOD-R."""
        more = {"": "", "seed": f"-{self.seed}", "ratio": f"-{self.percent}"}
        return self.method + more[self.variant]


def seed_run(method: str, seed: int) -> str:
    """The name of a method's run with another seed."""
    return f"{method}_seed{seed}"


def share_run(method: str, percent: int) -> str:
    """The name of a method's run on a share of the training images."""
    return f"{method}_data{percent}"


def method_of(name: str) -> str:
    """The method of a run, by the run's name alone."""
    found = re.fullmatch(RUN_NAME, name)
    return found[1] if found else name


def runs_of(params: Params) -> dict[str, Run]:
    """All runs that params.yaml implies, by name: the methods' own first."""
    own, downstream = [*params.methods, *params.ablation.without], params.downstream
    runs = [Run(method, method, params.seed) for method in own]
    runs += [Run(seed_run(m, seed), m, seed, "seed") for m in params.methods for seed in params.seeds]
    for method, percent in itertools.product(downstream.sources, map(int, downstream.generator_ratios)):
        runs.append(Run(share_run(method, percent), method, params.seed, "ratio", percent))
    return {run.name: run for run in runs}


def run_of(params: Params, name: str) -> Run:
    """The run of that name.

    Raises:
        VapError: params.yaml implies no such run.
    """
    known = runs_of(params)
    if name not in known:
        expected = f"one of {', '.join(known)}"
        raise VapError("method", repr(name), expected, "name one, or add it to params.yaml")
    return known[name]
