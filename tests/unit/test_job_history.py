"""What is left of a job's events once roll-backs and resumptions have been taken into account."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
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
from bll_server.jobs.history import BlockState, History, spread
from bll_server.jobs.records import Job, JobEvent, RunEvent, StateChange
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
START = datetime(2026, 1, 1, tzinfo=UTC)
SCORES = Scores(0.9, 0.3, 0.01, 0.1)
STARTING = StateChange(State.STARTING)


def report(block: int, step: int, loss: float = 1.0) -> BlockProgress:
    return BlockProgress(block, 0, step, loss, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.5)


def evaluation(step: int) -> Evaluation:
    return Evaluation("validation", 0, step, 100, SCORES, SCORES, (SCORES, SCORES), 0.0)


def history(*events: RunEvent | StateChange) -> History:
    return History.of(JobEvent(i + 1, START + timedelta(seconds=i), event) for i, event in enumerate(events))


def steps(of: History, block: int = 0) -> list[int]:
    return [told.step for told in of.series(1000).get(block, [])]


BEFORE = (STARTING, report(0, 5), report(0, 10), CheckpointSaved(10, 0), evaluation(10), report(0, 15), report(0, 20))


@pytest.mark.parametrize(
    "back",
    [
        (RolledBack(10, 1, "killed", 1),),
        (CheckpointSaved(20, 1), CheckpointDamaged(20, 10, "truncated")),
        (StateChange(State.QUEUED, "the server died"), STARTING),
        (StateChange(State.FAILED), StateChange(State.QUEUED, "retried by request"), STARTING),
    ],
)
def test_what_is_told_again_after_going_back_replaces_what_was_told(back: tuple[RunEvent | StateChange, ...]) -> None:
    assert steps(history(*BEFORE, evaluation(20), *back)) == [5, 10]
    again = history(*BEFORE, evaluation(20), *back, report(0, 15, loss=2.0), report(0, 20), evaluation(20))
    assert steps(again) == [5, 10, 15, 20]
    assert again.progress[0][15].loss_nats == 2.0
    assert [told.step for told in again.evaluations.values()] == [10, 20]


def test_a_run_that_begins_again_without_a_checkpoint_begins_its_series_again() -> None:
    assert steps(history(STARTING, report(0, 5), StateChange(State.QUEUED, "the server died"), STARTING)) == []


def test_an_evaluation_told_twice_of_one_step_counts_once() -> None:
    assert len(history(*BEFORE, StateChange(State.QUEUED), STARTING, evaluation(10)).evaluations) == 1


@given(st.integers(1, 50), st.integers(1, 60))
def test_a_thinned_series_keeps_its_order_and_its_last(length: int, most: int) -> None:
    thin = spread(range(length), most)
    assert len(thin) == min(length, most)
    assert thin == sorted(set(thin))
    assert thin[-1] == length - 1
    assert most == 1 or thin[0] == 0


@pytest.fixture
def job(tmp_path: Path) -> Job:
    store = Store(tmp_path / "bll.db")
    store.create("one", "", b"", PLAN)
    store.transition("one", State.STARTING)
    return store.transition("one", State.RUNNING)


PLACED = BlocksPlaced(0, False, (PlacedWorker((0,), 0.4, (2,)), PlacedWorker((1,), 0.6, ())))


def test_a_block_of_a_running_job_tells_its_worker_its_wait_and_its_checkpoint(job: Job) -> None:
    waits = BlockWaiting(1, 0, False, 30.0, False)
    first, second = history(*BEFORE, PLACED, waits).blocks(job)
    assert (first.state, first.device, first.worker, first.cpus) == (BlockState.DONE, "cpu", 0, (2,))
    assert (first.progress, first.checkpoint_step) == (report(0, 20), 10)
    assert first.checkpoint_time == START + timedelta(seconds=3)
    assert (second.state, second.device, second.worker) == (BlockState.WAITING, "cuda:1", 1)
    assert (second.waiting, second.progress) == (waits, None)
    again = history(*BEFORE, PLACED, waits, replace(waits, ended=True)).blocks(job)[1]
    assert (again.state, again.waiting) == (BlockState.TRAINING, None)


def test_a_block_of_a_job_that_does_not_run_has_no_worker(job: Job) -> None:
    told = history(*BEFORE[:-1], PLACED, StateChange(State.PAUSED))
    block = told.blocks(replace(job, state=State.PAUSED))[0]
    assert (block.state, block.worker, block.checkpoint_step) == (BlockState.IDLE, None, 10)


def test_a_block_goes_over_the_wire_with_what_is_absent_left_out(job: Job) -> None:
    first, second = (convert.block_message(block) for block in history(*BEFORE, PLACED).blocks(job))
    assert (first.worker, list(first.cpus), first.progress.step) == (0, [2], 20)
    assert first.checkpoint_time.ToDatetime(UTC) == START + timedelta(seconds=3)
    assert first.HasField("worker")
    assert not second.HasField("progress")
    assert not second.HasField("waiting")
