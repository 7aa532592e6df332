"""When a row is sure enough to be answered before the last block: thresholds that validation rows choose by risk.

Shapes: B rows, K exits. numpy only: these records travel in a model's manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERATED_LOSSES = (0.0, 0.001, 0.002, 0.005)
"""Losses of accuracy, as fractions of all rows, that thresholds are chosen for."""
LEVEL = 0.95
"""Probability with which a bound holds."""

_NEVER = 2.0
"""A threshold that no confidence reaches."""
_STEPS = 50
"""Thresholds that each exit may choose from: quantiles of its confidence, so few that chance has little to pick."""


@dataclass(frozen=True)
class EarlyExit:
    """Thresholds for one tolerated loss of accuracy, and how they fared on the validation rows that chose them."""

    max_accuracy_loss: float
    """What is tolerated, as a fraction of all rows."""
    thresholds: tuple[float, ...]
    """For each exit but the last: a row is answered there if its confidence is no less. Above 1: none is."""
    mean_blocks: float
    """Blocks that a row ran through, on average."""
    accuracy_loss: float
    """Accuracy of all blocks less that of the exits taken; below 0 where these are better."""
    accuracy_loss_bound: float
    """What the loss on new rows stays below with probability LEVEL, had the thresholds been chosen on other rows; they
    were not, so that it is a little too good."""


def choose_early_exits(confidence_KB: NDArray[np.floating], correct_KB: NDArray[np.bool_]) -> tuple[EarlyExit, ...]:
    """For each of TOLERATED_LOSSES, thresholds under which validation rows skip most blocks and lose no more.

    `confidence_KB` and `correct_KB` are of the answers after each block. Thresholds start where no row is sure enough,
    and fall one step at a time: always that which saves most blocks for each row that it gets wrong, as long as the
    loss is tolerated. So they are nested: who tolerates more waits for less.
    """
    exits, rows = confidence_KB.shape
    candidates = [_candidates(confidence_B) for confidence_B in confidence_KB[:-1]]
    places = [0] * (exits - 1)
    found = []
    for tolerated in TOLERATED_LOSSES:
        while True:
            now = _outcome(confidence_KB, correct_KB, _thresholds(candidates, places))
            moves = []
            for exit_index in range(exits - 1):
                if places[exit_index] + 1 < len(candidates[exit_index]):
                    moved = [place + (index == exit_index) for index, place in enumerate(places)]
                    then = _outcome(confidence_KB, correct_KB, _thresholds(candidates, moved))
                    if then.loss <= tolerated + 1e-12:
                        price = max(then.loss - now.loss, 0.0) + 1 / rows
                        moves.append(((now.mean_blocks - then.mean_blocks) / price, moved))
            if not moves:
                break
            places = max(moves)[1]
        bound = loss_bound(now.harmed, now.helped, rows)
        thresholds = tuple(_thresholds(candidates, places).tolist())
        found.append(EarlyExit(tolerated, thresholds, now.mean_blocks, now.loss, bound))
    return tuple(found)


@dataclass(frozen=True)
class _Outcome:
    """What comes of some thresholds."""

    mean_blocks: float
    harmed: int
    """Rows that all blocks get right, and the exit taken gets wrong."""
    helped: int
    """The other way round."""
    rows: int

    @property
    def loss(self) -> float:
        return (self.harmed - self.helped) / self.rows


def _outcome(
    confidence_KB: NDArray[np.floating], correct_KB: NDArray[np.bool_], thresholds_K: NDArray[np.float64]
) -> _Outcome:
    exit_B = exits_taken(confidence_KB, thresholds_K)
    correct_B, last_B = correct_KB[exit_B, np.arange(len(exit_B))], correct_KB[-1]
    harmed, helped = int((last_B & ~correct_B).sum()), int((~last_B & correct_B).sum())
    return _Outcome(float(exit_B.mean()) + 1, harmed, helped, len(exit_B))


def exits_taken(confidence_KB: NDArray[np.floating], thresholds: NDArray[np.floating]) -> NDArray[np.intp]:
    """Index of the first exit at which each row is sure enough, or of the last, shape (B,)."""
    leaves_KB = np.ones(confidence_KB.shape, dtype=bool)
    leaves_KB[:-1] = confidence_KB[:-1] >= thresholds[:, None]
    taken: NDArray[np.intp] = leaves_KB.argmax(0)
    return taken


def loss_bound(harmed: int, helped: int, rows: int, level: float = LEVEL) -> float:
    """What the loss of accuracy is below with probability `level`, from the rows of a sample that an early exit harmed
    and helped: exact (Clopper and Pearson 1934) for each of the two rates, half of what is left to chance for each."""
    risk = (1 - level) / 2
    return _rate_bound(harmed, rows, risk) - (1 - _rate_bound(rows - helped, rows, risk))


def _rate_bound(count: int, rows: int, risk: float) -> float:
    """The rate at which no more than `count` of `rows` would come up with probability `risk`."""
    if count >= rows:
        return 1.0
    chosen = np.arange(1, count + 1)
    log_ways = np.concatenate(([0.0], np.log((rows - chosen + 1) / chosen).cumsum()))
    counts = np.arange(count + 1)
    low, high = count / rows, 1.0
    while high - low > 1e-9:
        rate = (low + high) / 2
        log_terms = log_ways + counts * math.log(rate) + (rows - counts) * math.log1p(-rate)
        if np.exp(log_terms).sum() > risk:
            low = rate
        else:
            high = rate
    return high


def _candidates(confidence_B: NDArray[np.floating]) -> NDArray[np.float64]:
    """Thresholds to choose from, falling; the first lets no row leave, the last all."""
    quantiles = np.quantile(confidence_B.astype(np.float64), np.arange(_STEPS) / _STEPS)
    return np.concatenate(([_NEVER], np.unique(quantiles)[::-1]))


def _thresholds(candidates: list[NDArray[np.float64]], places: list[int]) -> NDArray[np.float64]:
    return np.array([each[place] for each, place in zip(candidates, places, strict=True)])


def early_exit_from_dict(values: Mapping[str, Any]) -> EarlyExit:
    """The record whose `dataclasses.asdict` went through JSON."""
    return EarlyExit(**{**values, "thresholds": tuple(values["thresholds"])})
