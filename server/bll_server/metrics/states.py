"""How many things are in each state, asked for at every scrape, so that it is never stale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class States(Collector):
    """One gauge, by state."""

    def __init__(self, name: str, documentation: str, counts: Callable[[], Mapping[Any, int]]) -> None:
        self._name = name
        self._documentation = documentation
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        family = self._family()
        for state, count in self._counts().items():
            family.add_metric([state], count)
        return [family]

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._documentation, labels=["state"])
