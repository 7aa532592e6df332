"""Differences between two contenders on the same test rows, and how far chance could have made them.

Shapes: B rows, C classes, K exits.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bll.selective import error_auroc

RankedRows = tuple[np.ndarray, np.ndarray]
"""Doubt in each row's prediction, and whether it is right."""

_Z95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Difference:
    """Mean difference with its 95 % interval over test rows, for the networks trained."""

    mean: float
    low: float
    high: float
    over_seeds: float | None
    """Standard deviation of the difference from seed to seed; None of a single seed."""


def difference(by_seed: Sequence[np.ndarray], *, same_rows: bool) -> Difference:
    """What the differences of each seed's rows, arrays (B,), come to, by the normal approximation.

    `same_rows`: row i is the same test row under every seed; then its mean over seeds counts once.
    """
    rows = np.mean(by_seed, axis=0) if same_rows else np.concatenate(by_seed)
    mean = float(rows.mean())
    half_width = _Z95 * float(rows.std(ddof=1)) / len(rows) ** 0.5
    means = [float(values.mean()) for values in by_seed]
    return Difference(mean, mean - half_width, mean + half_width, statistics.stdev(means) if len(means) > 1 else None)


def log_prediction(exits_KBC: np.ndarray, name: str) -> np.ndarray:
    """log-probabilities (B, C) of `mixture`, `product`, or exit `first` or `last`, in float64."""
    exits_KBC = exits_KBC.astype(np.float64)
    match name:
        case "first":
            log_probs_BC: np.ndarray = exits_KBC[0]
        case "last":
            log_probs_BC = exits_KBC[-1]
        case "mixture":
            log_probs_BC = np.logaddexp.reduce(exits_KBC, axis=0) - np.log(len(exits_KBC))
        case "product":
            sum_BC = exits_KBC.sum(0)
            log_probs_BC = sum_BC - np.logaddexp.reduce(sum_BC, axis=1)[:, None]
        case _:
            raise ValueError(f"no prediction is called {name!r}")
    return log_probs_BC


def row_scores(arrays: Mapping[str, np.ndarray], prediction: str, score: str) -> np.ndarray:
    """`accuracy` (0 or 1), `nll` (nats) or `doubt` (1 less the largest probability) of each test row, (B,)."""
    targets_B, own = arrays["test_targets"], f"test_{prediction}"
    log_probs_BC = arrays[own] if own in arrays else log_prediction(arrays["test_exits"], prediction)
    match score:
        case "accuracy":
            scores_B: np.ndarray = (log_probs_BC.argmax(1) == targets_B).astype(np.float64)
        case "nll":
            scores_B = -log_probs_BC[np.arange(len(targets_B)), targets_B]
        case "doubt":
            scores_B = -np.expm1(log_probs_BC.max(1))
        case _:
            raise ValueError(f"no row has a score called {score!r}")
    return scores_B


def error_auroc_difference(pairs: Sequence[tuple[RankedRows, RankedRows]], resamples: int = 500) -> Difference:
    """How much better the first of each pair ranks its errors; a pair for each seed, all on the same rows.

    The interval is the bootstrap's (percentiles) over test rows, the same draw for both of all pairs.
    """
    rows, draw = len(pairs[0][0][0]), np.random.default_rng(0)
    by_seed = [error_auroc(*of) - error_auroc(*against) for of, against in pairs]
    drawn = []
    for _ in range(resamples):
        chosen = draw.integers(rows, size=rows)
        values = [error_auroc(a[chosen], b[chosen]) - error_auroc(c[chosen], d[chosen]) for (a, b), (c, d) in pairs]
        drawn.append(statistics.mean(values))
    low, high = np.quantile(drawn, [0.025, 0.975])
    spread = statistics.stdev(by_seed) if len(by_seed) > 1 else None
    return Difference(statistics.mean(by_seed), float(low), float(high), spread)
