"""Scores of predictive distributions, gathered batch by batch. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bll.events import Scores

BINS = 15
"""Equal bins of confidence of the calibration error; a bin holds its upper edge."""


def confusion(predicted: NDArray[np.integer], targets: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """How often each true class, by row, is predicted as each, by column; arrays of one shape, any."""
    pairs = targets.reshape(-1).astype(np.int64) * num_classes + predicted.reshape(-1)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_iou(confusion_CC: NDArray[np.integer]) -> NDArray[np.float64]:
    """Intersection over union of each class, shape (C,); NaN for a class neither there nor predicted."""
    intersection_C = np.diag(confusion_CC)
    union_C = confusion_CC.sum(0) + confusion_CC.sum(1) - intersection_C
    iou_C: NDArray[np.float64] = np.full(len(union_C), np.nan)
    np.divide(intersection_C, union_C, out=iou_C, where=union_C > 0)
    return iou_C


def mean_iou(confusion_CC: NDArray[np.integer]) -> float:
    """Mean intersection over union, 0 to 1, of the classes that are there or predicted. Raises ValueError if none."""
    iou_C = class_iou(confusion_CC)
    if np.isnan(iou_C).all():
        raise ValueError("no rows to score")
    return float(np.nanmean(iou_C))


class ScoreMeter:
    """Accuracy, NLL, calibration error and Brier score of all rows added; their order does not matter.

    Sums are in float64, so that millions of rows change the scores by less than 1e-9 however they are batched.
    """

    def __init__(self, num_classes: int) -> None:
        self._one_hot_CC = np.eye(num_classes)
        self._edges = np.linspace(0.0, 1.0, BINS + 1)
        self._rows = 0
        self._nll_nats = 0.0
        self._brier = 0.0
        self._bin_confidence = np.zeros(BINS)
        self._bin_correct = np.zeros(BINS)

    def add(self, log_probs_BC: NDArray[np.floating], targets_B: NDArray[np.integer]) -> None:
        """Count rows with log-probabilities log p(y|x), normalised over the classes, and their true classes."""
        log_probs_BC = log_probs_BC.astype(np.float64)
        probs_BC = np.exp(log_probs_BC)
        rows = len(targets_B)
        predicted_B = log_probs_BC.argmax(axis=1)
        confidence_B = probs_BC[np.arange(rows), predicted_B]
        # Rounding may leave a confidence just above 1; it belongs to the last bin, as NaN, which sorts last, does.
        bin_B = np.clip(np.searchsorted(self._edges, confidence_B, side="left") - 1, 0, BINS - 1)
        self._rows += rows
        self._nll_nats -= float(log_probs_BC[np.arange(rows), targets_B].sum())
        self._brier += float(((probs_BC - self._one_hot_CC[targets_B]) ** 2).sum())
        self._bin_confidence += np.bincount(bin_B, weights=confidence_B, minlength=BINS)
        self._bin_correct += np.bincount(bin_B, weights=predicted_B == targets_B, minlength=BINS)

    def scores(self) -> Scores:
        """Scores of the rows so far. Raises ValueError when there are none."""
        if not self._rows:
            raise ValueError("no rows to score")
        return Scores(
            accuracy=float(self._bin_correct.sum() / self._rows),
            nll_nats=self._nll_nats / self._rows,
            # sum_b (n_b / n) |accuracy_b - confidence_b|: the bins' own counts cancel.
            ece=float(np.abs(self._bin_correct - self._bin_confidence).sum() / self._rows),
            brier=self._brier / self._rows,
        )


def rank_correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Spearman's correlation of two lists of numbers, -1 to 1, equal ones at their mean rank; 0 if one is constant."""
    ranks = np.stack((_ranks(first), _ranks(second)))
    ranks -= ranks.mean(1, keepdims=True)
    lengths = np.sqrt((ranks**2).sum(1))
    if not lengths.all():
        return 0.0
    return float((ranks[0] * ranks[1]).sum() / lengths.prod())


def _ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The rank of each number, counted from 0."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts + 1) / 2)[inverse]
    return ranks
