"""mAUC, macro F1 and balanced accuracy of a classifier's probabilities, with bootstrap intervals.

A class without a test image has neither AUC nor recall: it is named and left out of every mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vap.common.errors import VapError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)  # percentiles
DIGITS = 6
CHUNK = 2**22  # resampled weights in memory at once


def auc(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats | None = None) -> Floats:
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting half.

    Args:
        scores: (N,)
        positive: (N,), some of each kind.
        weights: (R, N), the images' multiplicities in each of R resamples; null for one of ones.

    Returns:
        (R,), 0 to 1.
    """
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], positive[order]
    W = np.ones((1, len(scores))) if weights is None else weights[:, order]
    first = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))  # of each run of ties
    plus = np.add.reduceat(W * positive, first, axis=1)  # (R, runs)
    minus = np.add.reduceat(W * ~positive, first, axis=1)
    below = np.cumsum(minus, axis=1) - minus
    pairs: Floats = (plus * (below + 0.5 * minus)).sum(1)
    area: Floats = pairs / (plus.sum(1) * minus.sum(1))
    return area


def measure(probabilities: Floats, labels: Ints, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """All that Table 3 says of one classifier on the test images.

    mAUC is the mean over the classes of one-versus-rest AUC; F1 is the mean over the classes of
    2 TP / (2 TP + FP + FN) of the most probable class, 0 for a class never predicted. The intervals are
    95 % percentile intervals of RESAMPLES resamples of the test images within each class (as pROC has
    them; Robin et al., 2011): they say nothing of another seed of the training.

    Args:
        probabilities: (N, K), K classes.
        labels: (N,), class numbers.

    Returns:
        `mauc`, `f1`, each with `_low` and `_high`; `balanced_accuracy`; `auc`, class to AUC;
        `absent`, the classes without a test image.

    Raises:
        VapError: the test images are of fewer than two classes, or a probability is not a number.
    """
    present = np.unique(labels)
    if len(present) < 2:
        found = f"{len(present)} class among {len(labels)} test images"
        raise VapError("test images", found, "two classes or more", "test on more images")
    if not np.isfinite(probabilities).all():
        fix = "lower its lr in params.yaml: downstream"
        raise VapError("classifier", "a probability that is not finite", "numbers", fix)
    areas, f1s, recalls = _means(probabilities, labels, present, None)
    means: list[Floats] = []
    for weights in _resamples(labels, seed):
        some_areas, some_f1s, _ = _means(probabilities, labels, present, weights)
        means.append(np.stack([some_areas.mean(0), some_f1s.mean(0)]))
    intervals = np.percentile(np.concatenate(means, axis=1), INTERVAL, axis=1)  # (2, 2): ends, metrics
    result = {
        "mauc": areas.mean(),
        "mauc_low": intervals[0, 0],
        "mauc_high": intervals[1, 0],
        "f1": f1s.mean(),
        "f1_low": intervals[0, 1],
        "f1_high": intervals[1, 1],
        "balanced_accuracy": recalls.mean(),
    }
    return {
        **{name: round(float(value), DIGITS) for name, value in result.items()},
        "auc": {classes[k]: round(float(areas[i, 0]), DIGITS) for i, k in enumerate(present)},
        "absent": [label for k, label in enumerate(classes) if k not in present],
    }


def _means(
    probabilities: Floats, labels: Ints, present: Ints, weights: Floats | None
) -> tuple[Floats, Floats, Floats]:
    """AUC, F1 and recall of each class that is present, in each resample: (classes, R) each."""
    predicted = probabilities.argmax(1)
    W = np.ones((1, len(labels))) if weights is None else weights
    areas, f1s, recalls = [], [], []
    for k in present:
        true = labels == k
        areas.append(auc(probabilities[:, k], true, weights))
        hit, named, there = (
            W[:, chosen].sum(1) for chosen in (true & (predicted == k), predicted == k, true)
        )
        f1s.append(2 * hit / (named + there))
        recalls.append(hit / there)
    return np.stack(areas), np.stack(f1s), np.stack(recalls)


def _resamples(labels: Ints, seed: int) -> Iterator[Floats]:
    """Multiplicities of the images in draws with replacement within each class, RESAMPLES in all: (R, N)."""
    rng = np.random.default_rng([seed, 37])
    size = max(1, CHUNK // len(labels))
    for start in range(0, RESAMPLES, size):
        n = min(size, RESAMPLES - start)
        W = np.zeros((n, len(labels)))
        for k in np.unique(labels):
            images = np.flatnonzero(labels == k)
            W[:, images] = rng.multinomial(len(images), np.full(len(images), 1 / len(images)), size=n)
        yield W
