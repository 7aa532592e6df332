"""Thresholds of early exits against every choice that there is, and bounds against the exact law."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bll.early_exit import TOLERATED_LOSSES, choose_early_exits, early_exit_from_dict, exits_taken, loss_bound


def rows(count: int, exits: int, seed: int, gain: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that are the probability of being right, and whether each exit is; later ones are better."""
    generator = np.random.default_rng(seed)
    easy_B = generator.beta(4, 1, count)
    confidence_KB = np.clip(easy_B + gain * np.arange(exits)[:, None] + generator.normal(0, 0.03, (exits, count)), 0, 1)
    return confidence_KB, generator.random(count) < confidence_KB


def test_thresholds_lose_no_more_than_is_tolerated_and_skip_more_the_more_that_is() -> None:
    confidence_KB, correct_KB = rows(4000, 4, 0)
    found = choose_early_exits(confidence_KB, correct_KB)
    assert tuple(each.max_accuracy_loss for each in found) == TOLERATED_LOSSES
    for each in found:
        exit_B = exits_taken(confidence_KB, np.array(each.thresholds))
        loss = correct_KB[-1].mean() - correct_KB[exit_B, np.arange(4000)].mean()
        assert each.accuracy_loss == pytest.approx(loss)
        assert loss <= each.max_accuracy_loss + 1e-9
        assert each.mean_blocks == pytest.approx(exit_B.mean() + 1)
        assert each.accuracy_loss_bound > each.accuracy_loss
    for less, more in itertools.pairwise(found):
        assert more.mean_blocks <= less.mean_blocks
        assert all(high >= low for high, low in zip(less.thresholds, more.thresholds, strict=True))
    assert found[0].mean_blocks < 4


def test_one_exit_before_the_last_is_left_at_the_best_threshold_that_one_step_at_a_time_can_reach() -> None:
    confidence_KB, correct_KB = rows(500, 2, 1)
    candidates = [2.0, *np.unique(np.quantile(confidence_KB[0], np.arange(50) / 50))[::-1]]
    for each in choose_early_exits(confidence_KB, correct_KB):
        losses = [
            correct_KB[1].mean() - np.where(confidence_KB[0] >= t, correct_KB[0], correct_KB[1]).mean()
            for t in candidates
        ]
        reached = next((i for i, loss in enumerate(losses) if loss > each.max_accuracy_loss + 1e-12), len(losses)) - 1
        # A larger tolerance goes on from a smaller one's place: never before the first step that costs too much.
        assert each.thresholds[0] == pytest.approx(candidates[reached])


def test_rows_that_the_first_exit_always_gets_right_all_leave_there() -> None:
    confidence_KB, correct_KB = np.full((3, 50), 0.9), np.ones((3, 50), bool)
    assert choose_early_exits(confidence_KB, correct_KB)[0].mean_blocks == 1.0


def test_rows_that_only_the_last_exit_gets_right_all_stay() -> None:
    confidence_KB, correct_KB = np.full((3, 50), 0.9), np.zeros((3, 50), bool)
    correct_KB[-1] = True
    for each in choose_early_exits(confidence_KB, correct_KB):
        assert each.mean_blocks == 3.0
        assert min(each.thresholds) > 1


def test_network_of_one_block_has_no_threshold_to_choose() -> None:
    for each in choose_early_exits(*rows(20, 1, 0)):
        assert (each.thresholds, each.mean_blocks, each.accuracy_loss) == ((), 1.0, 0.0)


@settings(max_examples=30)
@given(count=st.integers(1, 40), exits=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_any_rows_give_thresholds_that_go_through_json(count: int, exits: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidence_KB, correct_KB = generator.random((exits, count)), generator.random((exits, count)) < 0.7
    for each in choose_early_exits(confidence_KB, correct_KB):
        assert early_exit_from_dict(json.loads(json.dumps(asdict(each)))) == each
        assert each.accuracy_loss <= each.max_accuracy_loss + 1e-9


@pytest.mark.parametrize(("harmed", "helped", "count"), [(0, 0, 100), (3, 0, 100), (20, 12, 5000), (100, 0, 100)])
def test_bound_is_that_of_clopper_and_pearson(harmed: int, helped: int, count: int) -> None:
    high = stats.beta.ppf(0.975, harmed + 1, count - harmed) if harmed < count else 1.0
    low = stats.beta.ppf(0.025, helped, count - helped + 1) if helped else 0.0
    assert loss_bound(harmed, helped, count) == pytest.approx(high - low, abs=1e-6)


def test_bound_holds_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    rates = [0.01, 0.005, 0.985]
    draws = generator.multinomial(1000, rates, 400)
    held = [loss_bound(harmed, helped, 1000) >= rates[0] - rates[1] for harmed, helped, _ in draws.tolist()]
    assert np.mean(held) >= 0.95
