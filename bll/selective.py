"""How well an uncertainty ranks: what is right above what is wrong, what is known above what is not. numpy only.

Shapes: B rows. Rows with the same uncertainty have no order of their own: every score is the mean over all of theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class RiskCoverage(NamedTuple):
    """Error of the rows that are answered, when only the least uncertain are."""

    coverage_B: Array
    """Fraction of rows answered: 1/B, 2/B, ..., 1."""
    risk_B: Array
    """Fraction of those that are wrong."""


def risk_coverage(uncertainty_B: NDArray[np.floating], correct_B: NDArray[np.bool_]) -> RiskCoverage:
    """The risk-coverage curve (Geifman and El-Yaniv 2017) of predictions that are right where `correct_B` is."""
    order = np.argsort(uncertainty_B, kind="stable")
    sizes = np.unique(uncertainty_B, return_counts=True)[1]
    ends = np.cumsum(sizes)
    errors_until = np.concatenate(([0.0], np.cumsum(~correct_B[order])[ends - 1]))
    answered_B = np.arange(1, len(order) + 1)
    # Among rows of equal uncertainty errors fall evenly, on average over their orders.
    errors_B = np.interp(answered_B, np.concatenate(([0], ends)), errors_until)
    return RiskCoverage(answered_B / len(order), errors_B / answered_B)


def aurc(uncertainty_B: NDArray[np.floating], correct_B: NDArray[np.bool_]) -> float:
    """Area under the risk-coverage curve, the mean risk over all coverages: 0 (best) to 1."""
    return float(risk_coverage(uncertainty_B, correct_B).risk_B.mean())


def error_auroc(uncertainty_B: NDArray[np.floating], correct_B: NDArray[np.bool_]) -> float:
    """Probability that a wrong prediction is more uncertain than a right one; NaN unless there are both."""
    return auroc(uncertainty_B[correct_B], uncertainty_B[~correct_B])


def auroc(low_B: NDArray[np.floating], high_B: NDArray[np.floating]) -> float:
    """Probability that a value of `high_B` exceeds one of `low_B`, equal ones counting half; NaN where one is empty.

    With scores of known inputs as `low_B` and of unknown ones as `high_B`, how well the score tells them apart.
    """
    if not (len(low_B) and len(high_B)):
        return float("nan")
    ordered = np.sort(low_B)
    below = np.searchsorted(ordered, high_B, side="left")
    not_above = np.searchsorted(ordered, high_B, side="right")
    return float((below + not_above).mean() / (2 * len(low_B)))
