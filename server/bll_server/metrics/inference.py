"""Predictions, by model and version: how long they take, how many rows, and how uncertain."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from bll_server.metrics.rpc import SECONDS

_MODEL = ["model", "version"]
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_NATS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7)
_VARIANCES = (0.0001, 0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2, 5, 10, 100)


class InferenceMetrics:
    """Those of all versions that are loaded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.request_seconds = self._of_model(
            "bll_inference_request_seconds", "Time that a request which was answered spent in its handler.", SECONDS
        )
        self.compute_seconds = self._of_model("bll_inference_compute_seconds", "Time of one run of the graph.", SECONDS)
        self.queue_seconds = self._of_model(
            "bll_inference_queue_seconds", "Time that a call waited for its model.", SECONDS
        )
        self.unanswered = Counter(
            "bll_inference_unanswered",
            "Calls that did not run: refused when they came, or dropped when nobody waited any more.",
            [*_MODEL, "outcome"],
            registry=registry,
        )
        self.batch_rows = self._of_model("bll_inference_batch_rows", "Rows of one run of the graph.", _ROWS)
        self.entropy = RowHistogram(
            "bll_inference_predictive_entropy_nats", "Entropy of the mixture, of every row.", _MODEL, _NATS, registry
        )
        self.variance = RowHistogram(
            "bll_inference_posterior_variance",
            "Variance of a block's latent, mean over its units, of every row and block.",
            _MODEL,
            _VARIANCES,
            registry,
        )

    def _of_model(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _MODEL, buckets=buckets, registry=self._registry)


class RowHistogram(Collector):
    """A histogram that takes a whole batch at once; prometheus_client's takes a lock for each value."""

    def __init__(
        self, name: str, documentation: str, labels: list[str], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._buckets = np.array(buckets)
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], np.ndarray[Any, np.dtype[np.int64]]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        registry.register(self)

    def observe(self, labels: tuple[str, ...], values: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Count every finite value; one NaN would spoil the sum for ever."""
        total = float(values.sum(dtype=np.float64))
        if not math.isfinite(total):
            values = values[np.isfinite(values)]
            total = float(values.sum(dtype=np.float64))
        counts = np.bincount(self._buckets.searchsorted(values.ravel()), minlength=len(self._names))
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + counts
            self._sums[labels] = self._sums.get(labels, 0.0) + total

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            series = [(labels, counts.cumsum(), self._sums[labels]) for labels, counts in self._counts.items()]
        for labels, counts, total in series:
            family.add_metric(labels, list(zip(self._names, counts.tolist(), strict=True)), total)
        return [family]
