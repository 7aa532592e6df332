"""Those who follow a job: its events as they come, and its log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bll_server.errors import Overloaded, ShuttingDown
from bll_server.jobs import log_file
from bll_server.jobs.records import JobEvent, StateChange
from bll_server.jobs.states import FINAL
from bll_server.jobs.store import Store

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
        *,
        is_running: Callable[[str], bool],
        is_ending: Callable[[str], bool],
    ) -> None:
        """`is_running` tells whether a job has a runner; `is_ending`, whether the server has nothing more to tell of
        it."""
        self._store = store
        self._jobs_dir = jobs_dir
        self._places = threading.BoundedSemaphore(most)
        self._is_running = is_running
        self._is_ending = is_ending

    def watch(self, job_id: str, after: int, gone: Callable[[], bool]) -> Iterator[JobEvent | None]:
        """The events after number `after`, until the state is final; None now and then when nothing happens.

        Ends when `gone()`. Raises NotFound, Overloaded, ShuttingDown.
        """
        with self._place():
            # Whoever has seen the last event of a job that is over waits for nothing.
            job = self._store.get(job_id)
            final = job.state in FINAL and after >= job.last_event
            while not final and not gone():
                ending = self._is_ending(job_id)  # asked first, so that no event can slip in between
                events = self._store.events(job_id, after)
                for event in events:
                    yield event
                    after = event.number
                    final = isinstance(event.event, StateChange) and event.event.state in FINAL
                newest = self._store.last_event(job_id)  # raises NotFound once the job is deleted
                final = final and after == newest  # else it has been retried since
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

        with self._place():
            over()
            yield from log_file.follow(self._jobs_dir / job_id / log_file.LOG, offset, over, wait)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One of those who may watch at the same time. Raises Overloaded."""
        if not self._places.acquire(blocking=False):
            raise Overloaded("too many jobs are being watched at the same time")
        try:
            yield
        finally:
            self._places.release()
