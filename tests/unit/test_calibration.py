"""Temperatures against known ones and brute force; conformal sets against their exact law."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from bll.calibration import (
    COVERAGES_PER_MILLE,
    MAX_TEMPERATURE,
    HeadCalibration,
    calibrate,
    calibration_from_dict,
    calibration_scores_from_dict,
    conformal_thresholds,
    fit_temperature,
    score_calibration,
    tempered_log_probs,
)
from bll.early_exit import TOLERATED_LOSSES
from bll.errors import InvalidConfig
from bll.events import Scores


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def sampled(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """log-probabilities that are exactly right, and targets drawn from them."""
    generator = np.random.default_rng(seed)
    log_probs = log_softmax(generator.normal(0, 2, (rows, classes)))
    return log_probs, (np.exp(log_probs).cumsum(1) > generator.random((rows, 1))).argmax(1)


def nll(log_probs: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> float:
    return -float(tempered_log_probs(log_probs, temperature)[np.arange(len(targets)), targets].mean())


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_recovers_the_one_that_spoilt_the_probabilities(temperature: float) -> None:
    log_probs, targets = sampled(60_000, 4, 0)
    spoilt = log_softmax(log_probs / temperature)
    assert fit_temperature(spoilt, targets) == pytest.approx(1 / temperature, rel=0.03)


@settings(max_examples=50)
@example(rows=8, classes=3, seed=395402, scale=30.0)
@given(
    rows=st.integers(1, 30),
    classes=st.integers(2, 5),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_temperature_has_the_least_nll_within_its_bounds(rows: int, classes: int, seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    # Below float32's smallest number a probability is none: the fit, which floors it there, is given none such.
    least = np.log(np.finfo(np.float32).tiny)
    log_probs = np.maximum(log_softmax(scale * generator.normal(size=(rows, classes))), least)
    targets = generator.integers(0, classes, rows)
    found = fit_temperature(log_probs, targets)
    bounds = (-np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE))
    brute = optimize.minimize_scalar(lambda t: nll(log_probs, targets, np.exp(t)), bounds=bounds, method="bounded")
    assert 1 / MAX_TEMPERATURE <= found <= MAX_TEMPERATURE
    assert nll(log_probs, targets, found) <= min(nll(log_probs, targets), brute.fun) + 1e-9


def test_temperature_of_degenerate_rows_is_one_or_a_bound() -> None:
    assert fit_temperature(log_softmax(np.zeros((3, 4))), np.array([0, 1, 2])) == 1.0
    confident = np.log([[0.9, 0.1], [0.2, 0.8]])
    assert fit_temperature(confident, np.array([0, 1])) == pytest.approx(1 / MAX_TEMPERATURE)
    assert fit_temperature(confident, np.array([1, 0])) == pytest.approx(MAX_TEMPERATURE)
    with np.errstate(divide="ignore"):
        certain = np.log(np.eye(2))
    assert nll(np.maximum(certain, -87), np.array([0, 1]), fit_temperature(certain, np.array([0, 1]))) < 1e-12
    assert fit_temperature(certain, np.array([1, 0])) == pytest.approx(MAX_TEMPERATURE)


@pytest.mark.parametrize("per_mille", [500, 900, 950])
@pytest.mark.parametrize("rows", [40, 999])
def test_conformal_coverage_follows_its_exact_beta_binomial_law(rows: int, per_mille: int) -> None:
    """Hits among m new rows are beta-binomial with a = ceil((n + 1) c), b = n + 1 - a, whatever the scores."""
    generator = np.random.default_rng(per_mille + rows)
    repeats, new_rows = 400, 50
    hits = []
    for _ in range(repeats):
        threshold = conformal_thresholds(generator.random(rows) ** 3)[COVERAGES_PER_MILLE.index(per_mille)]
        hits.append(int((generator.random(new_rows) ** 3 >= threshold).sum()))
    a = -(-(rows + 1) * per_mille // 1000)
    law = stats.betabinom(new_rows, a, rows + 1 - a)
    low, high = stats.norm.interval(0.9999, law.mean(), law.std() / np.sqrt(repeats))
    assert low <= np.mean(hits) <= high
    assert law.mean() / new_rows >= per_mille / 1000
    # The single draws too: their distribution function against the law's.
    values = np.arange(new_rows + 1)
    found = np.searchsorted(np.sort(hits), values, side="right") / repeats
    assert np.abs(found - law.cdf(values)).max() < stats.kstwobign.ppf(0.9999) / np.sqrt(repeats)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_sets_grow_with_the_coverage_and_thresholds_are_the_ranked_scores(true: list[float]) -> None:
    thresholds = conformal_thresholds(np.array(true))
    assert list(thresholds) == sorted(thresholds, reverse=True)
    for per_mille, threshold in zip(COVERAGES_PER_MILLE, thresholds, strict=True):
        rank = int(np.ceil(np.round((len(true) + 1) * per_mille / 1000, 9)))
        assert threshold == (sorted(true, reverse=True)[rank - 1] if rank <= len(true) else 0.0)


def test_any_coverage_is_answered_by_the_next_that_is_kept() -> None:
    head = HeadCalibration(1.0, tuple(float(-c) for c in COVERAGES_PER_MILLE))
    for per_mille in COVERAGES_PER_MILLE:
        assert head.threshold(per_mille / 1000) == -per_mille
    assert [head.threshold(c) for c in (0.5001, 0.9049, 0.9951, 0.998)] == [-505, -905, -999, -999]
    for coverage in (0.4999, 0.9991, float("nan"), -1.0, 2.0):
        with pytest.raises(InvalidConfig, match=r"coverage: must be between 0\.5 and 0\.999, got"):
            head.threshold(coverage)


def test_every_head_is_calibrated_by_itself_and_goes_through_json() -> None:
    log_probs, targets = sampled(500, 3, 1)
    exits = np.stack([log_probs, log_softmax(log_probs * 3)])
    calibration = calibrate(exits, targets)
    assert calibration.rows == 500
    mixture = np.log(np.exp(exits).mean(0))
    for head, own in zip((calibration.mixture, *calibration.exits), (mixture, *exits), strict=True):
        assert head.temperature == pytest.approx(fit_temperature(own, targets), rel=1e-6)
        assert head.thresholds == pytest.approx(conformal_thresholds(np.exp(own[np.arange(500), targets])))
    for depth, head in enumerate(calibration.depths, 1):
        own = np.log(np.exp(exits[:depth]).mean(0))
        assert head.temperature == pytest.approx(fit_temperature(own, targets), rel=1e-6)
    assert calibration.depths[-1] == calibration.mixture
    assert [each.max_accuracy_loss for each in calibration.early_exits] == list(TOLERATED_LOSSES)
    scores = score_calibration(calibration, "test", exits, targets)
    assert calibration_from_dict(json.loads(json.dumps(asdict(calibration)))) == calibration
    assert calibration_scores_from_dict(json.loads(json.dumps(asdict(scores)))) == scores


def test_scores_of_a_calibration_count_sets_and_score_the_tempered_mixture() -> None:
    head = HeadCalibration(2.0, tuple(0.4 if c <= 900 else 0.0 for c in COVERAGES_PER_MILLE))
    probs = np.array([[0.5, 0.4, 0.1], [0.3, 0.3, 0.4], [0.9, 0.05, 0.05]])
    calibration = calibrate(np.log(probs)[None], np.array([0, 1, 2]))
    calibration = type(calibration)(3, head, (head,))
    found = score_calibration(calibration, "test", np.log(probs)[None], np.array([0, 1, 2]))
    assert [(c.asked, c.found, c.mean_size) for c in found.coverages] == [(0.9, 1 / 3, 4 / 3), (0.95, 1.0, 3.0)]
    rooted = np.sqrt(probs) / np.sqrt(probs).sum(1, keepdims=True)
    assert isinstance(found.tempered, Scores)
    assert found.tempered.nll_nats == pytest.approx(-np.log(rooted[np.arange(3), [0, 1, 2]]).mean())
