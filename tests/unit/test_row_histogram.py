"""The histogram that takes a whole batch at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from bll_server.metrics.inference import RowHistogram

BUCKETS = (0.5, 1.0, 2.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0]))))
def test_batches_count_as_prometheus_clients_own_histogram_counts_values(batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = RowHistogram("x", "X.", ["model"], BUCKETS, ours)
    single = Histogram("x", "X.", ["model"], buckets=BUCKETS, registry=theirs).labels("m")
    for values in ([], *batches):
        batched.observe(("m",), np.array(values, np.float32))
        for value in values:
            single.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_values_that_are_not_finite_are_left_out() -> None:
    registry = CollectorRegistry()
    RowHistogram("x", "X.", ["model"], BUCKETS, registry).observe(("m",), np.array([np.nan, 1, np.inf], np.float32))
    assert registry.get_sample_value("x_count", {"model": "m"}) == 1
    assert registry.get_sample_value("x_sum", {"model": "m"}) == pytest.approx(1)
