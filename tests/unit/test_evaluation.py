"""Scores against scikit-learn and against values worked out by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, log_loss

from bll.evaluation import BINS, ScoreMeter, class_iou, confusion, mean_iou
from bll.events import Scores


def rows(count: int, classes: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (count, classes))
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probs.astype(dtype), generator.integers(0, classes, count)


def scored(log_probs: np.ndarray, targets: np.ndarray, batch: int = 10**9) -> Scores:
    meter = ScoreMeter(log_probs.shape[1])
    for start in range(0, len(targets), batch):
        meter.add(log_probs[start : start + batch], targets[start : start + batch])
    return meter.scores()


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_match_scikit_learn(classes: int) -> None:
    log_probs, targets = rows(500, classes)
    probs = np.exp(log_probs)
    scores = scored(log_probs, targets)
    assert scores.accuracy == pytest.approx(accuracy_score(targets, probs.argmax(1)), abs=1e-12)
    assert scores.nll_nats == pytest.approx(log_loss(targets, probs, labels=range(classes)), abs=1e-9)
    one_hot = np.eye(classes)[targets]
    assert scores.brier == pytest.approx(float(((probs - one_hot) ** 2).sum(1).mean()), abs=1e-12)


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss

    log_probs, targets = rows(300, 2)
    assert scored(log_probs, targets).brier == pytest.approx(
        2 * brier_score_loss(targets, np.exp(log_probs[:, 1])), abs=1e-12
    )


def test_calibration_error_by_hand() -> None:
    # Confidences 0.95, 0.95 in the last bin (one of two right), 0.6 in the bin (8/15, 9/15] (right).
    probs = np.array([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6]])
    scores = scored(np.log(probs), np.array([0, 1, 1]))
    assert scores.ece == pytest.approx(2 / 3 * abs(0.5 - 0.95) + 1 / 3 * abs(1 - 0.6), abs=1e-12)
    assert scores.accuracy == pytest.approx(2 / 3)


def test_calibration_error_matches_the_definition_bin_by_bin() -> None:
    log_probs, targets = rows(400, 5)
    probs = np.exp(log_probs)
    confidence, right = probs.max(1), probs.argmax(1) == targets
    expected = 0.0
    for b in range(BINS):
        inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert scored(log_probs, targets).ece == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_is_perfect() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(3))
    assert scored(log_probs, np.arange(3)) == Scores(accuracy=1.0, nll_nats=0.0, ece=0.0, brier=0.0)


def test_certain_and_wrong_costs_everything() -> None:
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.eye(2))
    scores = scored(log_probs, np.array([1, 0]))
    assert scores == Scores(accuracy=0.0, nll_nats=math.inf, ece=1.0, brier=2.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_and_batching_change_nothing_beyond_1e_9(dtype: type) -> None:
    log_probs, targets = rows(5000, 10, dtype)
    whole = scored(log_probs, targets)
    order = np.random.default_rng(1).permutation(5000)
    for batch in (1, 7, 512):
        other = scored(log_probs[order], targets[order], batch)
        for name in ("accuracy", "nll_nats", "ece", "brier"):
            assert getattr(other, name) == pytest.approx(getattr(whole, name), abs=1e-9)


def test_a_confidence_rounded_above_one_counts_in_the_last_bin() -> None:
    assert scored(np.array([[1e-7, -20.0]]), np.array([0])).accuracy == 1


def test_what_is_not_a_number_stays_visible() -> None:
    scores = scored(np.full((2, 3), np.nan), np.array([0, 1]))
    assert math.isnan(scores.nll_nats)
    assert math.isnan(scores.ece)


def test_no_rows_have_no_scores() -> None:
    with pytest.raises(ValueError, match="no rows"):
        ScoreMeter(3).scores()


@pytest.mark.parametrize("classes", [2, 5])
def test_intersection_over_union_matches_scikit_learn(classes: int) -> None:
    generator = np.random.default_rng(2)
    targets, predicted = generator.integers(0, classes, (2, 6, 4, 4))
    counts_CC = confusion(predicted, targets, classes)
    np.testing.assert_array_equal(counts_CC, confusion_matrix(targets.ravel(), predicted.ravel()))
    expected_C = jaccard_score(targets.ravel(), predicted.ravel(), average=None)
    np.testing.assert_allclose(class_iou(counts_CC), expected_C)
    assert mean_iou(counts_CC) == pytest.approx(expected_C.mean())


def test_a_class_neither_there_nor_predicted_has_no_part_in_the_mean() -> None:
    # Class 0: 1 of 2; class 1: 1 of 2; class 2: absent; class 3: predicted but never there, 0 of 1.
    counts_CC = confusion(np.array([0, 1, 3]), np.array([0, 1, 1]), 4)
    np.testing.assert_array_equal(class_iou(counts_CC), [1, 0.5, np.nan, 0])
    expected = jaccard_score([0, 1, 1], [0, 1, 3], average="macro")
    assert mean_iou(counts_CC) == pytest.approx(expected) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no rows"):
        mean_iou(np.zeros((3, 3), int))
