"""The events of jobs, read from the store once for all who wait for the same."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime

from bll.events import BlockDiagnostics, BlockProgress
from bll_server.jobs.records import JobEvent
from bll_server.jobs.store import Store

PIECE = 100
"""Events that are read at a time, and the most that a watcher holds."""
_KEPT = 64
"""Pieces that are kept for whoever asks next."""
_LOOK_S = 1.0

REPORTS = (BlockProgress, BlockDiagnostics)
"""Events that a newer one of the same block makes up for."""


class Feed:
    """Safe to use from many threads. Events never change, so what was once read stays right."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._pieces: OrderedDict[tuple[str, datetime, int], list[JobEvent]] = OrderedDict()

    def after(self, job_id: str, created: datetime, number: int) -> list[JobEvent]:
        """At most PIECE events of the job that was created then, above `number`, in order."""
        key = (job_id, created, number)  # another job may come to have the name
        with self._lock:  # held while reading: the others wait for what this one reads
            piece = self._pieces.get(key)
            if piece is None:
                piece = self._store.events(job_id, number, PIECE)
                if piece:
                    self._pieces[key] = piece
                if len(self._pieces) > _KEPT:
                    self._pieces.popitem(last=False)
            else:
                self._pieces.move_to_end(key)
            return piece

    def newest_reports(self, job_id: str, after: int, last: int) -> frozenset[int]:
        """Of the events above `after` up to `last`, the numbers of the newest report of each block."""
        newest: dict[tuple[type, int], int] = {}
        for event in self._between(job_id, after, last):
            if isinstance(event.event, REPORTS):
                newest[type(event.event), event.event.block] = event.number
        return frozenset(newest.values())

    def _between(self, job_id: str, after: int, last: int) -> Iterator[JobEvent]:
        while after < last and (piece := self._store.events(job_id, after, PIECE)):
            yield from (event for event in piece if event.number <= last)
            after = piece[-1].number


class Lag:
    """Whether a reader falls further and further behind, by looks that are some time or some events apart."""

    def __init__(self, after: int, newest: int) -> None:
        """The reader has seen the events up to `after`, of those up to `newest`."""
        self._after = after
        self._behind = newest - after
        self._looked = time.monotonic()

    def grows(self, after: int, newest: int) -> bool:
        """The same, some time later."""
        now = time.monotonic()
        if after - self._after < PIECE and now - self._looked < _LOOK_S:
            return False
        before, behind = self._behind, newest - after
        self._after, self._behind, self._looked = after, behind, now
        return behind > PIECE and behind >= before
