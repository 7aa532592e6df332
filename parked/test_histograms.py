"""The histogram that counts later what it is told now."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.exposition import generate_latest

from bll_server.histograms import BatchedHistogram

BUCKETS = (0.5, 1.0, 2.0)


@given(st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 3.0]))))
def test_batches_count_as_prometheus_clients_own_histogram_counts_values(batches: list[list[float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = BatchedHistogram("x", "X.", ["model"], BUCKETS, ours).labels("m")
    single = Histogram("x", "X.", ["model"], buckets=BUCKETS, registry=theirs).labels("m")
    for values in ([], *batches):
        batched.observe_rows(np.array(values, np.float32))
        for value in values:
            single.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)


def test_values_that_are_not_finite_are_left_out() -> None:
    registry = CollectorRegistry()
    series = BatchedHistogram("x", "X.", ["model"], BUCKETS, registry).labels("m")
    series.observe_rows(np.array([np.nan, 1, np.inf], np.float32))
    assert registry.get_sample_value("x_count", {"model": "m"}) == 1
    assert registry.get_sample_value("x_sum", {"model": "m"}) == pytest.approx(1)


@given(st.lists(st.floats(0, 4), max_size=30))
def test_single_values_count_as_a_batch_of_them_does(values: list[float]) -> None:
    registry = CollectorRegistry()
    histogram = BatchedHistogram("x", "X.", ["model"], BUCKETS, registry)
    for value in values:
        histogram.labels("one").observe(value)
    histogram.labels("batch").observe_rows(np.array(values))
    counts = [
        [registry.get_sample_value("x_bucket", {"model": model, "le": le}) for le in ("0.5", "1.0", "2.0", "+Inf")]
        for model in ("one", "batch")
    ]
    assert counts[0] == counts[1]


def test_no_observation_is_lost_among_threads_and_scrapes() -> None:
    registry = CollectorRegistry()
    series = BatchedHistogram("x", "X.", ["model"], BUCKETS, registry).labels("m")
    writers, each = 4, 3000

    def write() -> None:
        for _ in range(each):
            series.observe(1.0)

    threads = [threading.Thread(target=write) for _ in range(writers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        generate_latest(registry)
    assert registry.get_sample_value("x_count", {"model": "m"}) == writers * each
