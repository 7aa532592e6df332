"""Who gets the threads of a server, for how long, and who gives them back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bll.events import CheckpointSaved
from bll_server.errors import IllegalState
from bll_server.jobs.records import DEADLINE, StateChange
from bll_server.jobs.states import State

from .bench import Bench, make


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = make(tmp_path, jobs=3, threads=4, cancel_grace_s=0.2, pause_grace_s=0.2, owner_jobs=2)
    bench.scheduler.start()
    yield bench
    bench.scheduler.drain(0)
    bench.store.close()


def test_a_job_starts_when_all_its_threads_are_free_and_those_behind_it_wait(bench: Bench) -> None:
    bench.submit("wait-1", threads=2)
    bench.training("wait-1")
    bench.submit("wait-2", threads=4)
    bench.submit("wait-3", threads=1)
    assert bench.standing("wait-2") == (1, "waits for 4 of 4 threads (2 free)")
    assert bench.standing("wait-3") == (2, "waits behind jobs/wait-2")
    events = bench.store.get("wait-2").last_event
    bench.scheduler.cancel("wait-1")
    bench.training("wait-2")
    assert bench.standing("wait-3") == (1, "waits for 1 of 4 threads (0 free)")
    assert bench.store.events("wait-2", events)[0].event == StateChange(State.STARTING)  # no event told of the wait
    bench.scheduler.cancel("wait-2")
    bench.training("wait-3")


def test_a_preemptible_job_gives_way_keeps_its_place_and_goes_on_by_itself(bench: Bench) -> None:
    bench.submit("wait-low", threads=4, preemptible=True)
    bench.training("wait-low")
    bench.submit("wait-later", threads=4)
    bench.submit("wait-high", threads=3, priority=1)
    bench.training("wait-high")
    low = bench.store.get("wait-low")
    assert low.state is State.QUEUED
    assert low.reason == "gave way to jobs/wait-high, which has a higher priority; goes on from step 12"
    assert bench.standing("wait-low") == (1, "waits for 4 of 4 threads (1 free)")
    assert bench.standing("wait-later") == (2, "waits behind jobs/wait-low")
    bench.scheduler.cancel("wait-high")
    bench.training("wait-low")
    assert State.PAUSED not in bench.states("wait-low")


def test_a_job_that_does_not_allow_it_or_is_of_the_same_priority_does_not_give_way(bench: Bench) -> None:
    bench.submit("wait-firm", threads=2)
    bench.submit("wait-equal", threads=2, priority=1, preemptible=True)
    bench.training("wait-firm")
    bench.training("wait-equal")
    bench.submit("wait-high", threads=2, priority=1)
    assert bench.standing("wait-high") == (1, "waits for 2 of 4 threads (0 free)")
    assert bench.scheduler.update("wait-high", {"priority": 2}).state is State.QUEUED
    bench.training("wait-high")
    assert bench.store.get("wait-equal").state is State.QUEUED
    assert bench.store.get("wait-firm").state is State.RUNNING


def test_a_job_that_does_not_stop_for_another_goes_on_and_the_other_is_told_and_waits(bench: Bench) -> None:
    bench.submit("stubborn-low", threads=4, preemptible=True)
    bench.training("stubborn-low")
    bench.submit("wait-high", threads=1, priority=1)
    assert bench.standing("wait-high") == (1, "waits for 1 of 4 threads (0 free); jobs/stubborn-low is stopping")
    bench.heard("stubborn-low")
    assert bench.standing("stubborn-low") == (0, "gives way to jobs/wait-high at its next marker")
    assert bench.store.get("stubborn-low").state is State.RUNNING
    bench.scheduler.cancel("stubborn-low")
    bench.training("wait-high")


def test_a_job_that_is_paused_by_request_while_it_gives_way_is_paused(bench: Bench) -> None:
    bench.submit("stubborn-low", threads=4, preemptible=True)
    bench.training("stubborn-low")
    bench.submit("wait-high", threads=1, priority=1)
    bench.heard("stubborn-low")
    bench.scheduler.pause("stubborn-low")
    paused = bench.until("stubborn-low", lambda job: job.state is State.PAUSED)
    assert "by request" in paused.reason
    bench.training("wait-high")
    assert bench.store.get("stubborn-low").state is State.PAUSED


def test_a_pause_that_takes_too_long_ends_at_the_newest_checkpoint(bench: Bench) -> None:
    bench.submit("deaf-1")
    bench.training("deaf-1")
    assert bench.scheduler.pause("deaf-1").state is State.PAUSING
    job = bench.until("deaf-1", lambda job: job.state is State.PAUSED)
    killed = "paused by request, and killed since it had not stopped in time; goes on from step 11"
    assert (job.reason, job.failure, job.checkpoint_step) == (killed, None, 11)


def test_a_job_that_has_run_for_as_long_as_it_may_fails_and_a_longer_time_lets_it_go_on(bench: Bench) -> None:
    bench.submit("wait-1", max_run_duration_s=1.0)
    job = bench.end_of("wait-1")
    assert job.state is State.FAILED
    assert job.failure is not None
    assert job.failure.kind == DEADLINE
    longer = "with a longer one, a retry goes on from step 12"
    assert job.reason == f"DEADLINE: has run for 1 s, its max_run_duration; {longer}"
    assert job.run_s >= 1
    with pytest.raises(IllegalState, match="has run for all of its max_run_duration, 1 s; give it a longer one first"):
        bench.scheduler.retry("wait-1")
    bench.scheduler.update("wait-1", {"max_run_duration_s": 1000.0})
    assert bench.scheduler.retry("wait-1").reason == "retried by request; goes on from step 12"
    bench.training("wait-1")


def test_a_job_whose_time_is_over_is_killed_if_it_does_not_stop(bench: Bench) -> None:
    bench.submit("deaf-1", max_run_duration_s=1.0)
    job = bench.end_of("deaf-1")
    assert (job.state, job.checkpoint_step) == (State.FAILED, 11)
    assert job.reason.startswith("DEADLINE")


def test_a_running_job_can_be_given_less_time(bench: Bench) -> None:
    bench.submit("wait-1", max_run_duration_s=1000.0)
    bench.training("wait-1")
    bench.scheduler.update("wait-1", {"max_run_duration_s": 1.0})
    assert bench.end_of("wait-1").reason.startswith("DEADLINE")


def test_running_time_survives_the_server_and_queueing_does_not_count(tmp_path: Path) -> None:
    bench = make(tmp_path)
    bench.submit("wait-1", max_run_duration_s=60.0)
    bench.store.transition("wait-1", State.STARTING)
    bench.store.append("wait-1", CheckpointSaved(10, 0), run_s=61.0)
    bench.submit("succeed-2", max_run_duration_s=60.0)
    bench.scheduler.start()
    assert bench.end_of("wait-1").reason.startswith("DEADLINE: has run for 60 s")
    assert bench.store.get("wait-1").run_s == 61.0
    assert 0 < bench.end_of("succeed-2").run_s < 60
    bench.scheduler.drain(0)


def test_an_owner_runs_no_more_than_its_quota_and_others_pass(bench: Bench) -> None:
    for name in ("wait-1", "wait-2", "wait-3"):
        bench.submit(name, threads=1, owner="ann")
    bench.submit("wait-4", threads=1, owner="bob")
    for name in ("wait-1", "wait-2", "wait-4"):
        bench.training(name)
    assert bench.standing("wait-3") == (1, "waits for a job of ann to end: 2 run, of 2 that may")
    bench.scheduler.cancel("wait-1")
    bench.training("wait-3")


def test_a_job_that_a_smaller_server_finds_waits_and_holds_nobody_back(bench: Bench) -> None:
    bench.submit("wait-1", threads=8, priority=5)
    bench.submit("succeed-2", threads=1)
    assert bench.end_of("succeed-2").state is State.SUCCEEDED
    why = "cannot run on this server as it is: needs 8 threads, and a job may have 4 here"
    assert bench.standing("wait-1") == (1, why)


def test_a_job_that_was_giving_way_when_the_server_stopped_or_died_is_queued_again(tmp_path: Path) -> None:
    bench = make(tmp_path)
    bench.scheduler.start()
    bench.submit("stubborn-low", preemptible=True)
    bench.training("stubborn-low")
    bench.submit("wait-high", priority=1)
    bench.heard("stubborn-low")
    bench.scheduler.drain(0)
    assert bench.store.get("stubborn-low").reason == "the server was stopped; goes on from step 12"
    bench.store.close()
    again = make(tmp_path)
    again.scheduler.start()
    again.training("wait-high")
    assert again.store.get("stubborn-low").state is State.QUEUED
    again.scheduler.drain(0)
    again.store.close()
