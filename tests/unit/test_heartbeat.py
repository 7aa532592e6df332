"""Who counts as silent, and who does not, by a clock of the test's own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable

import pytest

from bll.executors.heartbeat import Heartbeats, Listener

LIMIT_S = 10.0


class Room:
    """Workers that beat when they are told to, and their listener."""

    def __init__(self, num_workers: int = 2, limit_s: float = LIMIT_S) -> None:
        self.heartbeats = Heartbeats(multiprocessing.get_context("forkserver"), num_workers, limit_s)
        self.listener = Listener(self.heartbeats)
        self.now = 1000.0
        self.running: set[int] = set(range(num_workers))

    def passes(self, seconds: float, alive: Iterable[int], looks_every_s: float = 0.5) -> int | None:
        """Let time pass; the first that is found silent."""
        until = self.now + seconds
        while self.now < until:
            self.now += looks_every_s
            for worker in alive:
                self.heartbeats.beats[worker] = self.now
            if (found := self.listener.silent(self.running, self.now)) is not None:
                return found
        return None


def test_workers_that_beat_are_never_silent() -> None:
    assert Room().passes(10_000, alive=(0, 1)) is None


def test_a_silent_worker_is_found_within_the_limit() -> None:
    for head_start_s in (0.5, 1.0, 1.5, 2.0):
        room = Room()
        assert room.passes(head_start_s, alive=(0, 1)) is None
        stopped_at = room.now
        assert room.passes(1000, alive=(0,)) == 1
        assert LIMIT_S / 2 < room.now - stopped_at <= LIMIT_S


def test_a_parent_that_did_not_look_for_long_condemns_nobody() -> None:
    """It was suspended, or stopped with its workers: after it goes on, they have yet to beat."""
    room = Room()
    room.passes(5, alive=(0, 1))
    for _ in range(3):
        room.now += 100_000
        assert room.passes(LIMIT_S / 2, alive=()) is None
        assert room.passes(LIMIT_S, alive=(0, 1)) is None


def test_a_worker_that_beats_less_often_than_is_looked_is_alive() -> None:
    room = Room()
    for _ in range(100):
        assert room.passes(LIMIT_S / 2, alive=(), looks_every_s=0.1) is None
        assert room.passes(0.1, alive=(0, 1), looks_every_s=0.1) is None


def test_a_worker_that_has_ended_is_not_missed() -> None:
    room = Room()
    room.passes(5, alive=(0, 1))
    room.running = {0}
    assert room.passes(1000, alive=(0,)) is None


def test_a_worker_may_take_its_time_to_start_but_not_for_ever() -> None:
    room = Room()
    assert room.passes(5 * LIMIT_S, alive=(0,)) is None
    assert room.passes(2 * LIMIT_S, alive=(0,)) == 1


@pytest.mark.parametrize(("limit_s", "expected"), [(0.0, None), (LIMIT_S, LIMIT_S / 5)])
def test_without_a_limit_nobody_is_looked_at(limit_s: float, expected: float | None) -> None:
    room = Room(limit_s=limit_s)
    room.heartbeats.beat(0)
    found = room.passes(1000, alive=(0,), looks_every_s=10)
    assert (found is None) == (limit_s == 0)
    room = Room(limit_s=limit_s)
    room.listener.silent(room.running, room.now)
    assert room.listener.next_look_s(room.now) == expected


def test_a_process_in_the_place_of_a_silent_one_is_given_time_to_start() -> None:
    room = Room()
    room.passes(5, alive=(0, 1))
    assert room.passes(1000, alive=(0,)) == 1
    room.listener.expect(1)
    assert room.passes(30, alive=(0,)) is None
    assert room.passes(1000, alive=(0, 1)) is None
    assert room.passes(1000, alive=(0,)) == 1
