"""Those who follow a job: its events as they come, and its log.

Each holds a thread, of a pool that nobody else uses: a reader that does not read makes its own thread wait in gRPC,
where a few messages are under way to it, and nobody else's. What it has missed stays in the store, and is read when it
reads on. Who waits for the same event gets it from one read (`Feed`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import Gauge

from bll_server.errors import Overloaded, ShuttingDown
from bll_server.jobs import log_file
from bll_server.jobs.feed import REPORTS, Feed, Lag
from bll_server.jobs.records import JobEvent, StateChange
from bll_server.jobs.states import FINAL
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics

KEEP_ALIVE_S = 15.0
"""Silence after which a watcher gets a sign of life."""
_LOG_LOOK_S = 0.5
"""Time between two looks at a log that is being followed."""


class Followers:
    """As many as may follow at the same time."""

    def __init__(
        self,
        store: Store,
        jobs_dir: Path,
        most: int,
        metrics: Metrics,
        *,
        is_running: Callable[[str], bool],
        is_ending: Callable[[str], bool],
    ) -> None:
        """`is_running` tells whether a job has a runner; `is_ending`, whether the server has nothing more to tell of
        it."""
        self._store = store
        self._jobs_dir = jobs_dir
        self._feed = Feed(store)
        self._places = threading.BoundedSemaphore(most)
        self._metrics = metrics.watchers
        self._is_running = is_running
        self._is_ending = is_ending

    def watch(self, job_id: str, after: int, gone: Callable[[], bool]) -> Iterator[JobEvent | None]:
        """The events after number `after`, until the state is final; None now and then when nothing happens.

        A reader that falls further and further behind is spared all reports of blocks but the newest: their numbers
        are left out. Ends when `gone()`. Raises NotFound, Overloaded, ShuttingDown.
        """
        with self._place(self._metrics.watchers):
            # Whoever has seen the last event of a job that is over waits for nothing.
            job = self._store.get(job_id)
            final = job.state in FINAL and after >= job.last_event
            lag, spared_to, kept = Lag(after, job.last_event), after, frozenset[int]()
            while not final and not gone():
                ending = self._is_ending(job_id)  # asked first, so that no event can slip in between
                newest = self._store.last_event(job_id)  # raises NotFound once the job is deleted
                if lag.grows(after, newest) and after >= spared_to:
                    spared_to, kept = newest, self._feed.newest_reports(job_id, after, newest)
                events = self._feed.after(job_id, job.create_time, after) if newest > after else []
                for event in events:
                    report = isinstance(event.event, REPORTS)
                    if report and event.number <= spared_to and event.number not in kept:
                        self._metrics.coalesced.inc()
                    else:
                        yield event
                    after = event.number
                    final = isinstance(event.event, StateChange) and event.event.state in FINAL
                final = final and after >= self._store.last_event(job_id)  # else it has been retried since
                if not events:
                    if ending:
                        raise ShuttingDown("the server is shutting down; go on watching when it is back")
                    started = time.monotonic()
                    self._store.wait(job_id, after, KEEP_ALIVE_S, lambda: gone() or self._is_ending(job_id))
                    if time.monotonic() - started >= KEEP_ALIVE_S:
                        yield None

    def tail(self, job_id: str, offset: int, follow: bool, gone: Callable[[], bool]) -> Iterator[bytes]:
        """The job's log from byte `offset` on, in pieces; an empty one now and then when nothing is written.

        Ends at the end of what there is, or with `follow` when the job is over, and when `gone()`.
        Raises NotFound, InvalidRequest, Overloaded, ShuttingDown.
        """
        heard = time.monotonic()

        def over() -> bool:
            final = not self._is_running(job_id) and self._store.get(job_id).state in FINAL  # raises NotFound
            return final or not follow or gone()

        def wait() -> bool:
            nonlocal heard
            if self._is_ending(job_id):
                raise ShuttingDown("the server is shutting down; go on reading when it is back")
            self._store.wait(job_id, self._store.last_event(job_id), _LOG_LOOK_S, gone)
            silent = time.monotonic() - heard >= KEEP_ALIVE_S
            heard = time.monotonic() if silent else heard
            return silent

        with self._place(self._metrics.log_tails):
            over()
            yield from log_file.follow(self._jobs_dir / job_id / log_file.LOG, offset, over, wait)

    @contextlib.contextmanager
    def _place(self, open_streams: Gauge) -> Iterator[None]:
        """One of those who may watch at the same time. Raises Overloaded."""
        if not self._places.acquire(blocking=False):
            self._metrics.refused.inc()
            raise Overloaded("too many jobs are being watched at the same time")
        try:
            with open_streams.track_inprogress():
                yield
        finally:
            self._places.release()
