"""What validation rows teach of real-valued targets after training: a scale of the variance, and intervals that hold
the true values as often as asked.

Shapes: B batch, K exits, H = 1 + K predictions (the mixture, then the exits), X values of one target. numpy only, in
float64: these records travel in a model's manifest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bll.calibration import COVERAGES_PER_MILLE, coverage_index

SCORED_COVERAGES = (0.5, 0.8, 0.9, 0.95)
"""The coverages that are scored."""

HALF_WIDTHS = np.geomspace(1e-3, 1e4, 2**14)
"""Half-widths that are told apart, 0.1 % from each to the next: counts of them take a pass over rows that are many."""


class Errors(NamedTuple):
    """What a batch's predictions got wrong, and by how much they said that they would."""

    error_BHX: NDArray[np.floating]
    """Distance from the mean to the true value."""
    deviation_BHX: NDArray[np.floating]
    """Square root of the variance, above 0."""


@dataclass(frozen=True)
class VarianceCalibration:
    """One predicted mean and variance of each value, calibrated on validation rows."""

    variance_scale: float
    """Factor on the variance with the greatest Gaussian likelihood: the mean squared standardised error. Where a few
    errors are much larger than the rest, most Gaussian intervals of this variance are too wide."""
    half_widths: tuple[float, ...]
    """For each of COVERAGES_PER_MILLE: half the interval's width, in predicted deviations, not scaled. It ends before
    the coverages that the validation rows are too few for."""

    def half_width(self, coverage: float) -> float:
        """Half the width, in predicted deviations, of the interval around the mean that holds a fraction `coverage` of
        the values of new rows; infinite where validation rows were too few.

        Raises InvalidConfig unless `coverage` is between 0.5 and 0.999.
        """
        index = coverage_index(coverage)
        return self.half_widths[index] if index < len(self.half_widths) else math.inf


@dataclass(frozen=True)
class RegressionCalibration:
    """The calibration of a network's mixture and of each of its exits."""

    rows: int
    """Validation rows that it was fitted on."""
    mixture: VarianceCalibration
    """Of the mixture's mean and variance."""
    exits: tuple[VarianceCalibration, ...]
    """One per block."""


@dataclass(frozen=True)
class IntervalCoverage:
    """How intervals for one coverage fared on rows that they were not made from, before and after calibration."""

    asked: float
    gaussian_found: float
    """Fraction of values within the central interval of the Gaussian with the predicted mean and variance."""
    gaussian_mean_width: float
    """In the targets' own units."""
    found: float
    """Fraction of values within the calibrated interval."""
    mean_width: float


@dataclass(frozen=True)
class RegressionCalibrationScores:
    """The mixture's intervals on one split."""

    split: str
    rows: int
    coverages: tuple[IntervalCoverage, ...]
    """Of SCORED_COVERAGES; less those that the calibration has no finite interval for."""


def calibrate_regression(batches: Iterable[Errors]) -> RegressionCalibration:
    """The calibration that the errors on validation rows give, in one pass. Raises ValueError without any.

    Intervals are split conformal ones with the score |y - mean| / deviation, by conformal risk control (Angelopoulos
    et al. 2024): what is controlled is the fraction of a row's values that its intervals miss. Values of a row depend
    on each other; rows need only be exchangeable. Over new rows, and over validation rows, a fraction of at least
    `coverage` of all values is covered on average. One row's may be more or less, and so may one place's, as a
    single pixel's. Of n rows, ceil((n + 1) X c) values must be covered; for X = 1 that is the usual rank.
    """
    rows, tallies = 0, list[_Tally]()
    for error_BHX, deviation_BHX in batches:
        standardised_HBX = (error_BHX.astype(np.float64) / deviation_BHX).swapaxes(0, 1)
        tallies = tallies or [_Tally() for _ in standardised_HBX]
        for tally, standardised_BX in zip(tallies, standardised_HBX, strict=True):
            tally.add(standardised_BX)
        rows += len(error_BHX)
    if not rows:
        raise ValueError("no rows to calibrate on")
    mixture, *exits = (tally.calibration(rows) for tally in tallies)
    return RegressionCalibration(rows, mixture, tuple(exits))


class _Tally:
    """Counts the standardised errors of one prediction."""

    def __init__(self) -> None:
        self._squared = 0.0
        self._counts = np.zeros(len(HALF_WIDTHS) + 1, dtype=np.int64)
        """Values that each half-width is the least to cover, then those that none covers."""

    def add(self, standardised_BX: NDArray[np.float64]) -> None:
        self._squared += float(np.square(standardised_BX).sum())
        places = np.searchsorted(HALF_WIDTHS, standardised_BX.ravel())
        self._counts += np.bincount(places, minlength=len(self._counts))

    def calibration(self, rows: int) -> VarianceCalibration:
        values = int(self._counts.sum())
        covered = self._counts[:-1].cumsum()
        needed = [-(-(values // rows) * (rows + 1) * per_mille // 1000) for per_mille in COVERAGES_PER_MILLE]
        places = np.searchsorted(covered, needed)
        return VarianceCalibration(
            self._squared / values, tuple(float(HALF_WIDTHS[place]) for place in places if place < len(HALF_WIDTHS))
        )


def score_intervals(
    calibration: RegressionCalibration, split: str, batches: Iterable[Errors]
) -> RegressionCalibrationScores:
    """How the mixture's intervals fare on the rows of `split`. Raises ValueError without any."""
    asked = [c for c in SCORED_COVERAGES if calibration.mixture.half_width(c) < math.inf]
    half_widths = [(NormalDist().inv_cdf((1 + c) / 2), calibration.mixture.half_width(c)) for c in asked]
    rows, values, deviation, covered = 0, 0, 0.0, np.zeros((len(asked), 2), dtype=np.int64)
    for error_BHX, deviation_BHX in batches:
        error_BX, deviation_BX = error_BHX[:, 0].astype(np.float64), deviation_BHX[:, 0].astype(np.float64)
        for place, (before, after) in enumerate(half_widths):
            covered[place] += [(error_BX <= half * deviation_BX).sum() for half in (before, after)]
        deviation += float(deviation_BX.sum())
        rows, values = rows + len(error_BX), values + error_BX.size
    if not rows:
        raise ValueError("no rows to score")
    found = tuple(
        IntervalCoverage(
            asked=coverage,
            gaussian_found=int(covered_before) / values,
            gaussian_mean_width=2 * before * deviation / values,
            found=int(covered_after) / values,
            mean_width=2 * after * deviation / values,
        )
        for coverage, (before, after), (covered_before, covered_after) in zip(asked, half_widths, covered, strict=True)
    )
    return RegressionCalibrationScores(split, rows, found)


def regression_calibration_from_dict(values: Mapping[str, Any]) -> RegressionCalibration:
    """The calibration whose `dataclasses.asdict` went through JSON."""
    return RegressionCalibration(values["rows"], _head(values["mixture"]), tuple(map(_head, values["exits"])))


def regression_calibration_scores_from_dict(values: Mapping[str, Any]) -> RegressionCalibrationScores:
    """The scores whose `dataclasses.asdict` went through JSON."""
    coverages = tuple(IntervalCoverage(**coverage) for coverage in values["coverages"])
    return RegressionCalibrationScores(values["split"], values["rows"], coverages)


def _head(values: Mapping[str, Any]) -> VarianceCalibration:
    return VarianceCalibration(values["variance_scale"], tuple(values["half_widths"]))
