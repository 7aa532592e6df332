"""What validation rows teach after training: a temperature, and sets of classes that hold the truth as often as asked.

Shapes: B batch, C classes, K exits. numpy only, in float64: these records travel in a model's manifest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bll.early_exit import EarlyExit, choose_early_exits, early_exit_from_dict
from bll.evaluation import ScoreMeter
from bll.events import Scores
from bll.exits import log_mixture
from bll.rules import Rules

COVERAGES_PER_MILLE = (*range(500, 1000, 5), 999)
"""The coverages that sets and intervals are kept for. Any other is rounded up to the next of these."""

MAX_TEMPERATURE = 10.0
"""Bounds T where validation rows do not: where every class is alike; and 1/T, where every row is right."""

_LEAST_LOG_PROB = float(np.log(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class HeadCalibration:
    """One predictive distribution, calibrated on validation rows."""

    temperature: float
    """T of softmax(log p / T) with the least NLL (Guo et al. 2017), 0.1 to 10."""
    thresholds: tuple[float, ...]
    """For each of COVERAGES_PER_MILLE: the set is the classes whose probability, not tempered, is at least this."""

    def threshold(self, coverage: float) -> float:
        """The least probability of a class in a set that holds the true one with probability `coverage`.

        Raises InvalidConfig unless `coverage` is between 0.5 and 0.999.
        """
        return self.thresholds[coverage_index(coverage)]


@dataclass(frozen=True)
class Calibration:
    """The calibration of a network's mixture and of each of its exits."""

    rows: int
    """Validation rows that it was fitted on."""
    mixture: HeadCalibration
    exits: tuple[HeadCalibration, ...]
    """One per block. Sets of different exits are not nested."""
    depths: tuple[HeadCalibration, ...] = ()
    """Of the mixture of the first exits, by how many they are: the last is `mixture`. None in older manifests."""
    early_exits: tuple[EarlyExit, ...] = ()
    """Thresholds on the largest calibrated probability after each block, by the loss of accuracy that they tolerate."""


@dataclass(frozen=True)
class Coverage:
    """How the sets for one coverage fared on rows that they were not made from."""

    asked: float
    found: float
    """Fraction of rows whose set holds the true class."""
    mean_size: float
    """Mean number of classes in a set; a set is empty where no class is likely enough."""


@dataclass(frozen=True)
class CalibrationScores:
    """The calibrated mixture on one split."""

    split: str
    rows: int
    tempered: Scores
    coverages: tuple[Coverage, ...]


def calibrate(log_exits_KBC: NDArray[np.floating], targets_B: NDArray[np.integer]) -> Calibration:
    """The calibration that log p_k(y|x) of validation rows and their true classes give."""
    log_exits_KBC = log_exits_KBC.astype(np.float64)
    mixtures = [log_mixture(log_exits_KBC[:count]) for count in range(1, len(log_exits_KBC) + 1)]
    depths = tuple(_calibrate_head(log_probs_BC, targets_B) for log_probs_BC in mixtures)
    tempered = [tempered_log_probs(each_BC, head.temperature) for each_BC, head in zip(mixtures, depths, strict=True)]
    confidence_KB = np.exp(np.stack([each_BC.max(1) for each_BC in tempered]))
    correct_KB = np.stack([each_BC.argmax(1) == targets_B for each_BC in mixtures])
    return Calibration(
        rows=len(targets_B),
        mixture=depths[-1],
        exits=tuple(_calibrate_head(log_probs_BC, targets_B) for log_probs_BC in log_exits_KBC),
        depths=depths,
        early_exits=choose_early_exits(confidence_KB, correct_KB),
    )


def coverage_index(coverage: float) -> int:
    """Place in COVERAGES_PER_MILLE of the least one that is no less than `coverage`.

    Raises InvalidConfig unless `coverage` is between 0.5 and 0.999.
    """
    rules = Rules()
    rules.within("coverage", coverage, COVERAGES_PER_MILLE[0] / 1000, COVERAGES_PER_MILLE[-1] / 1000)
    rules.done()
    # 0.55 * 1000 comes out a little above 550: that much is rounding, and no higher coverage.
    return bisect_left(COVERAGES_PER_MILLE, coverage * 1000 - 1e-9)


def _calibrate_head(log_probs_BC: NDArray[np.float64], targets_B: NDArray[np.integer]) -> HeadCalibration:
    # The thresholds are on p, not on the tempered p: T has seen these rows, so that their tempered probabilities would
    # not be exchangeable with those of a new row, and the coverage would no longer be exact.
    true_B = np.exp(log_probs_BC[np.arange(len(targets_B)), targets_B])
    return HeadCalibration(fit_temperature(log_probs_BC, targets_B), conformal_thresholds(true_B))


def fit_temperature(log_probs_BC: NDArray[np.floating], targets_B: NDArray[np.integer]) -> float:
    """The T between 0.1 and 10 for which softmax(log p / T) has the least NLL; 1 where every T has the same.

    The NLL is convex in 1/T: a bracket around its minimum shrinks by Newton steps, and by halving where they leave it.
    """
    log_probs_BC = np.maximum(log_probs_BC.astype(np.float64), _LEAST_LOG_PROB)
    true_B = log_probs_BC[np.arange(len(targets_B)), targets_B]
    low, high, inverse = 1 / MAX_TEMPERATURE, MAX_TEMPERATURE, 1.0
    for _ in range(100):
        probs_BC = np.exp(tempered_log_probs(log_probs_BC, 1 / inverse))
        mean_B = (probs_BC * log_probs_BC).sum(1)
        slope = float((mean_B - true_B).mean())
        curvature = float((probs_BC * (log_probs_BC - mean_B[:, None]) ** 2).sum(1).mean())
        if slope > 0:
            high = inverse
        elif slope < 0:
            low = inverse
        else:
            break
        newton = inverse - slope / curvature if curvature > 0 else low
        following = newton if low < newton < high else float(np.sqrt(low * high))
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return 1 / inverse


def tempered_log_probs(log_probs_BC: NDArray[np.floating], temperature: float) -> NDArray[np.floating]:
    """log softmax(log p / T), shape (B, C)."""
    scaled_BC = log_probs_BC / temperature
    scaled_BC = scaled_BC - scaled_BC.max(1, keepdims=True)
    result: NDArray[np.floating] = scaled_BC - np.log(np.exp(scaled_BC).sum(1, keepdims=True))
    return result


def conformal_thresholds(true_B: NDArray[np.floating]) -> tuple[float, ...]:
    """For each of COVERAGES_PER_MILLE, the least probability of a class in the set, from those of the true classes.

    Split conformal prediction with the score 1 - p (Sadinle et al. 2019). Of all scores it has the smallest sets on
    average; it is deterministic; and whoever serves the model needs one number. The threshold for coverage c is the
    score of rank ceil((n + 1) c) among n; where n is too small for that rank, every class is in the set.
    """
    rows = len(true_B)
    falling_B = np.sort(true_B)[::-1]
    ranks = [-(-(rows + 1) * per_mille // 1000) for per_mille in COVERAGES_PER_MILLE]
    return tuple(float(falling_B[rank - 1]) if rank <= rows else 0.0 for rank in ranks)


def score_calibration(
    calibration: Calibration,
    split: str,
    log_exits_KBC: NDArray[np.floating],
    targets_B: NDArray[np.integer],
    coverages: tuple[float, ...] = (0.9, 0.95),
) -> CalibrationScores:
    """How the calibrated mixture fares on the rows of `split`, given log p_k(y|x) and the true classes."""
    head = calibration.mixture
    log_probs_BC = log_mixture(log_exits_KBC.astype(np.float64))
    meter = ScoreMeter(log_probs_BC.shape[1])
    meter.add(tempered_log_probs(log_probs_BC, head.temperature), targets_B)
    found = []
    for asked in coverages:
        sets_BC = np.exp(log_probs_BC) >= head.threshold(asked)
        covered_B = sets_BC[np.arange(len(targets_B)), targets_B]
        found.append(Coverage(asked, float(covered_B.mean()), float(sets_BC.sum(1).mean())))
    return CalibrationScores(split, len(targets_B), meter.scores(), tuple(found))


def calibration_from_dict(values: Mapping[str, Any]) -> Calibration:
    """The calibration whose `dataclasses.asdict` went through JSON."""
    return Calibration(
        rows=values["rows"],
        mixture=_head(values["mixture"]),
        exits=tuple(_head(head) for head in values["exits"]),
        depths=tuple(_head(head) for head in values.get("depths", ())),
        early_exits=tuple(early_exit_from_dict(each) for each in values.get("early_exits", ())),
    )


def calibration_scores_from_dict(values: Mapping[str, Any]) -> CalibrationScores:
    """The scores whose `dataclasses.asdict` went through JSON."""
    coverages = tuple(Coverage(**coverage) for coverage in values["coverages"])
    return CalibrationScores(values["split"], values["rows"], Scores(**values["tempered"]), coverages)


def _head(values: Mapping[str, Any]) -> HeadCalibration:
    return HeadCalibration(values["temperature"], tuple(values["thresholds"]))
