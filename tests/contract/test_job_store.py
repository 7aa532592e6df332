import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bll.config import BlocksConfig, TrainingConfig
from bll.events import BlockProgress, CheckpointDamaged, CheckpointSaved, Evaluation, Scores
from bll.plan import BlockPlan, Plan
from bll_server.errors import (
    DatabaseUnavailable,
    IllegalState,
    InvalidRequest,
    JobExists,
    NotFound,
    QuotaExceeded,
    RequestIdReused,
    StaleEtag,
    StorageFull,
)
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Failure, Progress, RunEvent, StateChange
from bll_server.jobs.states import ACTIVE, FINAL, REQUESTS, TRANSITIONS, Request, State
from bll_server.jobs.store import Store

PLAN = Plan(
    config=TrainingConfig(blocks=BlocksConfig(num_blocks=2, cuts=(3,)), epochs=2),
    blocks=(
        BlockPlan(0, ("stem", "conv 16"), 100, 2000, (16, 28, 28), 4096),
        BlockPlan(3, ("conv 64",), 50, 1000, (64,), 4096),
    ),
    input_shape=(1, 28, 28),
    class_names=("a", "b"),
    steps_per_epoch=10,
    dataset_digest="0" * 64,
    warnings=("small",),
)
SCORES = Scores(accuracy=0.9, nll_nats=0.3, ece=0.01, brier=0.1)
VALIDATION = Evaluation("validation", 0, 10, 100, SCORES, SCORES, (SCORES, SCORES), 0.02)
PROGRESS = BlockProgress(0, 0, 5, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.01)

PATHS: dict[State, list[State]] = {
    State.QUEUED: [],
    State.STARTING: [State.STARTING],
    State.RUNNING: [State.STARTING, State.RUNNING],
    State.PAUSING: [State.STARTING, State.PAUSING],
    State.PAUSED: [State.PAUSED],
    State.CANCELLING: [State.STARTING, State.CANCELLING],
    State.SUCCEEDED: [State.STARTING, State.RUNNING, State.SUCCEEDED],
    State.FAILED: [State.STARTING, State.FAILED],
    State.CANCELLED: [State.CANCELLED],
}


@pytest.fixture
def store(job_database: Callable[[], Path | sa.URL]) -> Iterator[Store]:
    store = Store(job_database())
    yield store
    store.close()


def queue(store: Store, job_id: str = "one", **more: Any) -> str:
    return store.create(job_id, "", b"spec", PLAN, **more).job_id


def bring(store: Store, job_id: str, state: State) -> None:
    for step in PATHS[state]:
        store.transition(job_id, step)


def test_a_new_job_is_queued_and_reads_back_as_it_was_stored(store: Store) -> None:
    job = store.get(queue(store))
    assert (job.state, job.spec, job.plan, job.model_id, job.last_event) == (State.QUEUED, b"spec", PLAN, "one", 1)
    assert [e.event for e in store.events("one", 0)] == [StateChange(State.QUEUED)]


def test_each_owner_has_jobs_and_request_ids_of_its_own(store: Store) -> None:
    for job_id, owner in (("one", "ann"), ("two", "bob"), ("three", "ann")):
        queue(store, job_id, owner=owner, request_id=f"r-{job_id}")
    assert [job.job_id for job in store.page(5, "", "ann")[0]] == ["three", "one"]
    first, token = store.page(1, "", "ann")
    assert [job.job_id for job in first + store.page(1, token, "ann")[0]] == ["three", "one"]
    assert [store.owner("one"), store.get("two").owner] == ["ann", "bob"]
    assert store.replayed("r-one", "", "bob") is None
    assert queue(store, "four", owner="bob", request_id="r-one") == "four"
    with pytest.raises(NotFound, match="five"):
        store.owner("five")


def test_an_owner_with_too_many_jobs_that_are_not_over_is_told_how_many(store: Store) -> None:
    for job_id in ("one", "two"):
        queue(store, job_id, owner="ann", most_unfinished=2)
    with pytest.raises(QuotaExceeded, match="ann may have 2 jobs that are not over, and has 2"):
        queue(store, "three", owner="ann", most_unfinished=2)
    assert queue(store, "three", owner="bob", most_unfinished=2) == "three"
    store.transition("one", State.CANCELLED)
    assert queue(store, "four", owner="ann", most_unfinished=2) == "four"
    with pytest.raises(QuotaExceeded, match="ann may have 2"):
        store.transition("one", State.QUEUED, "retried by request", most_unfinished=2)
    assert store.transition("one", State.QUEUED, most_unfinished=3).state is State.QUEUED


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_every_transition_outside_the_table_is_refused_and_changes_nothing(
    store: Store, before: State, after: State
) -> None:
    bring(store, queue(store), before)
    events = len(store.events("one", 0))
    if after in TRANSITIONS[before]:
        assert store.transition("one", after).state is after
        assert store.events("one", events)[0].event == StateChange(after)
    else:
        with pytest.raises(IllegalState, match=before.upper()):
            store.transition("one", after)
        assert store.get("one").state is before
        assert len(store.events("one", 0)) == events


def test_no_final_state_is_active_and_only_a_retry_leaves_one() -> None:
    assert not FINAL & ACTIVE
    ways_out = {(before, after) for before in FINAL for after in TRANSITIONS[before]}
    assert ways_out == set(REQUESTS[Request.RETRY].items())


@pytest.mark.parametrize("request_", Request)
def test_what_a_request_leads_to_is_a_legal_transition(request_: Request) -> None:
    for before, after in REQUESTS[request_].items():
        assert after is before or after in TRANSITIONS[before]


def test_a_transition_from_another_state_than_the_one_looked_at_is_refused(store: Store) -> None:
    bring(store, queue(store), State.RUNNING)
    with pytest.raises(IllegalState, match="RUNNING"):
        store.transition("one", State.QUEUED, before=State.PAUSED)


def test_a_retried_job_is_no_longer_over_and_its_events_go_on_numbering(store: Store) -> None:
    bring(store, queue(store), State.STARTING)
    failed = store.transition("one", State.FAILED, "no memory", failure=Failure("BlockFailed", "no memory"))
    job = store.transition("one", State.QUEUED, "retried by request")
    assert (job.failure, job.end_time, job.reason) == (None, None, "retried by request")
    assert (job.start_time, job.last_event) == (failed.start_time, failed.last_event + 1)


def test_events_are_numbered_without_gaps_when_many_threads_append(store: Store) -> None:
    queue(store)

    def append() -> None:
        for step in range(10):
            store.append("one", CheckpointSaved(step, epoch=0))

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.number for e in store.events("one", 0)] == list(range(1, 42))
    assert store.get("one").last_event == 41


def test_events_after_a_number_are_those_that_a_watcher_has_not_seen(store: Store) -> None:
    queue(store)
    for event in (PROGRESS, VALIDATION, CheckpointSaved(step=10, epoch=0)):
        store.append("one", event)
    assert [e.event for e in store.events("one", 2)] == [VALIDATION, CheckpointSaved(step=10, epoch=0)]
    assert [e.number for e in store.events("one", 1, limit=2)] == [2, 3]
    assert store.events("one", 4) == []


def test_what_an_event_says_of_the_job_is_in_the_job(store: Store) -> None:
    queue(store)
    progress = Progress(step=5, epoch=0, samples_per_s=1000.0, remaining_s=2.5)
    store.append("one", PROGRESS, progress)
    store.append("one", VALIDATION)
    store.append("one", replace(VALIDATION, split="test"))
    store.append("one", CheckpointSaved(step=10, epoch=0))
    job = store.get("one")
    assert (job.progress, job.validation, job.checkpoint_step) == (progress, VALIDATION, 10)
    assert job.test == replace(VALIDATION, split="test")


def test_a_failed_job_keeps_its_failure_and_its_end(store: Store) -> None:
    bring(store, queue(store), State.RUNNING)
    failure = Failure("BlockFailed", "block 2: out of memory", block=2)
    job = store.transition("one", State.FAILED, "out of memory", failure=failure)
    assert (job.failure, job.reason) == (failure, "out of memory")
    assert job.end_time is not None
    assert job.start_time is not None
    assert job.create_time <= job.start_time <= job.end_time


def test_the_same_request_returns_the_same_job_and_another_body_is_refused(store: Store) -> None:
    first = store.create("", "", b"spec", PLAN, request_id="r", request_digest="d")
    assert store.create("", "", b"spec", PLAN, request_id="r", request_digest="d") == first
    assert store.replayed("r", "d") == first
    assert store.replayed("other", "d") is None
    with pytest.raises(RequestIdReused, match=first.job_id):
        store.create("", "", b"spec", PLAN, request_id="r", request_digest="e")
    with pytest.raises(RequestIdReused):
        store.replayed("r", "e")


def test_a_taken_job_id_is_refused(store: Store) -> None:
    queue(store)
    with pytest.raises(JobExists, match="'one'"):
        queue(store)


def test_an_unknown_job_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="jobs/none"):
        store.get("none")


def test_pages_give_every_job_once_newest_first_while_jobs_are_added(store: Store) -> None:
    names = [queue(store, f"job-{i}") for i in range(5)]
    first, token = store.page(2, "")
    queue(store, "late")
    second, token = store.page(2, token)
    third, last = store.page(2, token)
    assert [j.job_id for j in (*first, *second, *third)] == names[::-1]
    assert last == ""


def test_queued_jobs_come_out_oldest_first(store: Store) -> None:
    for name in ("one", "two", "three"):
        queue(store, name)
    store.transition("two", State.STARTING)
    assert [j.job_id for j in store.in_states(State.QUEUED)] == ["one", "three"]
    assert store.counts()[State.QUEUED] == 2
    assert store.counts()[State.FAILED] == 0


@pytest.mark.parametrize("job_database", ["postgres"], indirect=True)
def test_a_full_disk_of_postgres_is_named_and_leaves_the_job_as_it_was(store: Store) -> None:
    queue(store)
    with store._database.write() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = 'disk_full'; END$$"
        )
        connection.exec_driver_sql("CREATE TRIGGER full_disk BEFORE INSERT ON jobs EXECUTE FUNCTION no_room()")
    with pytest.raises(StorageFull, match="no room"):
        queue(store, "two")
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP FUNCTION no_room CASCADE")
    assert [j.job_id for j in store.page(10, "")[0]] == ["one"]
    assert queue(store, "two") == "two"


@pytest.mark.parametrize("job_database", ["sqlite"], indirect=True)
def test_a_full_disk_is_named_and_leaves_the_job_as_it_was(store: Store) -> None:
    queue(store)
    with store._database.read() as connection:  # the limit holds for one connection, and this one is taken next
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="full"):
        store.create("big", "", b"x" * 100_000, PLAN)
    assert [j.job_id for j in store.page(10, "")[0]] == ["one"]
    assert store.transition("one", State.CANCELLED).state is State.CANCELLED


def test_everything_is_there_after_the_database_is_opened_again(job_database: Callable[[], Path | sa.URL]) -> None:
    where = job_database()
    store = Store(where)
    queue(store)
    store.append("one", PROGRESS)
    before = store.get("one"), store.events("one", 0)
    store.close()
    again = Store(where)
    assert (again.get("one"), again.events("one", 0)) == before
    again.close()


def test_events_of_many_threads_are_numbered_without_gaps(store: Store) -> None:
    names = [queue(store, f"job-{i}") for i in range(4)]

    def tell(name: str) -> None:
        for step in range(10):
            store.append(name, replace(PROGRESS, step=step))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(tell, names * 2))
    for name in names:
        assert [e.number for e in store.events(name, 0)] == list(range(1, 22))


def test_an_event_whose_commit_nobody_answered_is_told_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(store)
    write = store._database.write

    @contextmanager
    def unanswered() -> Iterator[sa.Connection]:
        with write() as connection:
            yield connection
        raise DatabaseUnavailable("the answer was lost")

    for event in (PROGRESS, replace(PROGRESS, step=6)):
        with monkeypatch.context() as patch:
            patch.setattr(store._database, "write", unanswered)
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable):
                    store.append("one", event)
        store.append("one", event)
    assert [e.event for e in store.events("one", 1)] == [PROGRESS, replace(PROGRESS, step=6)]
    store.append("one", PROGRESS)  # told again on purpose
    assert store.get("one").last_event == 4


def test_numbers_and_texts_that_databases_find_hard_are_kept(store: Store) -> None:
    queue(store, metadata=Metadata("\N{SNOWMAN} '; --", {}, -(2**31)))
    diverged = replace(VALIDATION, mixture=replace(SCORES, nll_nats=math.inf), step=2**40)
    store.append("one", diverged)
    assert store.get("one").validation == diverged
    store.append("one", replace(VALIDATION, mixture=replace(SCORES, nll_nats=math.nan)))
    validation = store.get("one").validation
    assert validation is not None
    assert math.isnan(validation.mixture.nll_nats)
    bring(store, "one", State.RUNNING)
    failure = Failure("BlockFailed", "before\0after \udcff")
    assert store.transition("one", State.FAILED, "before\0after", failure=failure).failure == failure


def test_waiting_ends_with_the_next_event(store: Store) -> None:
    queue(store)
    woken = threading.Event()

    def wait() -> None:
        store.wait("one", 1, 30.0, lambda: False)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    store.append("one", PROGRESS)
    assert woken.wait(10)
    thread.join()


@pytest.mark.parametrize("event", [PROGRESS, VALIDATION, CheckpointSaved(1, 0)])
def test_events_of_every_kind_read_back_as_they_were(store: Store, event: RunEvent) -> None:
    queue(store)
    store.append("one", event)
    assert store.events("one", 1)[0].event == event


def test_a_damaged_checkpoint_is_the_newest_no_more(store: Store) -> None:
    queue(store)
    store.append("one", CheckpointSaved(step=20, epoch=0))
    store.append("one", CheckpointDamaged(20, 10, "block-1.safetensors: truncated"))
    assert store.get("one").checkpoint_step == 10


def test_the_queue_is_in_order_of_priority_and_then_of_arrival(store: Store) -> None:
    for name, priority in (("one", 0), ("two", 5), ("three", 0), ("four", 5), ("five", -1)):
        queue(store, name, metadata=Metadata(priority=priority))
    order = [job.job_id for job in store.queue()]
    assert order == ["two", "four", "one", "three", "five"]
    store.update("three", {"priority": 9})
    assert [job.job_id for job in store.queue()] == ["three", "two", "four", "one", "five"]
    store.transition("three", State.STARTING)
    assert [job.job_id for job in store.queue()] == ["two", "four", "one", "five"]


def test_running_time_is_what_was_told_last(store: Store) -> None:
    queue(store, metadata=Metadata(preemptible=True, max_run_duration_s=60.0, ttl_after_finish_s=1.5))
    assert (store.get("one").run_s, store.get("one").is_over_time) == (0.0, False)
    store.transition("one", State.STARTING)
    store.append("one", CheckpointSaved(step=10, epoch=0), run_s=12.5)
    store.append("one", CheckpointSaved(step=20, epoch=0))
    assert store.transition("one", State.QUEUED, "the server died").run_s == 12.5
    store.transition("one", State.STARTING)
    job = store.transition("one", State.FAILED, run_s=60.5)
    assert (job.run_s, job.is_over_time) == (60.5, True)
    assert job.metadata == Metadata(preemptible=True, max_run_duration_s=60.0, ttl_after_finish_s=1.5)


def test_jobs_expire_in_the_order_in_which_their_time_comes(store: Store) -> None:
    for name, ttl_s in (("late", 300.0), ("soon", 100.0), ("kept", 0.0), ("waits", 100.0)):
        queue(store, name, metadata=Metadata(ttl_after_finish_s=ttl_s))
        if name != "waits":
            store.transition(name, State.CANCELLED)
    end_time = store.get("soon").end_time
    assert end_time is not None
    now = end_time.timestamp()
    assert store.expired(now + 99) == []
    assert [job.job_id for job in store.expired(now + 1000)] == ["soon", "late"]
    assert [job.job_id for job in store.expired(now + 1000, limit=1)] == ["soon"]


def test_who_is_resumed_joins_the_end_of_the_queue_and_whom_the_server_put_back_keeps_its_place(store: Store) -> None:
    for name in ("one", "two", "three"):
        queue(store, name)
    store.transition("one", State.PAUSED)
    store.transition("one", State.QUEUED)
    store.transition("two", State.STARTING)
    store.transition("two", State.QUEUED, "the server died")
    assert [job.job_id for job in store.queue()] == ["two", "three", "one"]


def test_an_update_replaces_what_it_names_and_nothing_else(store: Store) -> None:
    queue(store, metadata=Metadata("First", {"team": "x"}, 1))
    assert store.update("one", {"labels": {"stage": "test"}}).metadata == Metadata("First", {"stage": "test"}, 1)
    assert store.update("one", {"display_name": "", "priority": 2}).metadata == Metadata("", {"stage": "test"}, 2)
    with pytest.raises(NotFound):
        store.update("none", {"priority": 2})


def test_an_etag_holds_through_progress_and_not_through_a_change(store: Store) -> None:
    etag = store.get(queue(store)).etag
    store.append("one", PROGRESS, Progress(5, 0, 1000.0, None))
    updated = store.update("one", {"priority": 1}, etag)
    with pytest.raises(StaleEtag, match="has changed"):
        store.update("one", {"priority": 2}, etag)
    store.transition("one", State.PAUSED)
    with pytest.raises(StaleEtag):
        store.delete("one", updated.etag)
    assert store.get("one").metadata.priority == 1


@pytest.mark.parametrize("state", State)
def test_only_a_job_that_is_over_or_paused_can_be_deleted(store: Store, state: State) -> None:
    bring(store, queue(store), state)
    queue(store, "two")
    if state in FINAL | {State.PAUSED}:
        store.delete("one")
        with pytest.raises(NotFound):
            store.get("one")
        assert store.events("one", 0) == []
        assert store.get(queue(store)).last_event == 1  # the name is free again
    else:
        with pytest.raises(IllegalState, match=f"{state.upper()}; jobs that are PAUSED, SUCCEEDED, FAILED, CANCELLED"):
            store.delete("one")
    assert len(store.events("two", 0)) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"display_name": "x" * 201}, "display_name: must have at most 200"),
        ({"display_name": "a\0b"}, "display_name: must not have the character 0"),
        ({"labels": {"Team": "x"}}, "labels: a key must match"),
        ({"labels": {"team": "a b"}}, "the value of 'team' must match"),
        ({"labels": {f"k{i}": "" for i in range(65)}}, "must be at most 64, got 65"),
    ],
)
def test_metadata_that_breaks_a_rule_is_refused_by_field(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        Metadata(**fields)
