"""What the metrics are told of the job store's transactions: in their order, once they are committed, or never."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from bll_server.jobs.records import Progress, RunEvent
from bll_server.jobs.states import ACTIVE, FINAL, State
from bll_server.metrics import JobMetrics


class Counting:
    """Of one store."""

    def __init__(self, metrics: JobMetrics) -> None:
        self._metrics = metrics
        self._in_order = threading.Lock()
        self._told: list[Callable[[], None]] = []
        """Of the transaction that is going on, which owns it."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Round a transaction, which is committed when this ends without an error."""
        with self._in_order:
            started = time.monotonic()
            told = self._told = []
            yield
            self._metrics.committed(time.monotonic() - started)
            for tell in told:
                tell()

    def entered(self, job_id: str, state: State, before: State | None) -> None:
        """The job came into `state`, from `before`; None: it is new."""
        left = None if before in FINAL else before
        runs, over = state in ACTIVE, state in FINAL
        self._told.append(partial(self._metrics.entered, job_id, state, left, runs=runs, over=over))

    def told(self, job_id: str, event: RunEvent, progress: Progress | None) -> None:
        """The job's run told of something."""
        figures = progress.figures() if progress else {}
        self._told.append(partial(self._metrics.told, job_id, event, **figures))

    def deleted(self, job_id: str) -> None:
        """The job is no more."""
        self._told.append(partial(self._metrics.deleted, job_id))
