"""Rankings of uncertainty against scikit-learn and enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from bll.selective import aurc, auroc, error_auroc, risk_coverage

few_values = st.sampled_from([0.0, 0.25, 0.5, 1.0])


@given(st.lists(few_values, min_size=1, max_size=20), st.lists(few_values, min_size=1, max_size=20))
def test_auroc_is_scikit_learns_with_ties_too(low: list[float], high: list[float]) -> None:
    expected = roc_auc_score([0] * len(low) + [1] * len(high), low + high)
    assert auroc(np.array(low), np.array(high)) == pytest.approx(expected, abs=1e-12)


def test_auroc_of_nothing_is_not_a_number() -> None:
    assert math.isnan(auroc(np.array([]), np.array([1.0])))
    assert math.isnan(error_auroc(np.array([0.1, 0.2]), np.array([True, True])))


def test_error_auroc_is_one_where_every_error_is_more_uncertain() -> None:
    uncertainty, correct = np.array([0.9, 0.1, 0.8, 0.2]), np.array([False, True, False, True])
    assert error_auroc(uncertainty, correct) == 1.0
    assert error_auroc(-uncertainty, correct) == 0.0


@given(st.lists(st.tuples(few_values, st.booleans()), min_size=1, max_size=6))
def test_risk_coverage_is_the_mean_over_all_orders_of_equal_rows(rows: list[tuple[float, bool]]) -> None:
    orders = [o for o in itertools.permutations(rows) if list(o) == sorted(o, key=lambda row: row[0])]
    risks = np.mean([np.cumsum([not right for _, right in o]) / np.arange(1, len(rows) + 1) for o in orders], axis=0)
    uncertainty, correct = np.array([u for u, _ in rows]), np.array([right for _, right in rows])
    found = risk_coverage(uncertainty, correct)
    np.testing.assert_allclose(found.risk_B, risks, atol=1e-12)
    np.testing.assert_allclose(found.coverage_B, np.arange(1, len(rows) + 1) / len(rows))
    assert aurc(uncertainty, correct) == pytest.approx(risks.mean(), abs=1e-12)
    assert found.risk_B[-1] == pytest.approx(1 - correct.mean())
