"""Histograms for the path of every call: an observation is noted at once, and counted with many others later."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Array = np.ndarray[Any, np.dtype[Any]]

_NOTES = 1024
"""Observations that are kept before they are counted."""
_SMALL = 64
"""Values of an observation that is worth keeping for later."""


class Series:
    """The counts of one set of labels. Safe to use from any thread."""

    def __init__(self, buckets: Array) -> None:
        self._buckets = buckets
        self._notes: deque[float | Array] = deque()  # whose append and popleft need no lock
        self._lock = threading.Lock()
        self._counts = np.zeros(len(buckets) + 1, np.int64)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._notes.append(value)
        if len(self._notes) > _NOTES:
            self.counted()

    def observe_rows(self, values: Array) -> None:
        """Count every finite value; one NaN would spoil the sum for ever."""
        self._notes.append(values)
        if values.size > _SMALL or len(self._notes) > _NOTES:
            self.counted()

    def counted(self) -> tuple[Array, float]:
        """The values at or below each bucket and in all, and their sum."""
        with self._lock:
            notes = [self._notes.popleft() for _ in range(len(self._notes))]
            if notes:
                values = np.concatenate([np.ravel(note) for note in notes], dtype=np.float64)
                total = float(values.sum())
                if not math.isfinite(total):
                    values = values[np.isfinite(values)]
                    total = float(values.sum())
                self._counts += np.bincount(self._buckets.searchsorted(values), minlength=len(self._counts))
                self._sum += total
            return self._counts.cumsum(), self._sum


class BatchedHistogram(Collector):
    """A histogram that takes single values and whole batches; prometheus_client's takes two locks for each value."""

    def __init__(
        self, name: str, documentation: str, labels: list[str], buckets: tuple[float, ...], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._buckets = np.array(buckets, np.float64)
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._lock = threading.Lock()
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *labels: str) -> Series:
        """The series with those labels, to be kept by who writes it often."""
        with self._lock:
            return self._series.setdefault(labels, Series(self._buckets))

    def describe(self) -> Iterable[Metric]:
        return [HistogramMetricFamily(self._name, self._documentation, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        with self._lock:
            found = list(self._series.items())
        for labels, series in found:
            counts, total = series.counted()
            family.add_metric(labels, list(zip(self._names, counts.tolist(), strict=True)), total)
        return [family]
