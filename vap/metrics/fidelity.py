"""FID, the Inception Score, improved precision and recall of one feature set against another."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

PART = 10_000  # rows of a distance matrix's block: it bounds the memory of precision and recall


def measure(
    generated: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    neighbours: int,
    isc_splits: int,
    seed: int,
) -> dict[str, float]:
    """How close a generated set is to a reference set.

    Args:
        generated, reference: "pooled" (N, d) and "logits" (N, K) of `features_of`; N may differ.
        neighbours: k of the manifolds of precision and recall; less than either N.
        isc_splits: parts of the Inception Score; at most N generated.
        seed: of the Inception Score's shuffle.

    Returns:
        fid: Fréchet distance, >= 0 (Heusel et al. 2017, arXiv:1706.08500).
        isc_mean, isc_std: over the splits, of the generated set alone, 1..K (Salimans et al. 2016,
            arXiv:1606.03498).
        precision: share of the generated within k neighbours' reach of a reference image;
        recall: share of the reference within that of a generated one (Kynkäänniemi et al. 2019,
            arXiv:1904.06991).
        NaN where features are not finite.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    isc = isc_features_to_metric(generated["logits"], isc_splits, shuffle=True, rng_seed=seed)
    prc = prc_features_to_metric(
        generated["pooled"],
        reference["pooled"],
        prc_neighborhood=neighbours,
        prc_batch_size=PART,
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "fid": frechet_distance(generated["pooled"], reference["pooled"]),
        "isc_mean": isc["inception_score_mean"],
        "isc_std": isc["inception_score_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|² + tr(S_x + S_y - 2 (S_x S_y)^½) of two feature sets (N, d) with N >= 2.

    With centred sets X and Y, scaled so that S_x = XᵀX and S_y = YᵀY, the eigenvalues of S_x S_y
    other than 0 are the squared singular values of X Yᵀ, and the last trace is the sum of these.
    torch-fidelity takes the eigenvalues of S_x S_y itself: the same but for its rounding (about
    3e-7 of tr(S_x + S_y) where N <= d, since most are 0 and their roots are not), and 20 times as
    slow at N = 400, d = 1280. It also runs on NumPy's threads, whose number, and with it the last
    digits, depends on who starts the job; this runs on torch's, which the params fix.
    """
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = (x - mean_x) / math.sqrt(len(x) - 1)
    y = (y - mean_y) / math.sqrt(len(y) - 1)
    traces = x.square().sum() + y.square().sum()
    # X = QR: the orthonormal Q changes no singular value, and R is no larger than d x d
    small_x, small_y = (torch.linalg.qr(z, mode="r").R if z.shape[0] > z.shape[1] else z for z in (x, y))
    covariance = torch.linalg.svdvals(small_x @ small_y.T).sum()
    distance = (mean_x - mean_y).square().sum() + traces - 2 * covariance
    return float(distance.clamp(min=0))  # rounding leaves -1e-13 of equal sets
