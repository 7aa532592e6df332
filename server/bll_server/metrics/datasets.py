"""Data sets, from the first byte of an upload to what was found in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from bll_server.metrics.states import States

_UPLOADS = ("finished", "cancelled")
_CHECKS = ("ready", "broken_rule", "no_room")


class DatasetMetrics:
    """Uploads and checks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.upload_bytes = Counter("bll_dataset_upload_bytes", "Bytes of files taken in.", registry=registry)
        self._uploads = Counter(
            "bll_dataset_uploads",
            "Streams of uploads that ended: finished, or cancelled where something went wrong.",
            ["outcome"],
            registry=registry,
        )
        self.abandoned = Counter(
            "bll_dataset_uploads_abandoned", "Unfinished uploads removed, as nobody went on.", registry=registry
        )
        self._checks = Counter(
            "bll_dataset_checks",
            "Files checked, by what came of it: ready, broken_rule or no_room.",
            ["outcome"],
            registry=registry,
        )

        for counter, outcomes in ((self._uploads, _UPLOADS), (self._checks, _CHECKS)):
            for outcome in outcomes:
                counter.labels(outcome)  # an alert sees the first of a kind only where there was none before

    def count(self, counts: Callable[[], Mapping[Any, int]]) -> None:
        """Show the number of data sets in each state."""
        self._registry.register(
            States("bll_datasets", "Uploaded data sets in each state, and unfinished uploads.", counts)
        )

    @contextmanager
    def upload(self) -> Iterator[None]:
        """While a stream brings its file."""
        outcome = "cancelled"
        try:
            yield
            outcome = "finished"
        finally:
            self._uploads.labels(outcome).inc()

    def checked(self, *, ready: bool, no_room: bool) -> None:
        """A file was checked, and is READY or not, in which case it broke a rule or there was no room to unpack it."""
        self._checks.labels("ready" if ready else "no_room" if no_room else "broken_rule").inc()
