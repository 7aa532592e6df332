"""What the store's events and the calls come to in the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bll.config import TrainingConfig
from bll.events import (
    Alarm,
    AlarmSignature,
    BlockContinued,
    BlockProgress,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    RolledBack,
    Scores,
)
from bll.plan import BlockPlan, Plan
from bll_server.jobs.records import Progress, RunEvent
from bll_server.jobs.states import State
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics
from bll_server.metrics.running import MOST_BLOCKS, MOST_JOBS

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, (), 0, 0, (1,), 0),) * 2, (4,), ("a", "b"), 20, "")


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics()


@pytest.fixture
def store(tmp_path: Path, metrics: Metrics) -> Any:
    store = Store(tmp_path / "bll.db", metrics=metrics)
    metrics.jobs.count(store.counts)
    yield store
    store.close()


Value = Callable[..., float | None]


@pytest.fixture
def value(metrics: Metrics) -> Value:
    return lambda name, **labels: metrics.registry.get_sample_value(name, labels)


def report(block: int, step: int = 5, **more: Any) -> BlockProgress:
    return BlockProgress(block, 0, step, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, **({"wait_s": 0.0} | more))


def start(store: Store, job_id: str) -> None:
    store.create(job_id, "", b"", PLAN)
    store.transition(job_id, State.STARTING)
    store.transition(job_id, State.RUNNING)


def test_a_job_is_counted_in_every_state_it_comes_to_with_the_time_it_spent_there(
    store: Store, value: Value, clock: Clock
) -> None:
    store.create("one", "", b"", PLAN)
    clock.now += 30
    store.transition("one", State.STARTING)
    clock.now += 2
    store.transition("one", State.RUNNING)
    clock.now += 100
    store.transition("one", State.FAILED)
    clock.now += 1000
    store.transition("one", State.QUEUED)
    assert (value("bll_job_queue_wait_seconds_sum"), value("bll_job_queue_wait_seconds_count")) == (30, 1)
    found = {state: value("bll_job_state_seconds_sum", state=state) for state in State}
    assert {state: seconds for state, seconds in found.items() if seconds is not None} == {
        "queued": 30,
        "starting": 2,
        "running": 100,
    }
    assert value("bll_job_transitions_total", state="queued") == 2
    assert (value("bll_jobs", state="queued"), value("bll_jobs", state="failed")) == (1, 0)


def test_a_state_that_a_job_was_in_when_the_server_started_counts_from_then(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path / "bll.db")
    store.create("one", "", b"", PLAN)
    store.close()
    clock.now += 500
    metrics = Metrics()
    store = Store(tmp_path / "bll.db", metrics=metrics)
    clock.now += 7
    store.transition("one", State.STARTING)
    store.close()
    assert metrics.registry.get_sample_value("bll_job_queue_wait_seconds_sum") == 7


def test_what_was_not_committed_is_not_counted(store: Store, value: Value, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    store.create("one", "", b"", PLAN)
    with monkeypatch.context() as broken:
        broken.setattr("bll_server.jobs.store.event_to_json", fail)
        with pytest.raises(OSError, match="gone"):
            store.transition("one", State.STARTING)
    assert value("bll_job_transitions_total", state="starting") == 0
    store.transition("one", State.STARTING)
    assert value("bll_job_transitions_total", state="starting") == 1


def test_a_running_job_shows_what_its_blocks_report(store: Store, value: Value, clock: Clock) -> None:
    start(store, "one")
    waits: dict[str, Any] = {
        "wait_s": 3.0,
        "version_wait_s": 1.0,
        "send_wait_s": 0.5,
        "inbox_fill": 0.75,
        "staleness_steps": 2,
    }
    for _ in range(2):
        store.append("one", report(1, **waits), Progress(5, 0, 256.0, 40.0, 2.0))
    of_block = {"job": "one", "block": "1"}
    names = "loss_nats", "kl_nats", "agreement", "posterior_variance", "mixing", "staleness_steps", "inbox_fill"
    found = [value(f"bll_job_block_{name}", **of_block) for name in names]
    assert found == [1.2, 0.3, 0.7, 0.2, 1.0, 2, 0.75]
    waited = [value("bll_job_block_wait_seconds_total", **of_block, cause=cause) for cause in ("left", "right", "room")]
    assert waited == [4.0, 2.0, 1.0]
    of_job = "steps", "steps_per_second", "samples_per_second", "remaining_seconds"
    assert [value(f"bll_job_{name}", job="one") for name in of_job] == [5, 2.0, 256.0, 40.0]
    scores = Scores(0.9, 0.4, 0.1, 0.2)
    store.append("one", Evaluation("validation", 0, 5, 100, scores, scores, (scores,), 0.1))
    store.append("one", Evaluation("test", 0, 5, 100, Scores(0.1, 9.0, 0.1, 0.2), scores, (scores,), 0.1))
    assert value("bll_job_validation_accuracy", job="one") == 0.9
    assert value("bll_job_validation_nll_nats", job="one") == 0.4


def test_the_age_of_a_checkpoint_counts_from_the_start_until_there_is_one(
    store: Store, value: Value, clock: Clock
) -> None:
    start(store, "one")
    clock.now += 60
    assert value("bll_job_checkpoint_age_seconds", job="one") == 60
    store.append("one", CheckpointSaved(10, 0, 0.25))
    clock.now += 5
    assert value("bll_job_checkpoint_age_seconds", job="one") == 5
    assert value("bll_job_checkpoint_write_seconds_sum") == 0.25
    store.append("one", CheckpointDamaged(10, 0, "truncated"))
    assert value("bll_job_checkpoints_damaged_total") == 1


def test_lost_workers_are_counted_by_recovery_and_by_block(store: Store, value: Value) -> None:
    start(store, "one")
    lost: tuple[RunEvent, ...] = (
        RolledBack(0, 1, "was killed", 1),
        BlockContinued(0, 5, 0, "was killed", 1),
        RolledBack(0, 1, "was killed", 2),
    )
    for event in lost:
        store.append("one", event)
    assert value("bll_block_restarts_total", recovery="exact") == 2
    assert value("bll_block_restarts_total", recovery="continue") == 1
    assert value("bll_job_block_restarts_total", job="one", block="1", recovery="exact") == 2
    assert value("bll_job_block_restarts_total", job="one", block="0", recovery="continue") == 1


def test_alarms_are_counted_by_signature(store: Store, value: Value) -> None:
    start(store, "one")
    plateau = Alarm(AlarmSignature.LOSS_PLATEAU, 1, 4, 40, "it stands still", "a richer latent.readout", ())
    gap = Alarm(AlarmSignature.END_TO_END_GAP, None, 4, 40, "exits fall", "fewer blocks", ())
    for alarm in (plateau, gap, plateau):
        store.append("one", alarm)
    counts = [value("bll_job_alarms_total", signature=signature) for signature in AlarmSignature]
    assert dict(zip(AlarmSignature, counts, strict=True)) == {
        "loss_plateau": 2,
        "end_to_end_gap": 1,
        "unstable_uncertainty": 0,
    }


def test_two_hundred_jobs_that_ended_leave_as_many_series_as_one(store: Store, metrics: Metrics) -> None:
    ends = (State.SUCCEEDED, State.FAILED, State.CANCELLED, State.PAUSED)

    def run(job_id: str, end: State) -> None:
        start(store, job_id)
        for block in range(4):
            store.append(job_id, report(block), Progress(5, 0, 256.0, 40.0, 2.0))
        store.append(job_id, CheckpointSaved(5, 0))
        store.append(job_id, RolledBack(5, 1, "was killed", 1))
        if end in (State.CANCELLED, State.PAUSED):
            store.transition(job_id, State.CANCELLING if end is State.CANCELLED else State.PAUSING)
        store.transition(job_id, end)

    def series() -> int:
        return sum(len(family.samples) for family in metrics.registry.collect())

    for number, end in enumerate(ends):
        run(f"first-{number}", end)
    before = series()
    for number in range(200):
        run(f"job-{number}", ends[number % 4])
    assert series() == before
    for number in range(3, 200, 4):
        store.delete(f"job-{number}")
    assert set(metrics.jobs._since) == {"first-3"}  # of those that are not over, and were not deleted


def test_jobs_and_blocks_beyond_the_cap_have_no_series_until_there_is_room(
    store: Store, value: Value, metrics: Metrics
) -> None:
    for number in range(MOST_JOBS + 2):
        start(store, f"job-{number}")
    late = f"job-{MOST_JOBS}"
    store.append(late, report(0))
    assert value("bll_jobs_left_out") == 2
    assert value("bll_job_block_loss_nats", job=late, block="0") is None
    store.transition("job-0", State.FAILED)
    store.append(late, report(0))
    assert value("bll_job_block_loss_nats", job=late, block="0") == 1.2
    assert value("bll_jobs_left_out") == 1
    store.append(late, report(MOST_BLOCKS))
    assert value("bll_job_block_loss_nats", job=late, block=str(MOST_BLOCKS)) is None


def test_events_and_commits_of_the_store_are_counted(store: Store, value: Value) -> None:
    before = value("bll_store_commit_seconds_count")
    start(store, "one")
    store.append("one", report(0))
    assert value("bll_store_events_total", kind="StateChange") == 3
    assert value("bll_store_events_total", kind="BlockProgress") == 1
    after = value("bll_store_commit_seconds_count")
    assert before is not None
    assert after == before + 4


def test_a_scrape_says_what_runs_and_what_the_process_takes(metrics: Metrics, value: Value) -> None:
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    assert {"bll_build_info", "process_resident_memory_bytes", "process_open_fds"} <= names
