"""Variance scales against known factors; intervals against the definition of risk control and the law of coverage."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bll.calibration import COVERAGES_PER_MILLE
from bll.errors import InvalidConfig
from bll.regression.calibration import (
    HALF_WIDTHS,
    Errors,
    RegressionCalibration,
    VarianceCalibration,
    calibrate_regression,
    regression_calibration_from_dict,
    regression_calibration_scores_from_dict,
    score_intervals,
)


def one_head(error_BX: np.ndarray, deviation_BX: np.ndarray | None = None) -> Errors:
    deviation_BX = np.ones_like(error_BX) if deviation_BX is None else deviation_BX
    return Errors(np.abs(error_BX)[:, None], deviation_BX[:, None])


def fitted(error_BX: np.ndarray, deviation_BX: np.ndarray | None = None) -> VarianceCalibration:
    return calibrate_regression([one_head(error_BX, deviation_BX)]).mixture


@pytest.mark.parametrize("factor", [0.25, 1.0, 9.0])
def test_the_scale_recovers_the_factor_that_spoilt_the_variance(factor: float) -> None:
    generator = np.random.default_rng(0)
    deviation_BX = generator.uniform(0.1, 3.0, (4000, 10))
    error_BX = deviation_BX * generator.normal(size=deviation_BX.shape)
    found = fitted(error_BX, deviation_BX / math.sqrt(factor))
    assert found.variance_scale == pytest.approx(factor, rel=4 * math.sqrt(2 / error_BX.size))
    for coverage in (0.5, 0.9, 0.95):
        gaussian = math.sqrt(factor) * stats.norm.ppf((1 + coverage) / 2)
        assert found.half_width(coverage) == pytest.approx(gaussian, rel=0.02)


def test_no_other_scale_has_a_greater_gaussian_likelihood() -> None:
    generator = np.random.default_rng(1)
    deviation_BX = generator.uniform(0.1, 3.0, (200, 3))
    error_BX = deviation_BX * generator.standard_t(3, deviation_BX.shape)

    def likelihood(scale: float) -> float:
        return float(stats.norm.logpdf(error_BX, scale=math.sqrt(scale) * deviation_BX).sum())

    best = fitted(error_BX, deviation_BX).variance_scale
    assert all(likelihood(best) > likelihood(best * other) for other in (0.5, 0.99, 1.01, 2.0))


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_half_widths_are_the_least_that_control_the_fraction_missed(
    rows: int, values: int, batch: int, seed: int
) -> None:
    """n/(n+1) R_n + 1/(n+1) <= 1 - c (Angelopoulos et al. 2024), with R_n the mean fraction of a row that is missed."""
    error_BX = np.random.default_rng(seed).standard_cauchy((rows, values))
    batches = [one_head(error_BX[start : start + batch]) for start in range(0, rows, batch)]
    found = calibrate_regression(batches).mixture.half_widths
    assert list(found) == sorted(found)

    def controls(half_width: float, per_mille: int) -> bool:
        missed = Fraction(int((np.abs(error_BX) > half_width).sum()), values)
        return (missed + 1) / (rows + 1) <= 1 - Fraction(per_mille, 1000)

    for index, per_mille in enumerate(COVERAGES_PER_MILLE):
        if index >= len(found):
            assert not controls(HALF_WIDTHS[-1], per_mille)
            continue
        place = int(np.searchsorted(HALF_WIDTHS, found[index]))
        assert HALF_WIDTHS[place] == found[index]
        assert controls(found[index], per_mille)
        assert place == 0 or not controls(HALF_WIDTHS[place - 1], per_mille)


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
def test_coverage_of_single_values_lies_within_its_binomial_bounds(coverage: float) -> None:
    generator = np.random.default_rng(2)
    rows = 20_000
    half_width = fitted(generator.standard_t(3, (rows, 1))).half_width(coverage)
    hits = int((np.abs(generator.standard_t(3, rows)) <= half_width).sum())
    # The calibration rows vary as the new ones do: twice the variance.
    assert hits / rows == pytest.approx(coverage, abs=4 * math.sqrt(2 * coverage * (1 - coverage) / rows) + 0.001)


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_values_that_depend_on_each_other_within_a_row_are_covered_on_average(coverage: float) -> None:
    generator = np.random.default_rng(3)
    repeats, rows, values = 400, 30, 5

    def drawn(count: int) -> np.ndarray:
        return np.asarray(generator.normal(size=(count, values)) * generator.lognormal(0, 1, (count, 1)))

    found = [float((np.abs(drawn(50)) <= fitted(drawn(rows)).half_width(coverage)).mean()) for _ in range(repeats)]
    margin = 4 * float(np.std(found)) / math.sqrt(repeats)
    assert coverage - margin <= np.mean(found) <= coverage + 2 / (rows + 1) + margin


def test_too_few_rows_have_no_finite_interval_of_a_high_coverage() -> None:
    errors = one_head(np.arange(1.0, 10.0)[:, None])
    calibration = calibrate_regression([errors])
    assert calibration.mixture.half_width(0.9) == pytest.approx(9.0, rel=1.1e-3)
    assert calibration.mixture.half_width(0.905) == math.inf
    assert [c.asked for c in score_intervals(calibration, "test", [errors]).coverages] == [0.5, 0.8, 0.9]
    assert fitted(np.ones((1, 2))).half_width(0.5) == pytest.approx(1.0, rel=1.1e-3)
    assert fitted(np.full((9, 1), 1e5)).half_widths == ()
    for function in (calibrate_regression, lambda none: score_intervals(calibration, "test", none)):
        with pytest.raises(ValueError, match="no rows to"):
            function([])


def test_a_coverage_out_of_range_is_refused_by_field_rule_and_value() -> None:
    head = VarianceCalibration(1.0, tuple(map(float, COVERAGES_PER_MILLE)))
    assert [head.half_width(c) for c in (0.5, 0.55, 0.9001, 0.999)] == [500, 550, 905, 999]
    for coverage in (0.4999, 0.9991, float("nan"), -1.0, 2.0):
        with pytest.raises(InvalidConfig, match=rf"coverage: must be between 0\.5 and 0\.999, got {coverage}"):
            head.half_width(coverage)


def test_every_prediction_is_calibrated_by_itself_and_all_goes_through_json() -> None:
    generator = np.random.default_rng(4)
    error_BHX, deviation_BHX = generator.lognormal(size=(300, 3, 4)), generator.lognormal(size=(300, 3, 4))
    calibration = calibrate_regression([Errors(error_BHX, deviation_BHX)])
    assert calibration.rows == 300
    for h, head in enumerate((calibration.mixture, *calibration.exits)):
        assert head == fitted(error_BHX[:, h], deviation_BHX[:, h])
    scores = score_intervals(calibration, "test", [Errors(error_BHX, deviation_BHX)])
    assert regression_calibration_from_dict(json.loads(json.dumps(asdict(calibration), allow_nan=False))) == calibration
    assert regression_calibration_scores_from_dict(json.loads(json.dumps(asdict(scores), allow_nan=False))) == scores


def test_scores_count_values_within_both_intervals_of_the_mixture_and_tell_their_widths() -> None:
    head = VarianceCalibration(1.0, tuple(0.5 if c < 900 else 1.0 for c in COVERAGES_PER_MILLE))
    calibration = RegressionCalibration(9, head, (VarianceCalibration(1.0, ()),))
    # In deviations: 0.25, 1, 1.5 and 3.
    error_BHX = np.array([[[0.5, 2.0], [9, 9]], [[1.5, 3.0], [9, 9]]])
    deviation_BHX = np.array([[[2.0, 2.0], [1, 1]], [[1.0, 1.0], [1, 1]]])
    batches = [Errors(error_BHX[row : row + 1], deviation_BHX[row : row + 1]) for row in (0, 1)]
    found = score_intervals(calibration, "test", batches)
    assert (found.split, found.rows) == ("test", 2)
    told = [(c.asked, c.gaussian_found, c.found, c.mean_width) for c in found.coverages]
    assert told == [(0.5, 0.25, 0.25, 1.5), (0.8, 0.5, 0.25, 1.5), (0.9, 0.75, 0.5, 3.0), (0.95, 0.75, 0.5, 3.0)]
    assert [c.gaussian_mean_width for c in found.coverages] == pytest.approx(
        [3 * stats.norm.ppf((1 + c) / 2) for c in (0.5, 0.8, 0.9, 0.95)]
    )
