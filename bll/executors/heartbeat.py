"""Signs of life of worker processes, in memory that they share with their parent.

A thread of the worker beats, so that a long step, a wait for a neighbour or a large checkpoint is no silence. What is
found is a process that runs no more: stopped, frozen, or stuck within one call that holds the interpreter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, MutableSequence
from multiprocessing.context import BaseContext

_CHECKS = 4
"""Looks in a row at which a worker must have been silent. The parent's own stalls count for one look at most."""
_START_S = 60.0
"""Silence that is allowed before the first beat: a process must be made and find its modules."""


class Heartbeats:
    """One a worker. Made by the parent, and passed to all when they start."""

    def __init__(self, context: BaseContext, num_workers: int, limit_s: float) -> None:
        """`limit_s`: silence after which a worker counts as lost; 0 = never."""
        self.limit_s = limit_s
        # One interval more than looks: what happens right after a beat is found within the limit all the same.
        self.interval_s = limit_s / (_CHECKS + 1) if limit_s else math.inf
        self.beats: MutableSequence[float] = context.RawArray("d", num_workers)

    def beat(self, worker: int) -> None:
        """Show that `worker` is alive. Twice an interval will do."""
        self.beats[worker] = time.monotonic()

    def has_beaten(self, worker: int) -> bool:
        """Whether `worker` has come to its first beat."""
        return bool(self.beats[worker])


class Listener:
    """The parent's ear: tells which worker has fallen silent."""

    def __init__(self, heartbeats: Heartbeats) -> None:
        self._beats = heartbeats.beats
        self._interval_s = heartbeats.interval_s
        self._heard = list(self._beats)
        self._misses = [0] * len(self._heard)
        self._next_look = 0.0

    def expect(self, worker: int) -> None:
        """Listen to `worker` afresh: another process takes its place."""
        self._beats[worker] = self._heard[worker] = 0.0
        self._misses[worker] = 0

    def next_look_s(self, now: float) -> float | None:
        """Seconds until `silent` will look again; None if it never does."""
        return max(0.0, self._next_look - now) if math.isfinite(self._interval_s) else None

    def silent(self, running: Iterable[int], now: float) -> int | None:
        """The first of the `running` workers that has been silent for too long, or None.

        Looks at most once an interval, however often it is asked.
        """
        if now < self._next_look or not math.isfinite(self._interval_s):
            return None
        self._next_look = now + self._interval_s
        for worker in running:
            beat = self._beats[worker]
            self._misses[worker] = 0 if beat != self._heard[worker] else self._misses[worker] + 1
            self._heard[worker] = beat
            if self._misses[worker] >= _CHECKS and (beat or self._misses[worker] * self._interval_s >= _START_S):
                return worker
        return None
