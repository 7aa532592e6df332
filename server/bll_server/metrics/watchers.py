"""Those who follow jobs."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class WatcherMetrics:
    """Open streams of events and of logs, and what slow readers were spared."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.watchers = Gauge("bll_watchers", "WatchJob streams that are open.", registry=registry)
        self.log_tails = Gauge("bll_log_tails", "TailLogs streams that are open.", registry=registry)
        self.refused = Counter("bll_watchers_refused", "Streams refused, as too many were open.", registry=registry)
        self.coalesced = Counter(
            "bll_watch_events_coalesced",
            "Reports left out for readers that fall behind, since newer ones follow.",
            registry=registry,
        )
