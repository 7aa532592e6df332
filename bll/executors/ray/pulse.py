"""Signs of life of actors, asked for by the driver."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from typing import Any

import ray

from bll.executors.heartbeat import Heartbeats, Listener


class Pulse:
    """The heartbeats of actors: each is asked for a beat as long as it has answered the question before."""

    def __init__(self, actors: list[Any], limit_s: float) -> None:
        """`limit_s`: silence after which an actor counts as lost; 0 = never."""
        self.limit_s = limit_s
        self._actors = actors
        self._heartbeats = Heartbeats(multiprocessing.get_context(), len(actors), limit_s)
        self._listener = Listener(self._heartbeats)
        self._asked = [actor.beat.remote() for actor in actors]
        self._next_look = 0.0

    def silent(self, running: Iterable[int]) -> int | None:
        """The first of the `running` actors that has been silent for too long, or None. To be asked often."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._heartbeats.interval_s / 2
            answered, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
            for position in [position for position, asked in enumerate(self._asked) if asked in answered]:
                self._heartbeats.beat(position)
                self._asked[position] = self._actors[position].beat.remote()
        return self._listener.silent(running, now)
