"""What is left of a job's events once roll-backs and resumptions have been taken into account."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bll.config import BlocksConfig, TrainingConfig
from bll.events import (
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    PlacedWorker,
    RolledBack,
    Scores,
)
from bll.execution import ExecutorConfig
from bll.plan import BlockPlan, Plan
from bll_server import convert
from bll_server.jobs.history import BlockState, History
from bll_server.jobs.records import RunEvent, StateChange
from bll_server.jobs.schema import standing
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

PLAN = Plan(
    TrainingConfig(
        blocks=BlocksConfig(num_blocks=2, cuts=(1,)), epochs=2, executor=ExecutorConfig(devices=("cpu", "cuda:1"))
    ),
    (BlockPlan(0, ("a",), 1, 2, (4,), 8), BlockPlan(1, ("b",), 1, 2, (4,), 8)),
    (4,),
    ("a", "b"),
    10,
    "0" * 64,
)
SCORES = Scores(0.9, 0.3, 0.01, 0.1)
STARTING = StateChange(State.STARTING)
_numbers = itertools.count()


def report(block: int, step: int, loss: float = 1.0) -> BlockProgress:
    return BlockProgress(block, 0, step, loss, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.5)


def evaluation(step: int) -> Evaluation:
    return Evaluation("validation", 0, step, 100, SCORES, SCORES, (SCORES, SCORES), 0.0)


@pytest.fixture(scope="module")
def store(job_database: Callable[[], Path | sa.URL]) -> Iterator[Store]:
    store = Store(job_database())
    yield store
    store.close()


def run(store: Store, *events: RunEvent | StateChange) -> History:
    """The history of a new job to which `events` have happened."""
    job_id = store.create(f"job-{next(_numbers)}", "", b"", PLAN).job_id
    for event in events:
        if isinstance(event, StateChange):
            store.transition(job_id, event.state, event.reason)
        else:
            store.append(job_id, event)
    return store.history(job_id)


def steps(of: History, block: int = 0) -> list[int]:
    return [told.step for told in of.series(1000).get(block, [])]


BEFORE = (STARTING, report(0, 5), report(0, 10), CheckpointSaved(10, 0), evaluation(10), report(0, 15), report(0, 20))
QUEUED = StateChange(State.QUEUED, "the server died")


@pytest.mark.parametrize(
    "back",
    [
        (RolledBack(10, 1, "killed", 1),),
        (CheckpointSaved(20, 1), CheckpointDamaged(20, 10, "truncated")),
        (QUEUED, STARTING),
        (StateChange(State.FAILED), QUEUED, STARTING),
    ],
)
def test_what_is_told_again_after_going_back_replaces_what_was_told(
    store: Store, back: tuple[RunEvent | StateChange, ...]
) -> None:
    assert steps(run(store, *BEFORE, evaluation(20), *back)) == [5, 10]
    again = run(store, *BEFORE, evaluation(20), *back, report(0, 15, loss=2.0), report(0, 20), evaluation(20))
    assert steps(again) == [5, 10, 15, 20]
    assert again.series(1000)[0][2].loss_nats == 2.0
    assert [told.step for told in again.evaluations()] == [10, 20]


def test_a_run_that_begins_again_without_a_checkpoint_begins_its_series_again(store: Store) -> None:
    assert steps(run(store, STARTING, report(0, 5), QUEUED, STARTING)) == []


def test_an_evaluation_told_twice_of_one_step_counts_once(store: Store) -> None:
    assert len(run(store, *BEFORE, QUEUED, STARTING, evaluation(10)).evaluations()) == 1


def test_a_report_told_twice_of_one_step_counts_once(store: Store) -> None:
    again = run(store, *BEFORE, report(0, 15, loss=2.0))
    assert [told.loss_nats for told in again.series(1000)[0]] == [1.0, 1.0, 2.0, 1.0]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=25, unique=True).map(sorted), st.integers(1, 30))
def test_a_thinned_series_is_spread_over_the_steps_to_the_last(store: Store, told: list[int], most: int) -> None:
    thin = [report.step for report in run(store, STARTING, *(report(0, step) for step in told)).series(most)[0]]
    if len(told) <= most:
        assert thin == told
        return
    assert len(thin) <= most
    assert thin == sorted(set(thin) & set(told))
    assert thin[-1] == told[-1]
    if most > 1:
        assert thin[0] == told[0]
        stride = (told[-1] - told[0]) / (most - 1)
        for here, following in itertools.pairwise(thin):
            between = [step for step in told if here < step < following]
            assert all(step - here < stride + 1 for step in between), "a report was left out that a stride reaches"


EVENTS = st.one_of(
    st.builds(report, st.integers(0, 1), st.integers(1, 20)),
    st.builds(evaluation, st.integers(1, 20)),
    st.builds(CheckpointSaved, st.integers(1, 20), st.just(0)),
    st.builds(RolledBack, st.integers(0, 20), st.just(0), st.just("killed"), st.just(1)),
    st.builds(CheckpointDamaged, st.just(20), st.integers(0, 20), st.just("truncated")),
    st.builds(BlockWaiting, st.integers(0, 1), st.just(1), st.just(False), st.just(30.0), st.booleans()),
    st.just(QUEUED),
)


class Expected:
    """The history of a job by the book: every event kept in memory, and taken out when it is undone."""

    def __init__(self) -> None:
        self.reports: dict[tuple[int, int], BlockProgress] = {}
        self.evaluations: dict[int, Evaluation] = {}
        self.saved: set[int] = set()
        self.waiting: dict[int, BlockWaiting] = {}

    def take(self, event: RunEvent | StateChange) -> None:
        match event:
            case BlockProgress():
                self.reports[event.block, event.step] = event
            case Evaluation():
                self.evaluations[event.step] = event
            case CheckpointSaved():
                self.saved.add(event.step)
            case BlockWaiting(ended=True):
                self.waiting.pop(event.block, None)
            case BlockWaiting():
                self.waiting[event.block] = event
            case RolledBack(step=step) | CheckpointDamaged(fallback_step=step):
                self.go_back(step)
            case StateChange():
                self.go_back(max(self.saved, default=0))

    def go_back(self, to_step: int) -> None:
        self.reports = {key: told for key, told in self.reports.items() if key[1] <= to_step}
        self.evaluations = {step: told for step, told in self.evaluations.items() if step <= to_step}
        self.saved = {step for step in self.saved if step <= to_step}
        self.waiting.clear()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, max_size=30))
def test_whatever_happens_to_a_run_its_history_is_what_was_not_undone(
    store: Store, events: list[RunEvent | StateChange]
) -> None:
    expected = Expected()
    happened: list[RunEvent | StateChange] = []
    for event in events:
        expected.take(event)
        happened += [event, STARTING] if isinstance(event, StateChange) else [event]
    history = run(store, STARTING, *happened)
    series = {(block, told.step): told for block, reports in history.series(1000).items() for told in reports}
    assert series == expected.reports
    assert {told.step: told for told in history.evaluations()} == expected.evaluations
    blocks = history.blocks()
    assert {block.checkpoint_step for block in blocks} == {max(expected.saved, default=0)}
    assert {block.block: block.waiting for block in blocks if block.waiting} == expected.waiting
    for block in blocks:
        newest = max((step for number, step in expected.reports if number == block.block), default=None)
        assert (block.progress and block.progress.step) == newest


PLACED = BlocksPlaced(0, False, (PlacedWorker((0,), 0.4, (2,)), PlacedWorker((1,), 0.6, ())))
RUNS = (STARTING, StateChange(State.RUNNING), *BEFORE[1:], PLACED)


def test_a_block_of_a_running_job_tells_its_worker_its_wait_and_its_checkpoint(store: Store) -> None:
    waits = BlockWaiting(1, 0, False, 30.0, False)
    history = run(store, *RUNS, waits)
    first, second = history.blocks()
    saved = next(e for e in store.events(history.job_id, 0) if isinstance(e.event, CheckpointSaved))
    assert (first.state, first.device, first.worker, first.cpus) == (BlockState.DONE, "cpu", 0, (2,))
    assert (first.progress, first.checkpoint_step, first.checkpoint_time) == (report(0, 20), 10, saved.time)
    assert (second.state, second.device, second.worker) == (BlockState.WAITING, "cuda:1", 1)
    assert (second.waiting, second.progress) == (waits, None)
    again = run(store, *RUNS, waits, replace(waits, ended=True)).blocks()[1]
    assert (again.state, again.waiting) == (BlockState.TRAINING, None)


def test_a_block_of_a_job_that_does_not_run_has_no_worker(store: Store) -> None:
    paused = StateChange(State.PAUSING), StateChange(State.PAUSED)
    block = run(store, STARTING, *BEFORE[1:-1], PLACED, *paused).blocks()[0]
    assert (block.state, block.worker, block.checkpoint_step) == (BlockState.IDLE, None, 10)


def test_a_block_goes_over_the_wire_with_what_is_absent_left_out(store: Store) -> None:
    blocks = run(store, *RUNS).blocks()
    first, second = map(convert.block_message, blocks)
    assert (first.worker, list(first.cpus), first.progress.step) == (0, [2], 20)
    assert blocks[0].checkpoint_time is not None
    sent_s, told_s = first.checkpoint_time.ToDatetime(UTC).timestamp(), blocks[0].checkpoint_time.timestamp()
    assert sent_s == pytest.approx(told_s, abs=1e-3)
    assert first.HasField("worker")
    assert not second.HasField("progress")
    assert not second.HasField("waiting")


def test_a_job_that_is_deleted_leaves_nothing_behind(store: Store) -> None:
    history = run(store, *BEFORE, StateChange(State.FAILED))
    store.delete(history.job_id)
    with store._database.read() as connection:
        left = sa.select(sa.func.count()).select_from(standing).where(standing.c.job_id == history.job_id)
        assert connection.execute(left).scalar_one() == 0
