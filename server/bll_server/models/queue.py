"""Which calls of a model run next, which together, and which are refused: rules that wait for nothing.

Times are seconds of one clock that never jumps, and are told by the caller.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Hashable
from dataclasses import dataclass

DEFAULT_PRIORITY = 100
"""Of a call that names none; 1 goes first."""
MERGED_BELOW_ROWS = 16
"""Calls with so many rows or more run alone: onnxruntime has enough to do with them, and joining them copies."""
PATIENCE_S = 1.0
"""Who has waited so long goes before every priority."""
_SHARE = 3
_HALF_LIFE_S = 10.0
_NEWEST = 0.2
"""Weight of the newest run in the mean of its kind."""


class Refused(Exception):
    """A call that has no place in the queue, or would be answered too late."""

    def __init__(self, why: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(why)


@dataclass(eq=False, slots=True)
class Entry:
    """One call, from the moment that it is admitted until it is answered or given up."""

    rows: int
    size_bytes: int
    arrived_s: float
    deadline_s: float = math.inf
    """When the answer is worth nothing any more."""
    priority: int = DEFAULT_PRIORITY
    kind: Hashable = None
    """Only calls of one kind run together."""
    number: int = -1
    """In order of arrival."""

    @property
    def runs_alone(self) -> bool:
        return self.rows >= MERGED_BELOW_ROWS


class Budget:
    """What the queues of a server hold together: calls, rows and bytes.

    A queue may hold three times as much as it leaves free (dynamic thresholds; Choudhury and Hahne, 1998): one that
    grows without end leaves a quarter to the others, and two such a seventh.
    """

    def __init__(self, calls: int, rows: int, size_bytes: int) -> None:
        self._limits = (calls, rows, size_bytes)
        self._held = [0, 0, 0]

    @property
    def held(self) -> tuple[int, int, int]:
        """Calls, rows and bytes."""
        calls, rows, size_bytes = self._held
        return calls, rows, size_bytes

    def take(self, own: list[int], entry: Entry) -> None:
        """Count `entry` for a queue that holds `own`. Raises Refused."""
        for name, i, more in (("calls", 0, 1), ("rows", 1, entry.rows), ("bytes", 2, entry.size_bytes)):
            free = self._limits[i] - self._held[i]
            # An empty queue may have all that is free: else no call larger than half could ever run.
            if more > free or (own[0] and own[i] + more > _SHARE * (free - more)):
                raise Refused(f"{own[i]} {name} of this model are in the server already", 0.0)
        self._add(own, entry, 1)

    def give_back(self, own: list[int], entry: Entry) -> None:
        """`entry` is over."""
        self._add(own, entry, -1)

    def _add(self, own: list[int], entry: Entry, sign: int) -> None:
        for i, more in enumerate((1, entry.rows, entry.size_bytes)):
            own[i] += sign * more
            self._held[i] += sign * more


class RunTimes:
    """How long runs take, from those that there were.

    Without a new run an estimate halves every 10 s: one that was too long would else refuse every call, and so never be
    put right.
    """

    def __init__(self) -> None:
        self._means_s: dict[int, float] = {}
        self._newest_s = 0.0

    def add(self, rows: int, seconds: float, now_s: float) -> None:
        """A run of `rows` took so long."""
        size = _size(rows)
        mean_s = self._means_s.get(size, seconds)
        self._means_s[size] = mean_s + _NEWEST * (seconds - mean_s)
        self._newest_s = now_s

    def expected_s(self, rows: int, now_s: float) -> float:
        """Time of a run; 0 if nothing is known."""
        size = _size(rows)
        if (mean_s := self._means_s.get(size)) is None:
            if not self._means_s:
                return 0.0
            nearest = max((s for s in self._means_s if s < size), default=min(self._means_s))
            mean_s = self._means_s[nearest] * 2.0 ** max(size - nearest, 0)
        return mean_s * math.exp2(-(now_s - self._newest_s) / _HALF_LIFE_S)


@dataclass(eq=False, slots=True)
class Run:
    """Entries that run together, begun at `started_s`."""

    entries: list[Entry]
    started_s: float

    @property
    def rows(self) -> int:
        return sum(entry.rows for entry in self.entries)


class Queue:
    """The calls of one loaded model. Not safe to use from two threads at a time."""

    def __init__(self, budget: Budget, *, parallel: int, batch_rows: int, delay_s: float = 0.0) -> None:
        """At most `parallel` runs at a time. Calls run together up to `batch_rows`, and may wait `delay_s` for more."""
        self._budget = budget
        self._parallel = parallel
        self._batch_rows = batch_rows
        self._delay_s = delay_s
        self._times = RunTimes()
        self._waiting: list[Entry] = []  # in the order of priority, then of arrival
        self._running: list[Run] = []
        self._own = [0, 0, 0]
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Calls that wait."""
        return len(self._waiting)

    def offer(self, entry: Entry) -> None:
        """Let `entry` wait. Raises Refused if there is no room, or if it would be answered after its deadline."""
        now_s = entry.arrived_s
        if entry.deadline_s < math.inf:
            wait_s = self._wait_s(entry, now_s)
            answer_s = wait_s + self._times.expected_s(entry.rows, now_s)
            may_s = entry.deadline_s - now_s
            if answer_s >= may_s:
                rule = f"an answer would take about {answer_s:.3g} s, and the call may wait {max(may_s, 0):.3g} s"
                raise Refused(rule, wait_s)
        self._budget.take(self._own, entry)
        entry.number = next(self._numbers)
        bisect.insort(self._waiting, entry, key=_turn)

    def take(self, now_s: float) -> Run | None:
        """What runs now, together; None while all runs are busy, nothing waits, or more is still waited for.

        Nothing that has expired is in it: it stays where it is until it is withdrawn.
        """
        if len(self._running) >= self._parallel or not self._waiting:
            return None
        good = [entry for entry in self._waiting if entry.deadline_s > now_s]
        if not good:
            return None
        oldest = min(good, key=_arrival)
        if self._delay_s and now_s < oldest.arrived_s + self._delay_s and not self._enough(good):
            return None
        first = oldest if now_s - oldest.arrived_s >= PATIENCE_S else good[0]
        together, rows = [first], first.rows
        if not first.runs_alone:
            for entry in good:
                fits = not entry.runs_alone and entry.kind == first.kind and rows + entry.rows <= self._batch_rows
                if fits and entry is not first:
                    together.append(entry)
                    rows += entry.rows
        taken = set(map(id, together))
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]
        run = Run(together, now_s)
        self._running.append(run)
        return run

    def finished(self, run: Run, now_s: float) -> None:
        """`run` is over; its entries are no longer counted."""
        self._running.remove(run)
        self._times.add(run.rows, now_s - run.started_s, now_s)
        for entry in run.entries:
            self._budget.give_back(self._own, entry)

    def withdraw(self, entry: Entry) -> bool:
        """Take out `entry`, whose caller waits no more; False if it does not wait here (any more)."""
        for i, waiting in enumerate(self._waiting):
            if waiting is entry:
                del self._waiting[i]
                self._budget.give_back(self._own, entry)
                return True
        return False

    def next_look_s(self, entry: Entry, now_s: float) -> float:
        """When to ask again whether a waiting `entry` may run, if nothing happens before."""
        delayed_s = entry.arrived_s + self._delay_s
        return min(delayed_s, entry.deadline_s) if now_s < delayed_s else entry.deadline_s

    def _enough(self, good: list[Entry]) -> bool:
        return good[0].runs_alone or sum(entry.rows for entry in good) >= self._batch_rows

    def _wait_s(self, entry: Entry, now_s: float) -> float:
        """Time until `entry` would begin to run, by what runs and what goes before it."""
        if len(self._running) < self._parallel and not self._waiting:
            return 0.0
        before = [waiting for waiting in self._waiting if waiting.priority <= entry.priority]
        small = sum(waiting.rows for waiting in before if not waiting.runs_alone)
        queued_s = sum(self._times.expected_s(waiting.rows, now_s) for waiting in before if waiting.runs_alone)
        queued_s += small / self._batch_rows * self._times.expected_s(self._batch_rows, now_s)
        return self._until_free_s(now_s) + queued_s / self._parallel

    def _until_free_s(self, now_s: float) -> float:
        if len(self._running) < self._parallel:
            return 0.0
        # A run that takes longer than it should is expected to take as long again: so nobody queues behind one that
        # hangs.
        return min(abs(self._times.expected_s(run.rows, now_s) - (now_s - run.started_s)) for run in self._running)


def _turn(entry: Entry) -> tuple[int, int]:
    return entry.priority, entry.number


def _arrival(entry: Entry) -> int:
    return entry.number


def _size(rows: int) -> int:
    """Runs of about as many rows are of one size: 1, 2, 3-4, 5-8 and so on."""
    return (rows - 1).bit_length()
