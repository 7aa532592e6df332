"""Jobs that are deleted after their end, and the clock that says when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.config import BlocksConfig, TrainingConfig
from bll.plan import BlockPlan, Plan
from bll_server.errors import NotFound, StaleEtag
from bll_server.jobs.expiry import Expiry, SteadyClock
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

PLAN = Plan(
    config=TrainingConfig(blocks=BlocksConfig(num_blocks=1), epochs=2),
    blocks=(BlockPlan(0, ("dense",), 10, 20, (4,), 16),),
    input_shape=(4,),
    class_names=("a", "b"),
    steps_per_epoch=10,
    dataset_digest="0" * 64,
)
TTL_S = 100.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "bll.db")
    yield store
    store.close()


def ended(store: Store, job_id: str = "one", **metadata: Any) -> float:
    """When the job ended, in seconds since the epoch."""
    store.create(job_id, "", b"", PLAN, metadata=Metadata(**metadata))
    end_time = store.transition(job_id, State.CANCELLED).end_time
    assert end_time is not None
    return end_time.timestamp()


def test_a_job_is_deleted_when_its_time_is_over_and_not_before(store: Store) -> None:
    end_s = ended(store, ttl_after_finish_s=TTL_S)
    ended(store, "kept")
    now = end_s + TTL_S - 1
    expiry = Expiry(store, store.delete, lambda: now)
    expiry.look()
    assert store.get("one").expire_time is not None
    now = end_s + TTL_S + 1
    expiry.look()
    with pytest.raises(NotFound):
        store.get("one")
    assert store.get("kept").expire_time is None


def test_the_time_counts_from_the_last_end_and_follows_what_is_said_of_it(store: Store) -> None:
    end_s = ended(store, ttl_after_finish_s=TTL_S)
    assert store.transition("one", State.QUEUED, "retried by request").expire_time is None
    assert store.expired(end_s + 10 * TTL_S) == []
    again = store.transition("one", State.CANCELLED)
    assert again.end_time is not None
    assert again.expire_time is not None
    assert (again.expire_time - again.end_time).total_seconds() == TTL_S
    longer = store.update("one", {"ttl_after_finish_s": 2 * TTL_S})
    assert longer.expire_time is not None
    assert (longer.expire_time - again.end_time).total_seconds() == 2 * TTL_S
    assert store.update("one", {"ttl_after_finish_s": 0.0}).expire_time is None


def test_a_job_that_is_retried_just_before_its_deletion_stays(store: Store) -> None:
    end_s = ended(store, ttl_after_finish_s=TTL_S)
    refused = []

    def delete(job_id: str, etag: str) -> None:
        store.transition("one", State.QUEUED, "retried by request")
        store.transition("one", State.CANCELLED)  # over again: its state alone would not tell
        try:
            store.delete(job_id, etag)
        except StaleEtag as error:
            refused.append(error)
            raise

    Expiry(store, delete, lambda: end_s + TTL_S + 1).look()
    assert len(refused) == 1
    assert store.get("one").state is State.CANCELLED


def test_one_job_that_cannot_be_deleted_keeps_none_of_the_others(store: Store) -> None:
    end_s = ended(store, ttl_after_finish_s=TTL_S)
    ended(store, "two", ttl_after_finish_s=TTL_S)

    def delete(job_id: str, etag: str) -> None:
        if job_id == "one":
            raise OSError("the disk fails")
        store.delete(job_id, etag)

    Expiry(store, delete, lambda: end_s + 2 * TTL_S).look()
    assert [job.job_id for job in store.page(5, "")[0]] == ["one"]


STEPS = st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), max_size=20)


@given(STEPS)
def test_the_clock_is_never_ahead_of_the_time_that_has_passed(steps: list[tuple[float, float]]) -> None:
    """Each step: so many seconds pass, then the wall clock is set by so many."""
    wall = passed = 0.0
    clock = SteadyClock(lambda: 1e9 + wall, lambda: 50.0 + passed)
    for seconds, jump in steps:
        passed += seconds
        wall += seconds + jump
        assert clock.now() <= 1e9 + passed + 1e-3
        assert clock.now() <= 1e9 + wall


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_after_a_restart_the_clock_is_ahead_by_no_more_than_it_was_set_forward(passed: float, jump: float) -> None:
    restarted = SteadyClock(lambda: 1e9 + passed + jump, lambda: 0.0)
    assert restarted.now() - (1e9 + passed) <= jump + 1e-3


def test_a_closed_expiry_deletes_no_more(store: Store) -> None:
    end_s = ended(store, ttl_after_finish_s=TTL_S)
    expiry = Expiry(store, store.delete, lambda: end_s)
    expiry.start()
    expiry.close()
    assert store.get("one").state is State.CANCELLED
