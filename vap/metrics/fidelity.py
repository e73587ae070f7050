"""How close one set of images is to another, from the features of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from vap.metrics.kernel import kernel_inception_distance, neighbour_metrics, pair_metrics
from vap.params import EvaluateParams

ROWS = 8192  # images that are reduced at a time
CONDITION = 1e-5  # of a Cholesky factor's diagonal: below, float64 has lost digits of the covariance
LEVEL = 0.95  # of the intervals
Numbers = dict[str, float | None]
Features = Mapping[str, Tensor]


def measure(generated: Features, reference: Features, settings: EvaluateParams, seed: int) -> Numbers:
    """Every metric of a generated set against a reference set.

    Args:
        generated, reference: finite; "pooled" (N, d), of evaluate.features; "logits" (N, K), where
            there are any; "prc" (N, d'), of evaluate.prc_features where these are others. N may differ.
        settings: neighbours is less than either N, isc_splits no more than the generated.
        seed: of all draws.

    Returns:
        fid: Fréchet distance, >= 0 (Heusel et al. 2017, arXiv:1706.08500).
        isc_mean, isc_std: Inception Score over the splits, 1..K (Salimans et al. 2016, arXiv:1606.03498);
            None without logits.
        precision, recall, density, coverage: of `neighbour_metrics`.
        kid_mean, kid_std, kid_subset_size: of `Subsets`.
        prd_f8 (recall), prd_f1_8 (precision): of `prd_scores`; None where evaluate.prd is false.
        fid_low, fid_high, precision_low, …, recall_high: of `intervals`; None where evaluate.bootstrap is 0
            or a set is too small.
    """
    x, y = generated["pooled"], reference["pooled"]
    prc = generated.get("prc", x), reference.get("prc", y)
    k, subsets, size = settings.neighbours, settings.kid_subsets, settings.kid_subset_size
    if "prc" in generated:
        neighbours = neighbour_metrics(*prc, k)
        kid = kernel_inception_distance(x, y, subsets, size, seed)
    else:
        neighbours, kid = pair_metrics(x, y, k, subsets, size, seed)
    isc: Sequence[float | None] = (None, None)
    if "logits" in generated:
        isc = inception_score(generated["logits"], settings.isc_splits, seed)
    prd: Sequence[float | None] = (None, None)
    if settings.prd:
        from vap.metrics.prd import prd_scores

        prd = prd_scores(x.cpu(), y.cpu(), seed)
    found: Numbers = {
        "fid": frechet_distance(x, y),
        "isc_mean": isc[0],
        "isc_std": isc[1],
        "precision": neighbours["precision"],
        "recall": neighbours["recall"],
        "density": neighbours["density"],
        "coverage": neighbours["coverage"],
        "kid_mean": kid.mean,
        "kid_std": kid.std,
        "kid_subset_size": kid.size,
        "prd_f8": prd[0],
        "prd_f1_8": prd[1],
    }
    return found | intervals(found, (x, y), prc, k, settings.bootstrap, seed)


# ── Inception Score ───────────────────────────────────────────────────────────────────────────────


def inception_score(logits: Tensor, splits: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over the splits of exp E[KL(p(y|x) || p(y))], as torch-fidelity's.

    Args:
        logits: (N, K); N >= splits.
        seed: of the shuffle before the split.
    """
    n = len(logits)
    order = np.random.RandomState(seed).permutation(n)  # torch-fidelity's draw
    scores = []
    for i in range(splits):
        rows = torch.from_numpy(order[i * n // splits : (i + 1) * n // splits])
        log_p = logits[rows.to(logits.device)].double().log_softmax(1)
        p = log_p.exp()
        scores.append(float((p * (log_p - p.mean(0).log())).sum(1).mean().exp()))
    return float(np.mean(scores)), float(np.std(scores))


# ── Fréchet distance ──────────────────────────────────────────────────────────────────────────────


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|² + tr(S_x + S_y - 2 (S_x S_y)^½) of two feature sets (N, d) with N >= 2.

    With centred sets X and Y, scaled so that S_x = XᵀX and S_y = YᵀY, the eigenvalues of S_x S_y
    other than 0 are the squared singular values of X Yᵀ, and the last trace is the sum of these.
    torch-fidelity takes the eigenvalues of S_x S_y itself: the same but for its rounding (about
    3e-7 of tr(S_x + S_y) where N <= d, since most are 0 and their roots are not), and 20 times as
    slow at N = 400, d = 1280. It also runs on NumPy's threads, whose number, and with it the last
    digits, depends on who starts the job; this runs on torch's, which the params fix.
    """
    mean_x, small_x = _mean_and_root(x)
    mean_y, small_y = _mean_and_root(y)
    traces = small_x.square().sum() + small_y.square().sum()
    if not traces.isfinite():
        return math.nan
    covariance = torch.linalg.svdvals(small_x @ small_y.T).sum()
    distance = (mean_x - mean_y).square().sum() + traces - 2 * covariance
    return float(distance.clamp(min=0))  # rounding leaves -1e-13 of equal sets


def _mean_and_root(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,), and R with RᵀR the covariance: the centred set, or of N > d a triangle (d, d).

    With X = QR the orthonormal Q changes no singular value. R is the covariance's Cholesky factor where
    that is well conditioned, else of the QR decomposition itself, at twice the time. Rows are taken ROWS
    at a time, so that a large set is never copied whole.
    """
    mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for part in torch.split(x, ROWS):
        mean += part.double().sum(0) / len(x)
    scale = math.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return mean, (x.double() - mean) / scale
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=x.device)
    for part in torch.split(x, ROWS):
        rows = (part.double() - mean) / scale
        covariance.addmm_(rows.T, rows)
    root, failed = torch.linalg.cholesky_ex(covariance)
    pivots = root.diagonal()
    if not failed and pivots.min() > CONDITION * pivots.max():
        return mean, root.T
    root = torch.empty(0, x.shape[1], dtype=torch.float64, device=x.device)
    for part in torch.split(x, ROWS):
        root = torch.linalg.qr(torch.cat([root, (part.double() - mean) / scale]), mode="r").R
    return mean, root


def frechet_distance_by_class(
    generated: Features,
    reference: Features,
    labels: Sequence[str],
    reference_labels: Sequence[str],
    classes: Sequence[str],
    least: int,
) -> dict[str, dict[str, float | None]]:
    """The Fréchet distance of each class, of as many images on either side: the first of the larger.

    Args:
        labels, reference_labels: class of each image.
        classes: in the order of the result.
        least: a class with fewer images on either side has None: few images say little of a covariance.

    Returns:
        class to {"n", "n_reference": images there are; "n_matched": measured on either side; "fid"}.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name in classes:
        own = torch.tensor([i for i, label in enumerate(labels) if label == name], dtype=torch.long)
        real = torch.tensor(
            [i for i, label in enumerate(reference_labels) if label == name], dtype=torch.long
        )
        n = min(len(own), len(real))
        enough = n >= max(2, least)
        x, y = generated["pooled"], reference["pooled"]
        found[name] = {
            "n": len(own),
            "n_reference": len(real),
            "n_matched": n if enough else None,
            "fid": frechet_distance(x[own[:n]], y[real[:n]]) if enough else None,
        }
    return found


# ── intervals ─────────────────────────────────────────────────────────────────────────────────────


def intervals(
    found: Numbers, fid: tuple[Tensor, Tensor], prc: tuple[Tensor, Tensor], k: int, count: int, seed: int
) -> Numbers:
    """95 % intervals of FID, precision and recall from random half samples.

    Each of `count` times a random half of either set, drawn without replacement, is measured. The spread of
    a mean over half samples is that of the mean over whole samples (the delete-half jackknife: Shao & Wu
    1989, doi:10.1214/aos/1176347263), and unlike a bootstrap with replacement it repeats no image: repeats
    raise FID by a third and more and put neighbours at distance 0. The halves' bias (FID falls as 1/N) is
    taken off: their percentiles about their mean are laid about the value of the whole sets.

    Args:
        found: "fid", "precision" and "recall" of the whole sets.
        fid, prc: generated and real features of the distance and of the neighbours.
        k: neighbours.

    Returns:
        NAME_low and NAME_high, within the metric's range and around its value; None where count is 0 or
        half a set is not more than k images.
    """
    names = {"fid": math.inf, "precision": 1.0, "recall": 1.0}
    halves = [len(z) // 2 for z in fid]
    if not count or min(halves) < max(2, k + 1):
        return {f"{name}_{side}": None for name in names for side in ("low", "high")}
    rng = np.random.default_rng([seed, 31])
    drawn: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(count):
        rows = [
            torch.from_numpy(np.sort(rng.permutation(len(z))[:half])).to(z.device)
            for z, half in zip(fid, halves, strict=True)
        ]
        drawn["fid"].append(frechet_distance(fid[0][rows[0]], fid[1][rows[1]]))
        near = neighbour_metrics(prc[0][rows[0]], prc[1][rows[1]], k)
        for name in ("precision", "recall"):
            drawn[name].append(near[name])
    tail = (1 - LEVEL) / 2
    result: Numbers = {}
    for name, most in names.items():
        value = found[name]
        assert value is not None
        spread = np.asarray(drawn[name]) - np.mean(drawn[name])
        low, high = value + np.quantile(spread, [tail, 1 - tail])
        result |= {  # a skewed spread, as of a recall near 0, may leave its own value out
            f"{name}_low": min(value, max(0.0, float(low))),
            f"{name}_high": max(value, min(most, float(high))),
        }
    return result
