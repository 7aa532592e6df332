"""Deletes jobs that have been over for as long as they were to be kept."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from bll_server.errors import ServerError
from bll_server.jobs.records import JobSummary
from bll_server.jobs.store import Store

log = logging.getLogger(__name__)

_LOOK_S = 30.0
"""Time between two looks; a job may be there for so much longer."""


class SteadyClock:
    """Seconds since the epoch, by a clock that may be set while it is read.

    Set forward, it goes on as if nothing had happened; set back, it is what the clock says. So nothing comes too early
    while this process lives. One that starts after the clock was set cannot know of it.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._start = wall() - monotonic()

    def now(self) -> float:
        return min(self._wall(), self._start + self._monotonic())


class Expiry:
    """One thread that looks for such jobs, and deletes them through `delete`, which takes a job's id and etag."""

    def __init__(
        self, store: Store, delete: Callable[[str, str], None], now: Callable[[], float] | None = None
    ) -> None:
        self._store = store
        self._delete = delete
        self._now = now or SteadyClock().now
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="expiry", daemon=True)

    def start(self) -> None:
        """Begin. Jobs whose time came while no server was there go at once."""
        self._thread.start()

    def close(self) -> None:
        """Delete no more."""
        self._closing.set()
        self._thread.join()

    def look(self) -> None:
        """Delete all that is due now."""
        while sum(self._remove(job) for job in self._store.expired(self._now())):
            pass  # there may be more than one look at the store tells

    def _remove(self, job: JobSummary) -> bool:
        """Whether it is gone."""
        if self._closing.is_set():
            return False
        try:
            self._delete(job.job_id, job.etag)
        except (ServerError, OSError) as error:  # retried or updated this moment, or a disk that fails
            log.warning("jobs/%s cannot be deleted now: %s", job.job_id, error)
            return False
        log.info("jobs/%s is deleted: it was to be kept until %s", job.job_id, job.expire_time)
        return True

    def _work(self) -> None:
        while True:
            try:
                self.look()
            except Exception:  # this thread lives as long as the server
                log.exception("finished jobs cannot be looked for; trying again")
            if self._closing.wait(_LOOK_S):
                return
