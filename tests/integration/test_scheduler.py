"""The scheduler with a small program in the runner's place, so that every fault comes at a chosen moment."""

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bll.events import BlockProgress, CheckpointSaved
from bll_server.errors import IllegalState, NotFound, Overloaded, ShuttingDown, StaleEtag, StorageFull
from bll_server.jobs.records import Failure, Job, JobEvent, StateChange
from bll_server.jobs.states import State

from .bench import PLAN, Bench, make


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = make(tmp_path, cancel_grace_s=0.2)
    bench.scheduler.start()
    yield bench
    bench.scheduler.drain(0)
    bench.store.close()


def test_a_job_goes_from_the_queue_to_its_model(bench: Bench) -> None:
    bench.submit("succeed-1")
    job = bench.end_of("succeed-1")
    assert job.model_version == "models/succeed-1/versions/1"
    assert bench.states("succeed-1") == [State.QUEUED, State.STARTING, State.RUNNING, State.SUCCEEDED]
    events = bench.store.events("succeed-1", 0)
    assert [e.number for e in events] == list(range(1, len(events) + 1))
    assert sum(isinstance(e.event, BlockProgress) for e in events) == 2


def test_progress_is_that_of_the_slowest_block_with_the_time_left(bench: Bench) -> None:
    bench.submit("wait-1")
    progress = bench.training("wait-1").progress
    assert progress is not None
    assert (progress.step, progress.samples_per_s) == (5, 1000.0)
    assert progress.remaining_s == pytest.approx((20 - 5) * 128 / 1000.0)


def test_a_running_job_is_in_the_metrics_and_an_ended_one_is_not(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    sample = bench.metrics.registry.get_sample_value
    assert sample("bll_job_block_loss_nats", {"job": "wait-1", "block": "1"}) == 1.2
    assert sample("bll_job_steps", {"job": "wait-1"}) == 5
    bench.scheduler.cancel("wait-1")
    bench.end_of("wait-1")
    bench.scheduler.drain(30)
    assert sample("bll_job_block_loss_nats", {"job": "wait-1", "block": "1"}) is None
    assert sample("bll_job_steps", {"job": "wait-1"}) is None


def test_a_failure_names_the_block(bench: Bench) -> None:
    bench.submit("fail-1")
    job = bench.end_of("fail-1")
    assert job.state is State.FAILED
    assert job.failure == Failure("BlockFailed", "block 1: no memory", block=1)


@pytest.mark.parametrize(
    ("what", "words"), [("exit", "status 7"), ("kill", "SIGKILL"), ("nonsense", "Expecting value")]
)
def test_a_runner_that_dies_or_talks_nonsense_fails_its_job(bench: Bench, what: str, words: str) -> None:
    bench.submit(f"{what}-1")
    job = bench.end_of(f"{what}-1")
    assert job.state is State.FAILED
    assert job.failure is not None
    assert words in job.failure.message


def test_a_job_that_cannot_be_started_fails_and_the_next_one_runs(tmp_path: Path) -> None:
    bench = make(tmp_path)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "wait-1").write_text("in the way of the job's folder")
    bench.scheduler.start()
    bench.submit("wait-1")
    bench.submit("succeed-1")
    job = bench.end_of("wait-1")
    assert job.state is State.FAILED
    assert "cannot be started" in job.reason
    assert bench.end_of("succeed-1").state is State.SUCCEEDED
    bench.scheduler.drain(0)


def test_a_state_that_a_full_disk_refused_is_written_once_there_is_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    transition, refused = bench.store.transition, []

    def full_once(job_id: str, state: State, *rest: Any, **more: Any) -> Job:
        if state in (State.STARTING, State.SUCCEEDED) and state not in refused:
            refused.append(state)
            raise StorageFull("the job database cannot grow")
        return transition(job_id, state, *rest, **more)

    monkeypatch.setattr("bll_server.jobs.insistence.RETRY_S", 0.05)
    monkeypatch.setattr(bench.store, "transition", full_once)
    bench.submit("succeed-1")
    assert bench.end_of("succeed-1").state is State.SUCCEEDED
    assert refused == [State.STARTING, State.SUCCEEDED]


def test_jobs_run_one_after_the_other_in_the_order_they_came(bench: Bench) -> None:
    for name in ("wait-1", "succeed-2", "succeed-3"):
        bench.submit(name)
    bench.training("wait-1")
    assert bench.store.get("succeed-2").state is State.QUEUED
    bench.scheduler.cancel("wait-1")
    second, third = bench.end_of("succeed-2"), bench.end_of("succeed-3")
    assert second.end_time is not None
    assert third.start_time is not None
    assert second.end_time <= third.start_time


def test_as_many_jobs_run_at_once_as_there_are_slots(tmp_path: Path) -> None:
    bench = make(tmp_path, jobs=2, threads=4)
    bench.scheduler.start()
    for name in ("wait-1", "wait-2", "wait-3"):
        bench.submit(name)
    bench.training("wait-1")
    bench.training("wait-2")
    assert bench.store.get("wait-3").state is State.QUEUED
    bench.scheduler.drain(30)


def test_a_queued_job_is_cancelled_at_once(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.submit("wait-2")
    assert bench.scheduler.cancel("wait-2").state is State.CANCELLED
    assert bench.states("wait-2") == [State.QUEUED, State.CANCELLED]


def test_a_running_job_is_cancelling_until_its_workers_have_ended(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    assert bench.scheduler.cancel("wait-1").state is State.CANCELLING
    assert bench.scheduler.cancel("wait-1").state in (
        State.CANCELLING,
        State.CANCELLED,
    )  # a second time changes nothing
    assert bench.end_of("wait-1").state is State.CANCELLED


def test_a_job_that_does_not_stop_is_killed_with_all_its_processes(bench: Bench) -> None:
    bench.submit("deaf-1")
    bench.training("deaf-1")
    child = int((bench.folder / "jobs" / "deaf-1" / "child").read_text())
    pidfd = os.pidfd_open(child)
    bench.scheduler.cancel("deaf-1")
    assert bench.end_of("deaf-1").state is State.CANCELLED
    assert ended(pidfd)


def ended(pidfd: int) -> bool:
    """Whether the process is over within the time given; a pidfd becomes readable when it is."""
    ready, _, _ = select.select([pidfd], [], [], 10)
    os.close(pidfd)
    return bool(ready)


def test_what_is_over_cannot_be_cancelled(bench: Bench) -> None:
    bench.submit("succeed-1")
    bench.end_of("succeed-1")
    with pytest.raises(IllegalState, match="SUCCEEDED"):
        bench.scheduler.cancel("succeed-1")


def test_a_queued_job_is_paused_at_once_and_runs_once_it_is_resumed(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.submit("succeed-2")
    assert bench.scheduler.pause("succeed-2").state is State.PAUSED
    assert bench.scheduler.pause("succeed-2").state is State.PAUSED  # a second time changes nothing
    bench.training("wait-1")
    bench.scheduler.cancel("wait-1")
    bench.end_of("wait-1")
    assert bench.scheduler.resume("succeed-2").reason == "resumed by request"
    assert bench.end_of("succeed-2").state is State.SUCCEEDED
    assert bench.states("succeed-2")[:3] == [State.QUEUED, State.PAUSED, State.QUEUED]


def test_a_running_job_pauses_at_its_next_marker_and_gives_its_slot_to_the_next(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.submit("succeed-2")
    bench.training("wait-1")
    assert bench.scheduler.pause("wait-1").state is State.PAUSING
    job = bench.until("wait-1", lambda job: job.state is State.PAUSED)
    assert (job.checkpoint_step, job.reason) == (12, "paused by request; goes on from step 12")
    assert bench.end_of("succeed-2").state is State.SUCCEEDED
    assert bench.store.get("wait-1").state is State.PAUSED


def test_a_resumed_job_goes_on_under_its_name_with_the_next_number(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    bench.scheduler.pause("wait-1")
    paused = bench.until("wait-1", lambda job: job.state is State.PAUSED)
    job = bench.scheduler.resume("wait-1")
    assert job.reason == "resumed by request; goes on from step 12"
    assert job.last_event == paused.last_event + 1
    bench.training("wait-1")
    bench.scheduler.cancel("wait-1")
    bench.end_of("wait-1")


@pytest.mark.parametrize(("what", "end"), [("fail-1", State.FAILED), ("wait-1", State.CANCELLED)])
def test_what_failed_or_was_cancelled_is_retried_from_its_checkpoint(bench: Bench, what: str, end: State) -> None:
    bench.submit(what)
    if end is State.CANCELLED:
        bench.training(what)
        bench.scheduler.cancel(what)
    over = bench.end_of(what)
    watcher = bench.scheduler.followers.watch(what, 0, lambda: False)
    job = bench.scheduler.retry(what)
    assert (job.state, job.failure) == (State.QUEUED, None)
    assert job.reason == f"retried by request; goes on from step {over.checkpoint_step}"
    # Whoever watches is told of the first end, and goes on watching the second run.
    seen = [next(watcher) for _ in range(job.last_event)]
    assert seen[-1] is not None
    assert seen[-1].event == StateChange(State.QUEUED, job.reason)
    bench.until(what, lambda job: bench.states(what).count(State.STARTING) == 2)
    watcher.close()  # type: ignore[attr-defined]


def test_a_paused_and_a_pausing_job_can_be_cancelled(bench: Bench) -> None:
    bench.submit("deaf-1")
    bench.submit("wait-2")
    assert bench.scheduler.pause("wait-2").state is State.PAUSED
    assert bench.scheduler.cancel("wait-2").state is State.CANCELLED
    bench.training("deaf-1")
    assert bench.scheduler.pause("deaf-1").state is State.PAUSING
    assert bench.scheduler.cancel("deaf-1").state is State.CANCELLING
    assert bench.end_of("deaf-1").state is State.CANCELLED


def test_a_request_that_a_state_does_not_allow_says_which_do(bench: Bench) -> None:
    bench.submit("succeed-1")
    bench.end_of("succeed-1")
    for ask, states_ in (
        (bench.scheduler.pause, "QUEUED, STARTING, RUNNING, PAUSING, PAUSED"),
        (bench.scheduler.resume, "PAUSED"),
        (bench.scheduler.retry, "FAILED, CANCELLED"),
    ):
        with pytest.raises(IllegalState, match=f"is SUCCEEDED; jobs that are {states_} can be"):
            ask("succeed-1")


def test_a_pausing_job_is_paused_when_the_server_stops_or_dies(tmp_path: Path) -> None:
    bench = make(tmp_path, cancel_grace_s=0.2)
    bench.scheduler.start()
    bench.submit("deaf-1")
    bench.training("deaf-1")
    bench.scheduler.pause("deaf-1")
    bench.scheduler.drain(0)
    assert bench.store.get("deaf-1").state is State.PAUSED
    bench.store.transition("deaf-1", State.QUEUED)
    bench.store.transition("deaf-1", State.STARTING)
    bench.store.transition("deaf-1", State.PAUSING)
    bench.store.create("succeed-2", "", b"", PLAN)
    again = make(tmp_path)
    again.scheduler.start()
    assert again.end_of("succeed-2").state is State.SUCCEEDED
    assert again.store.get("deaf-1").reason == "paused by request; goes on from step 11"
    assert again.store.get("deaf-1").state is State.PAUSED
    again.scheduler.drain(0)


def test_a_deleted_job_leaves_nothing_and_its_name_is_free(bench: Bench) -> None:
    bench.submit("fail-1")
    bench.end_of("fail-1")
    watcher = bench.scheduler.followers.watch("fail-1", 0, lambda: False)
    bench.scheduler.delete("fail-1")
    with pytest.raises(NotFound):
        list(watcher)
    with pytest.raises(NotFound):
        bench.scheduler.delete("fail-1")
    assert not (bench.folder / "jobs" / "fail-1").exists()
    assert list((bench.folder / "deleted").iterdir()) == []
    bench.submit("fail-1")
    assert bench.end_of("fail-1").state is State.FAILED


def test_a_job_that_runs_or_has_changed_is_not_deleted_and_keeps_its_folder(bench: Bench) -> None:
    bench.submit("wait-1")
    etag = bench.training("wait-1").etag
    with pytest.raises(IllegalState, match="RUNNING"):
        bench.scheduler.delete("wait-1")
    bench.scheduler.cancel("wait-1")
    bench.end_of("wait-1")
    with pytest.raises(StaleEtag):
        bench.scheduler.delete("wait-1", etag)
    assert (bench.folder / "jobs" / "wait-1" / "plan.json").exists()


@pytest.mark.parametrize("row_is_gone", [False, True])
def test_a_server_that_died_while_it_deleted_leaves_the_whole_job_or_nothing(tmp_path: Path, row_is_gone: bool) -> None:
    bench = make(tmp_path)
    bench.submit("wait-1")
    bench.scheduler.pause("wait-1")
    folder, grave = tmp_path / "jobs" / "wait-1", tmp_path / "deleted" / "wait-1"
    grave.mkdir(parents=True)  # as a death between the move and what follows leaves it
    (tmp_path / "jobs").mkdir()
    if row_is_gone:
        bench.store.delete("wait-1")
    bench.scheduler.start()
    bench.scheduler.drain(0)
    assert (folder.exists(), grave.exists()) == (not row_is_gone, False)


def test_jobs_of_a_higher_priority_run_first(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    bench.submit("succeed-2")
    bench.submit("succeed-3", priority=1)
    bench.scheduler.cancel("wait-1")
    second, third = bench.end_of("succeed-2"), bench.end_of("succeed-3")
    assert third.end_time is not None
    assert second.start_time is not None
    assert third.end_time <= second.start_time


def test_a_drained_job_is_queued_again_and_says_where_it_goes_on(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    bench.scheduler.drain(30)
    job = bench.store.get("wait-1")
    assert (job.state, job.checkpoint_step) == (State.QUEUED, 12)
    assert job.reason == "the server was stopped; goes on from step 12"
    with pytest.raises(ShuttingDown):
        bench.submit("wait-2")


def test_a_job_that_does_not_end_in_time_for_the_drain_is_queued_again_too(bench: Bench) -> None:
    bench.submit("deaf-1")
    bench.training("deaf-1")
    bench.scheduler.drain(0)
    assert bench.store.get("deaf-1").reason == "the server was stopped; goes on from step 11"


def test_jobs_of_a_server_that_died_go_on_under_the_same_name(tmp_path: Path) -> None:
    bench = make(tmp_path)
    for name in ("succeed-1", "wait-2"):
        bench.submit(name)
        bench.store.transition(name, State.STARTING)
    bench.store.append("succeed-1", CheckpointSaved(10, 0))
    bench.store.transition("wait-2", State.CANCELLING)
    bench.scheduler.start()
    assert bench.end_of("succeed-1").state is State.SUCCEEDED
    assert bench.end_of("wait-2").state is State.CANCELLED
    reasons = [e.event.reason for e in bench.store.events("succeed-1", 0) if isinstance(e.event, StateChange)]
    assert "the server died; goes on from step 10" in reasons
    bench.scheduler.drain(0)


def test_a_watcher_sees_every_event_up_to_the_final_one(bench: Bench) -> None:
    bench.submit("wait-1")
    watcher = bench.scheduler.followers.watch("wait-1", 0, lambda: False)
    seen = [next(watcher)]
    bench.training("wait-1")
    bench.scheduler.cancel("wait-1")
    seen += list(watcher)
    assert seen == bench.store.events("wait-1", 0)
    assert list(bench.scheduler.followers.watch("wait-1", 3, lambda: False)) == seen[3:]
    assert list(bench.scheduler.followers.watch("wait-1", 10**6, lambda: False)) == []


def test_a_log_is_followed_until_the_job_is_over(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    log = bench.folder / "jobs" / "wait-1" / "log.txt"
    log.write_bytes(b"one\n")
    assert list(bench.scheduler.followers.tail("wait-1", 1, False, lambda: False)) == [b"ne\n"]
    reader = bench.scheduler.followers.tail("wait-1", 0, True, lambda: False)
    assert next(reader) == b"one\n"
    with log.open("ab") as file:
        file.write(b"two\n")
    assert next(reader) == b"two\n"
    bench.scheduler.cancel("wait-1")
    assert list(reader) == []
    assert bench.store.get("wait-1").state is State.CANCELLED
    with pytest.raises(NotFound):
        next(bench.scheduler.followers.tail("none", 0, True, lambda: False))


def test_too_many_watchers_are_refused_and_those_who_leave_make_room(tmp_path: Path) -> None:
    bench = make(tmp_path, max_watchers=1)
    bench.scheduler.start()
    bench.submit("wait-1")
    first = bench.scheduler.followers.watch("wait-1", 0, lambda: False)
    next(first)
    with pytest.raises(Overloaded):
        next(bench.scheduler.followers.watch("wait-1", 0, lambda: False))
    first.close()  # type: ignore[attr-defined]
    assert next(bench.scheduler.followers.watch("wait-1", 0, lambda: False)) is not None
    bench.scheduler.drain(0)


def test_a_watcher_whose_caller_has_gone_ends(bench: Bench) -> None:
    bench.submit("wait-1")
    bench.training("wait-1")
    gone = threading.Event()
    ended = threading.Event()

    def watch() -> None:
        for _ in bench.scheduler.followers.watch("wait-1", 0, gone.is_set):
            pass
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    gone.set()
    bench.store.wake()
    assert ended.wait(10)


def test_a_silent_job_sends_its_watchers_a_sign_of_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bll_server.jobs.followers.KEEP_ALIVE_S", 0.05)
    bench.submit("wait-1")
    last = bench.training("wait-1").last_event
    assert next(bench.scheduler.followers.watch("wait-1", last, lambda: False)) is None


def test_watchers_are_told_the_last_of_a_job_before_the_drain_ends_them(bench: Bench) -> None:
    bench.submit("wait-1")
    watcher = bench.scheduler.followers.watch("wait-1", bench.training("wait-1").last_event, lambda: False)
    threading.Thread(target=bench.scheduler.drain, args=(30,), daemon=True).start()
    seen: list[JobEvent | None] = []

    def follow() -> None:
        for event in watcher:
            seen.append(event)  # noqa: PERF402 - what came before the error counts

    with pytest.raises(ShuttingDown):
        follow()
    assert seen[-1] is not None
    assert seen[-1].event == StateChange(State.QUEUED, "the server was stopped; goes on from step 12")
