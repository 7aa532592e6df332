"""Readers of a job's events, as fast or as slow as they like."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bll.config import TrainingConfig
from bll.events import Alarm, AlarmSignature, BlockProgress, CheckpointSaved, Evaluation, RolledBack, Scores
from bll.plan import BlockPlan, Plan
from bll_server.jobs import feed
from bll_server.jobs.followers import Followers
from bll_server.jobs.records import JobEvent, RunEvent, StateChange
from bll_server.jobs.states import State
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, (), 0, 0, (1,), 0),) * 2, (4,), ("a", "b"), 20, "")
SCORES = Scores(0.9, 0.4, 0.1, 0.2)
OTHERS: tuple[RunEvent, ...] = (
    CheckpointSaved(10, 0),
    Evaluation("validation", 0, 10, 100, SCORES, SCORES, (SCORES,), 0.1),
    Alarm(AlarmSignature.LOSS_PLATEAU, 1, 4, 40, "it stands still", "a richer latent.readout", ()),
    RolledBack(10, 1, "was killed", 1),
)


class Bench:
    """A running job, whose events come when the test says so."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.metrics = Metrics()
        self.store = Store(folder / "bll.db", metrics=self.metrics)
        self.store.create("one", "", b"", PLAN)
        self.store.transition("one", State.STARTING)
        self.store.transition("one", State.RUNNING)
        never: Callable[[str], bool] = lambda job_id: False  # noqa: E731
        self.followers = Followers(self.store, folder, 300, self.metrics, is_running=never, is_ending=never)

    def report(self, count: int = 1) -> None:
        for number in range(count):
            block = number % 2
            self.store.append("one", BlockProgress(block, 0, 1, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.0))

    def end(self) -> None:
        self.store.transition("one", State.FAILED)

    def watch(self, after: int = 0) -> Iterator[JobEvent | None]:
        return self.followers.watch("one", after, lambda: False)

    def told(self) -> list[JobEvent]:
        """All events of the job up to now."""
        return self.store.events("one", 0, 10_000)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def reports(events: list[JobEvent]) -> list[JobEvent]:
    return [event for event in events if isinstance(event.event, BlockProgress)]


def is_whole(seen: list[JobEvent], told: list[JobEvent]) -> bool:
    """Nothing but reports is missing, the newest of each block is there, and all is as it was told."""
    rest = [event for event in told if not isinstance(event.event, BlockProgress)]
    newest = {event.event.block: event for event in reports(told)}  # type: ignore[union-attr]
    numbers = [event.number for event in seen]
    in_order = numbers == sorted(set(numbers)) and all(event in told for event in seen)
    return in_order and all(event in seen for event in (*rest, *newest.values()))


def test_a_reader_that_keeps_up_gets_every_event_of_a_long_history_while_the_job_goes_on(bench: Bench) -> None:
    bench.report(3 * feed.PIECE)
    seen: list[Any] = []
    for event in bench.watch():
        seen.append(event)
        if len(seen) % 10 == 0 and len(seen) < 200:
            bench.report()
        if len(seen) == 3 * feed.PIECE:
            bench.end()
    assert seen == bench.told()
    assert bench.value("bll_watch_events_coalesced_total") == 0


def test_a_reader_that_falls_behind_is_spared_all_but_the_newest_reports_and_loses_nothing_else(bench: Bench) -> None:
    watcher = bench.watch()
    seen: list[Any] = [next(watcher)]
    for _ in range(feed.PIECE + 2):  # three come while it takes one
        bench.report(3)
        seen.append(next(watcher))
    for event in OTHERS:
        bench.store.append("one", event)
    bench.report(2 * feed.PIECE)
    bench.end()
    seen += watcher
    told = bench.told()
    assert is_whole(seen, told)
    spared = len(told) - len(seen)
    assert spared > 3 * feed.PIECE
    assert bench.value("bll_watch_events_coalesced_total") == spared
    # Whoever comes back by number finds what was left out where nothing newer had been seen.
    after = seen[len(seen) // 2].number
    assert list(bench.watch(after)) == [event for event in told if event.number > after]


@settings(max_examples=12)
@given(
    pace=st.lists(st.tuples(st.integers(0, 6), st.sampled_from((None, *OTHERS)), st.booleans()), max_size=25),
    last=st.integers(0, 30),
)
def test_no_pace_and_no_reconnection_loses_more_than_reports_that_newer_ones_make_up_for(
    tmp_path_factory: pytest.TempPathFactory, pace: list[tuple[int, RunEvent | None, bool]], last: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "PIECE", 3)
        bench = Bench(tmp_path_factory.mktemp("pace"))
        watcher = bench.watch()
        seen: list[Any] = [next(watcher)]
        for count, other, reconnects in pace:
            bench.report(count)
            if other:
                bench.store.append("one", other)
            if reconnects:
                watcher = bench.watch(seen[-1].number)
            if seen[-1].number < bench.store.last_event("one"):
                seen.append(next(watcher))
        bench.report(last)
        bench.end()
        seen += watcher
        assert is_whole(seen, bench.told())
        bench.store.close()


def test_a_job_that_takes_the_name_of_a_deleted_one_tells_its_own_events(bench: Bench) -> None:
    bench.end()
    assert [event.event.state for event in bench.watch()][-1] is State.FAILED  # type: ignore[union-attr]
    bench.store.delete("one")
    bench.store.create("one", "", b"", PLAN)
    bench.store.transition("one", State.CANCELLED)
    states = [event.event for event in bench.watch()]  # type: ignore[union-attr]
    assert states == [StateChange(State.QUEUED), StateChange(State.CANCELLED)]


def test_many_who_wait_for_the_same_event_cost_one_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = bench.store.events

    def counted(job_id: str, after: int, limit: int) -> list[JobEvent]:
        reads.append(after)
        return read(job_id, after, limit)

    monkeypatch.setattr(bench.store, "events", counted)
    watchers = [bench.watch(2) for _ in range(50)]
    assert len({next(watcher) for watcher in watchers}) == 1
    assert (reads, bench.value("bll_watchers")) == ([2], 50)
    ended = threading.Barrier(51)

    def rest(watcher: Iterator[Any]) -> None:
        assert [event.event.state for event in watcher] == [State.FAILED]
        ended.wait(20)

    for watcher in watchers:
        threading.Thread(target=rest, args=(watcher,), daemon=True).start()
    bench.end()
    ended.wait(20)
    assert reads == [2, 3]
    assert bench.value("bll_watchers") == 0
