"""The rules by which calls of a model wait: nothing here runs or waits, and the clock is ours."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bll_server.models.queue import MERGED_BELOW_ROWS, PATIENCE_S, Budget, Entry, Queue, Refused, Run, RunTimes


def entry(rows: int = 1, arrived_s: float = 0.0, **more: object) -> Entry:
    return Entry(rows, 10 * rows, arrived_s, **more)  # type: ignore[arg-type]


def queue(budget: Budget | None = None, parallel: int = 1, batch_rows: int = 32, delay_s: float = 0.0) -> Queue:
    budget = budget or Budget(10**6, 10**6, 10**9)
    return Queue(budget, parallel=parallel, batch_rows=batch_rows, delay_s=delay_s)


def busy(found: Queue, now_s: float = 0.0) -> Run:
    """Make the one run of `found` be taken."""
    found.offer(entry(1, now_s))
    run = found.take(now_s)
    assert run
    return run


def test_call_that_finds_the_model_free_runs_at_once() -> None:
    found, call = queue(), entry()
    found.offer(call)
    run = found.take(0.0)
    assert run
    assert run.entries == [call]


def test_calls_that_waited_run_together_up_to_the_rows_of_a_batch() -> None:
    found = queue(batch_rows=8)
    first = busy(found)
    calls = [entry(3) for _ in range(3)]
    for call in calls:
        found.offer(call)
    assert found.take(0.0) is None, "one run at a time"
    found.finished(first, 0.1)
    run = found.take(0.1)
    assert run
    assert run.entries == calls[:2]


def test_large_calls_and_calls_of_another_kind_run_alone() -> None:
    found = queue(parallel=4)
    for call in (entry(MERGED_BELOW_ROWS), entry(MERGED_BELOW_ROWS), entry(1, kind="a"), entry(1, kind="b")):
        found.offer(call)
    runs = [found.take(0.0) for _ in range(4)]
    assert [len(run.entries) for run in runs if run] == [1, 1, 1, 1]


def test_the_smaller_number_goes_first_and_among_equals_the_earlier() -> None:
    found = queue()
    first = busy(found)
    calls = [entry(MERGED_BELOW_ROWS, priority=priority) for priority in (100, 2, 100, 2)]
    for call in calls:
        found.offer(call)
    order = []
    for _ in calls:
        found.finished(first, 0.0)
        run = found.take(0.0)
        assert run
        order.append(calls.index(run.entries[0]))
        first = run
    assert order == [1, 3, 0, 2]


def test_nobody_is_passed_any_more_who_has_waited_for_a_second() -> None:
    found = queue()
    first = busy(found)
    patient = entry(MERGED_BELOW_ROWS, 0.0, priority=1000)
    found.offer(patient)
    found.offer(entry(MERGED_BELOW_ROWS, 0.5, priority=1))
    found.finished(first, PATIENCE_S)
    run = found.take(PATIENCE_S)
    assert run
    assert run.entries == [patient]


def test_delay_holds_a_call_until_it_is_over_or_a_batch_is_full() -> None:
    found = queue(batch_rows=4, delay_s=0.01)
    alone = entry(2)
    found.offer(alone)
    assert found.take(0.005) is None
    assert found.next_look_s(alone, 0.005) == pytest.approx(0.01)
    found.offer(entry(2, 0.006))
    assert found.take(0.006), "the batch is full"
    late = entry(2, 0.02)
    found = queue(batch_rows=4, delay_s=0.01)
    found.offer(late)
    assert found.take(0.031)


def test_call_that_cannot_be_answered_in_time_is_refused_and_told_how_long_the_wait_is() -> None:
    found = queue()
    found.finished(busy(found), 0.1)  # a run takes 0.1 s
    busy(found, 0.1)
    with pytest.raises(Refused, match=r"would take about 0\.2 s, and the call may wait 0\.15 s") as refused:
        found.offer(entry(1, 0.1, deadline_s=0.25))
    assert refused.value.retry_after_s == pytest.approx(0.1)
    found.offer(entry(1, 0.1, deadline_s=0.35))


def test_nobody_with_a_deadline_queues_behind_a_run_that_hangs() -> None:
    found = queue()
    found.finished(busy(found), 0.1)
    busy(found, 0.1)
    with pytest.raises(Refused):
        found.offer(entry(1, 60.0, deadline_s=70.0))


def test_an_estimate_that_is_not_renewed_refuses_not_for_ever() -> None:
    found = queue()
    found.finished(busy(found), 5.0)
    with pytest.raises(Refused):
        found.offer(entry(1, 6.0, deadline_s=7.0))
    found.offer(entry(1, 60.0, deadline_s=61.0))


def test_time_of_a_run_of_another_size_is_scaled_up_from_the_nearest_below() -> None:
    times = RunTimes()
    assert times.expected_s(8, 0.0) == 0.0
    times.add(8, 0.1, 0.0)
    assert times.expected_s(7, 0.0) == times.expected_s(8, 0.0) == pytest.approx(0.1)
    assert times.expected_s(32, 0.0) == pytest.approx(0.4)
    assert times.expected_s(1, 0.0) == pytest.approx(0.1)


def test_queue_that_grows_leaves_room_for_the_others() -> None:
    budget = Budget(12, 10**6, 10**9)
    queues = [queue(budget) for _ in range(3)]
    for found, fits in zip(queues, (9, 2, 1), strict=True):
        for _ in range(fits):
            found.offer(entry())
        with pytest.raises(Refused, match=f"{fits} calls of this model are in the server already"):
            found.offer(entry())
    assert budget.held == (12, 12, 120)


def test_one_call_may_take_all_that_is_free() -> None:
    found = queue(Budget(2, 100, 1000))
    found.offer(entry(100))
    with pytest.raises(Refused):
        found.offer(entry(1))


class Life(RuleBasedStateMachine):
    """Any order of arrivals, runs, departures and time on two queues with one budget."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.limits = (9, 60, 500)
        self.budget = Budget(*self.limits)
        self.queues = [Queue(self.budget, parallel=2, batch_rows=20) for _ in range(2)]
        self.waiting: list[list[Entry]] = [[], []]
        self.running: list[list[Run]] = [[], []]

    @rule(
        which=st.integers(0, 1),
        rows=st.integers(1, 40),
        priority=st.sampled_from([1, 100, 200]),
        wait_s=st.sampled_from([0.0, 0.2, 3.0, math.inf]),
        kind=st.sampled_from(["a", "b"]),
    )
    def arrives(self, which: int, rows: int, priority: int, wait_s: float, kind: str) -> None:
        call = entry(rows, self.now_s, priority=priority, deadline_s=self.now_s + wait_s, kind=kind)
        try:
            self.queues[which].offer(call)
        except Refused:
            pass
        else:
            assert wait_s > 0, "expired work is not admitted"
            self.waiting[which].append(call)

    @rule(which=st.integers(0, 1))
    def runs(self, which: int) -> None:
        waiting = self.waiting[which]
        run = self.queues[which].take(self.now_s)
        good = [call for call in waiting if call.deadline_s > self.now_s]
        if run is None:
            assert len(self.running[which]) == 2 or not good, "a free model leaves nobody waiting"
            return
        first = run.entries[0]
        assert all(call in good for call in run.entries), "what has expired is not run"
        assert len(run.entries) == 1 or run.rows <= 20
        assert len(run.entries) == 1 or all(call.rows < MERGED_BELOW_ROWS for call in run.entries)
        assert {call.kind for call in run.entries} == {first.kind}
        oldest = good[0]
        if self.now_s - oldest.arrived_s >= PATIENCE_S:
            assert first is oldest, "nobody is passed who has waited long"
        else:
            assert first is min(good, key=lambda call: call.priority), "by priority, then by arrival"
        self.running[which].append(run)
        self.waiting[which] = [call for call in waiting if call not in run.entries]

    @precondition(lambda self: any(self.running))
    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([i for i in range(2) if self.running[i]]))
        run = self.running[which].pop(data.draw(st.integers(0, len(self.running[which]) - 1)))
        self.queues[which].finished(run, self.now_s)

    @precondition(lambda self: any(self.waiting))
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        which = data.draw(st.sampled_from([i for i in range(2) if self.waiting[i]]))
        call = self.waiting[which].pop(data.draw(st.integers(0, len(self.waiting[which]) - 1)))
        assert self.queues[which].withdraw(call)
        assert not self.queues[which].withdraw(call), "only once"

    @rule(seconds=st.sampled_from([0.01, 0.3, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def what_is_held_is_counted_and_within_the_limits(self) -> None:
        calls = [call for waiting in self.waiting for call in waiting]
        calls += [call for runs in self.running for run in runs for call in run.entries]
        held = (len(calls), sum(call.rows for call in calls), sum(call.size_bytes for call in calls))
        assert self.budget.held == held
        assert all(amount <= limit for amount, limit in zip(held, self.limits, strict=True))
        assert [len(found) for found in self.queues] == [len(waiting) for waiting in self.waiting]


TestLife = Life.TestCase


@given(st.lists(st.tuples(st.integers(1, 200), st.floats(0, 10)), min_size=1), st.integers(1, 4096))
def test_expected_time_is_between_what_was_seen_scaled_and_nothing(runs: list[tuple[int, float]], rows: int) -> None:
    times = RunTimes()
    for size, seconds in runs:
        times.add(size, seconds, 0.0)
    expected_s = times.expected_s(rows, 0.0)
    assert 0 <= expected_s <= max(seconds for _, seconds in runs) * 2 * max(rows, 1)
    assert times.expected_s(rows, 10.0) == pytest.approx(expected_s / 2)
