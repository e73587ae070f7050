"""mAUC, F1 and their intervals against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vap.common.errors import VapError
from vap.downstream import scores
from vap.downstream.scores import auc, measure


def example(n: int = 200, K: int = 4, seed: int = 0, digits: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that say something of the labels, rounded so that many tie."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, n, p=np.arange(1, K + 1) / sum(range(1, K + 1)))
    logits = rng.normal(size=(n, K)) + np.eye(K)[labels]
    return np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), digits), labels


def test_auc_by_hand() -> None:
    positive = np.array([True, False, True, False])
    assert auc(np.array([0.9, 0.1, 0.8, 0.2]), positive) == 1
    assert auc(np.array([0.1, 0.9, 0.2, 0.8]), positive) == 0
    assert auc(np.array([0.5, 0.5, 0.5, 0.5]), positive) == 0.5
    # pairs: 3 > 1, 3 > 2, 2 > 1, and 2 = 2, a half
    assert auc(np.array([3.0, 1.0, 2.0, 2.0]), positive) == 3.5 / 4


@pytest.mark.parametrize("digits", [1, 2, 12])
def test_auc_and_f1_are_scikit_learns(digits: int) -> None:
    from sklearn import metrics

    probabilities, labels = example(digits=digits)
    found = measure(probabilities, labels, list("abcd"), 0)
    wanted = [metrics.roc_auc_score(labels == k, probabilities[:, k]) for k in range(4)]
    assert list(found["auc"].values()) == pytest.approx(wanted, abs=1e-6)
    assert found["mauc"] == pytest.approx(np.mean(wanted), abs=1e-6)
    predicted = probabilities.argmax(1)
    assert found["f1"] == pytest.approx(metrics.f1_score(labels, predicted, average="macro"), abs=1e-6)
    balanced = metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)


def test_auc_of_a_resample_is_that_of_the_images_repeated() -> None:
    probabilities, labels = example()
    rng = np.random.default_rng(1)
    W = rng.integers(0, 3, (5, len(labels))).astype(float)
    found = auc(probabilities[:, 0], labels == 0, W)
    for weights, area in zip(W, found, strict=True):
        again = np.repeat(np.arange(len(labels)), weights.astype(int))
        assert area == pytest.approx(auc(probabilities[again, 0], labels[again] == 0)[0], abs=1e-12)


def test_a_class_without_test_images_is_named_and_left_out() -> None:
    probabilities, labels = example()
    wider = np.concatenate([probabilities, np.full((len(labels), 1), 0.01)], axis=1)
    found, without = measure(wider, labels, list("abcde"), 0), measure(probabilities, labels, list("abcd"), 0)
    assert found == {**without, "absent": ["e"]}


def test_f1_counts_a_class_that_is_never_predicted_as_0() -> None:
    probabilities = np.tile([0.6, 0.4], (4, 1))
    found = measure(probabilities, np.array([0, 0, 0, 1]), ["a", "b"], 0)
    assert found["f1"] == pytest.approx((2 * 3 / 7 + 0) / 2, abs=1e-6)
    assert (found["balanced_accuracy"], found["mauc"]) == (0.5, 0.5)


def test_the_interval_holds_the_score_narrows_with_the_images_and_is_drawn_by_seed() -> None:
    widths = []
    for n in (100, 1600):
        found = measure(*example(n), list("abcd"), 0)
        for name in ("mauc", "f1"):
            assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
        widths.append(found["mauc_high"] - found["mauc_low"])
    assert 2.5 < widths[0] / widths[1] < 6.5  # about 4, as the square root of 16
    assert measure(*example(), list("abcd"), 3) == measure(*example(), list("abcd"), 3)
    assert measure(*example(), list("abcd"), 3) != measure(*example(), list("abcd"), 4)


def test_the_interval_is_that_of_resamples_within_the_classes() -> None:
    """The long way: images drawn again class by class."""
    probabilities, labels = example(80, 3)
    rng = np.random.default_rng(9)
    values = []
    for _ in range(600):
        again = np.concatenate(
            [rng.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in range(3)]
        )
        values.append(np.mean([auc(probabilities[again, k], labels[again] == k)[0] for k in range(3)]))
    found = measure(probabilities, labels, list("abc"), 0)
    wanted = np.percentile(values, [2.5, 97.5])
    assert [found["mauc_low"], found["mauc_high"]] == pytest.approx(wanted, abs=0.02)


def test_chunks_of_resamples_leave_the_mean_and_give_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = example()[1]
    assert sum(len(W) for W in scores._resamples(labels, 0)) == scores.RESAMPLES
    monkeypatch.setattr(scores, "CHUNK", 300 * len(labels))
    parts = list(scores._resamples(labels, 0))
    assert [len(W) for W in parts] == [300, 300, 300, 100]
    for k in range(4):
        assert (np.concatenate(parts)[:, labels == k].sum(1) == (labels == k).sum()).all()


def test_what_cannot_be_scored_is_one_line() -> None:
    with pytest.raises(VapError, match="found 1 class among 3 test images; expected two classes or more"):
        measure(np.full((3, 2), 0.5), np.zeros(3, int), ["a", "b"], 0)
    with pytest.raises(VapError, match="a probability that is not finite"):
        measure(np.full((2, 2), np.nan), np.array([0, 1]), ["a", "b"], 0)
