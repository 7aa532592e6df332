"""Runs calls on models: at once where the model is free, else together with others that wait for it.

There is no thread and no timer of its own. A call that finds its model free runs on the thread that it came on, without
another thread being woken; one that does not waits, and whoever ends a run hands the model to the first that waits, who
takes along those that may run with it. `queue.py` has the rules.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from bll_server.errors import Busy
from bll_server.metrics import Metrics
from bll_server.models.queue import DEFAULT_PRIORITY, Budget, Entry, Queue, Refused, Run
from bll_server.models.session import Array, ModelSession

Outputs = dict[str, Array]
Compute = Callable[[Array], Outputs]

LONGEST_WAIT_S = 60.0
"""A call without a deadline is given up after this time, so that a model that hangs keeps no caller for ever."""
BATCH_ROWS = 64
"""Calls run together up to so many rows: beyond that a row gets no cheaper."""


class Terms(NamedTuple):
    """What a caller wants of its call."""

    deadline_s: float = math.inf
    """When the answer is worth nothing any more, by the clock of the batcher."""
    priority: int = DEFAULT_PRIORITY
    """1 goes first."""
    when_gone: Callable[[Callable[[], None]], bool] | None = None
    """Has a function called once the caller has gone; False if it has already."""


ANY_TIME = Terms()


@dataclass(eq=False, slots=True, kw_only=True)
class _Call(Entry):
    """An entry, and the thread that waits for it."""

    values: Array
    compute: Compute
    wake: threading.Lock | None = None
    """Held until there is news, by way of which the thread waits."""
    lead: Run | None = None
    """What this call's thread is to run."""
    outputs: Outputs | None = None
    error: BaseException | None = None
    gone: bool = False


class _Lane:
    """The queue of one session, with the series that tell of it."""

    def __init__(self, queue: Queue, metrics: Metrics, session: ModelSession) -> None:
        labels = (session.version.model, str(session.version.number))
        self.queue = queue
        self.queue_seconds = metrics.inference.queue_seconds.labels(*labels)
        self.refused = metrics.inference.unanswered.labels(*labels, "refused")
        self.dropped = metrics.inference.unanswered.labels(*labels, "dropped")


class Batcher:
    """The runs of every model of a server. Safe to use from any thread."""

    def __init__(
        self,
        metrics: Metrics,
        budget: Budget,
        *,
        parallel: int,
        delay_s: float = 0.0,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A model has at most `parallel` runs at a time, so that one that hangs leaves the threads to the others."""
        self._metrics = metrics
        self._budget = budget
        self._parallel = parallel
        self._delay_s = delay_s
        self._batch_rows = batch_rows
        self.clock = clock
        self._lock = threading.Lock()  # of every queue, and of what travels between the threads; never held in a run
        self._lanes: WeakKeyDictionary[ModelSession, _Lane] = WeakKeyDictionary()

    def infer(
        self,
        session: ModelSession,
        rows: Array,
        terms: Terms = ANY_TIME,
        *,
        compute: Compute | None = None,
        kind: Hashable = None,
    ) -> Outputs:
        """What `compute`, by default `session.infer`, returns for `rows`.

        It may be given rows of several calls of one `kind`, and must answer each as if it were alone. Raises Busy, and
        what `compute` raises.
        """
        now_s = self.clock()
        call = _Call(
            rows=len(rows),
            size_bytes=rows.nbytes,
            arrived_s=now_s,
            deadline_s=min(terms.deadline_s, now_s + LONGEST_WAIT_S),
            priority=terms.priority,
            kind=kind,
            values=rows,
            compute=compute or session.infer,
        )
        with self._lock:
            lane = self._lanes.get(session)
            if lane is None:
                lane = self._lanes[session] = self._new_lane(session)
            try:
                lane.queue.offer(call)
            except Refused as refusal:
                lane.refused.inc()
                raise Busy(f"{session.version.name}: {refusal}", refusal.retry_after_s) from None
            run = self._start(lane, now_s, call)
            if run is None:
                call.wake = threading.Lock()
                call.wake.acquire()
        if run is None:
            run = self._wait(lane, call, terms)
        if run is not None:
            self._lead(lane, run)
        if call.error is not None:
            raise call.error
        assert call.outputs is not None, "whoever ran it has left outputs or an error"
        return call.outputs

    def _new_lane(self, session: ModelSession) -> _Lane:
        queue = Queue(self._budget, parallel=self._parallel, batch_rows=self._batch_rows, delay_s=self._delay_s)
        return _Lane(queue, self._metrics, session)

    def _start(self, lane: _Lane, now_s: float, own: _Call | None = None) -> Run | None:
        """Begin what may begin: the run that has `own` is returned, others are given to their first call's thread."""
        ours = None
        while run := lane.queue.take(now_s):
            calls = _calls(run)
            if own in calls:
                ours = run
            else:
                calls[0].lead = run
                _wake(calls[0])
        return ours

    def _wait(self, lane: _Lane, call: _Call, terms: Terms) -> Run | None:
        """The run that this thread is to lead; None if another has answered. Raises Busy."""

        def leave() -> None:
            with self._lock:
                if lane.queue.withdraw(call):
                    call.gone = True
                    _wake(call)

        if terms.when_gone and not terms.when_gone(leave):
            leave()
        assert call.wake
        now_s = self.clock()
        while not call.wake.acquire(timeout=max(lane.queue.next_look_s(call, now_s) - now_s, 0)):
            with self._lock:
                now_s = self.clock()
                if not call.wake.locked():
                    continue  # the news came as we looked
                if now_s >= call.deadline_s:
                    lane.queue.withdraw(call)  # if it runs already, nobody reads what comes out
                    lane.dropped.inc()
                    raise Busy("the time that the call may wait was over before the model had answered", 0.0)
                if run := self._start(lane, now_s, call):
                    return run
        if call.gone:
            lane.dropped.inc()
            raise Busy("the caller has gone", 0.0)
        return call.lead

    def _lead(self, lane: _Lane, run: Run) -> None:
        """Run, hand the model on, and tell the others of the run."""
        calls = _calls(run)
        try:
            _compute(calls)
        finally:
            now_s = self.clock()
            with self._lock:
                lane.queue.finished(run, now_s)
                self._start(lane, now_s)
                for call in calls:
                    _wake(call)
        for call in calls:
            lane.queue_seconds.observe(run.started_s - call.arrived_s)


def _calls(run: Run) -> Sequence[_Call]:
    return run.entries  # type: ignore[return-value]  # the batcher offers nothing else


def _wake(call: _Call) -> None:
    """Let the thread of `call` look; it may have been told before, or not wait at all."""
    if call.wake and call.wake.locked():
        call.wake.release()


def _compute(calls: Sequence[_Call]) -> None:
    """Leave in each call its outputs or its error."""
    if len(calls) > 1 and _compute_together(calls):
        return
    for call in calls:
        try:
            call.outputs = call.compute(call.values)
        except BaseException as error:  # noqa: BLE001 - raised again on the thread of the call
            call.error = error


def _compute_together(calls: Sequence[_Call]) -> bool:
    """Whether one run answered all. One call's fault must not be another's: after an error each runs for itself."""
    try:
        outputs = calls[0].compute(np.concatenate([call.values for call in calls]))
    except Exception:  # noqa: BLE001 - see above
        return False
    end = 0
    for call in calls:
        start, end = end, end + call.rows
        call.outputs = {name: array[start:end] for name, array in outputs.items()}
    return True
