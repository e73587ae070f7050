"""Precision and recall of distributions (PRD) of Sajjadi et al. 2018, arXiv:1806.00035."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
# the paper's and its code's
CLUSTERS, RUNS, ANGLES = 20, 10, 1001
FIT = 50_000  # images that the clusters are learned from at most; all are counted
PART = 4096  # images a block


def prd_scores(x: Tensor, y: Tensor, seed: int) -> tuple[float, float]:
    """F8, which weighs recall, and F1/8, which weighs precision, of generated x against real y, each 0..1.

    Both sets are cut to the size of the smaller by a draw, as the method needs.

    Args:
        x, y: (N, d) and (M, d).
    """
    rng = np.random.default_rng([seed, 30])
    n = min(len(x), len(y))
    x, y = (z[torch.from_numpy(np.sort(rng.permutation(len(z))[:n]))] if len(z) > n else z for z in (x, y))
    seeds = rng.integers(2**31, size=RUNS)
    curves = [prd_curve(*histograms(x, y, int(run))) for run in seeds]
    precision, recall = np.mean(curves, axis=0)
    return f_beta(precision, recall, 8), f_beta(precision, recall, 1 / 8)


def histograms(x: Tensor, y: Tensor, seed: int) -> tuple[Floats, Floats]:
    """Shares of x and of y in each cluster of both together: (CLUSTERS,) twice."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(x) + len(y))[:FIT])
    own = torch.from_numpy(rows[rows < len(x)]), torch.from_numpy(rows[rows >= len(x)] - len(x))
    pooled = torch.cat([x[own[0]], y[own[1]]]).numpy()
    clusters = min(CLUSTERS, len(pooled))
    model = MiniBatchKMeans(clusters, n_init=10, random_state=seed).fit(pooled)

    def shares(z: Tensor) -> Floats:
        found = [model.predict(part.numpy()) for part in torch.split(z, PART)]
        return np.bincount(np.concatenate(found), minlength=clusters) / len(z)

    return shares(x), shares(y)


def prd_curve(generated: Floats, real: Floats) -> tuple[Floats, Floats]:
    """Precision and recall at ANGLES slopes between the axes, of two distributions over the same bins.

    With slope l: precision = sum_i min(l real_i, generated_i), recall = precision / l (Eq. 7).
    """
    tiny = 1e-10  # off the axes, as the paper's code
    slopes = np.tan(np.linspace(tiny, math.pi / 2 - tiny, ANGLES))[:, None]
    precision = np.minimum(slopes * real, generated).sum(1)
    return precision.clip(0, 1), (precision / slopes[:, 0]).clip(0, 1)


def f_beta(precision: Floats, recall: Floats, beta: float) -> float:
    """The curve's largest (1 + b²) p r / (b² p + r)."""
    below = beta**2 * precision + recall
    scores = (1 + beta**2) * precision * recall / np.where(below > 0, below, 1)
    return float(scores.max())
