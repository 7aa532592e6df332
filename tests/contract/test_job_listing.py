"""Lists of jobs: what is in them, in which order, and that pages tell each job once."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from bll.config import TrainingConfig
from bll.plan import BlockPlan, Plan
from bll_server.errors import InvalidRequest
from bll_server.jobs import rows
from bll_server.jobs.listing import Listing
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, ("dense",), 1, 2, (4,), 8),), (4,), ("a", "b"), 10, "0" * 64)

JOBS: tuple[tuple[str, str, dict[str, str], int], ...] = (
    ("j0", "digits", {"team": "x"}, 1),
    ("j1", "shapes", {"team": "y", "stage": "a"}, 0),
    ("j2", "digits", {"team": "x", "stage": "a"}, 0),
    ("j3", "shapes", {}, 2),
    ("j4", "digits", {"team": "y"}, 1),
)


@pytest.fixture(scope="module")
def store(job_database: Callable[[], Path | sa.URL]) -> Iterator[Store]:
    store = Store(job_database())
    for job_id, model_id, labels, priority in JOBS:
        owner = "ann" if job_id < "j3" else "bob"
        store.create(job_id, model_id, b"", PLAN, owner=owner, metadata=Metadata("", labels, priority))
    store.transition("j1", State.PAUSED)
    store.transition("j2", State.CANCELLED)
    yield store
    store.close()


def listed(store: Store, filter: str = "", order_by: str = "", size: int = 2, owner: str | None = None) -> list[str]:
    """The ids in all pages."""
    listing, token, found = Listing(filter, order_by), "", []
    while True:
        page, token = store.page(size, token, owner, listing)
        found += [job.job_id for job in page]
        if not token:
            return found


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("", ["j4", "j3", "j2", "j1", "j0"]),
        ("state=PAUSED", ["j1"]),
        ("state=paused,CANCELLED", ["j2", "j1"]),
        ("model_id=digits", ["j4", "j2", "j0"]),
        ("labels.team=x", ["j2", "j0"]),
        ("labels.team=x labels.stage=a", ["j2"]),
        ("labels.team=y,x state=QUEUED", ["j4", "j0"]),
        ("  labels.team=z ", []),
        ("labels.stage=", []),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_filter_keeps_the_jobs_for_which_all_its_terms_hold(
    store: Store, filter: str, expected: list[str], size: int
) -> None:
    assert listed(store, filter, size=size) == expected


@pytest.mark.parametrize(
    ("order_by", "expected"),
    [
        ("create_time", ["j0", "j1", "j2", "j3", "j4"]),
        ("create_time desc", ["j4", "j3", "j2", "j1", "j0"]),
        ("priority", ["j1", "j2", "j0", "j4", "j3"]),
        ("priority desc", ["j3", "j4", "j0", "j2", "j1"]),
        ("model_id", ["j0", "j2", "j4", "j1", "j3"]),
        ("model_id desc", ["j3", "j1", "j4", "j2", "j0"]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pages_tell_each_job_once_in_the_order_asked_for(
    store: Store, order_by: str, expected: list[str], size: int
) -> None:
    assert listed(store, order_by=order_by, size=size) == expected


def test_a_list_of_one_owner_has_no_job_of_another(store: Store) -> None:
    assert listed(store, "state=QUEUED", size=1, owner="bob") == ["j4", "j3"]


@pytest.mark.parametrize(
    ("filter", "words"),
    [
        ("status=RUNNING", "state, model_id, study and labels.KEY, got 'status'"),
        ("labels.Team=x", "got 'labels.Team'"),
        ("state=ASLEEP", "state must be one of QUEUED, .*got 'ASLEEP'"),
        ("state=RUNNING or", "got 'or'"),
        ("x" * 1001, "at most 1000 characters, got 1001"),
        ("model_id=a\0b", "must not have the character 0"),
    ],
)
def test_a_filter_that_cannot_be_read_is_refused_with_what_is_wrong(filter: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^filter: .*{words}"):
        Listing(filter)


@pytest.mark.parametrize("order_by", ["state", "priority up", "priority, create_time"])
def test_an_order_that_cannot_be_read_is_refused(order_by: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^order_by: must be one of create_time, priority, model_id"):
        Listing("", order_by)


def test_a_page_token_of_another_list_is_refused(store: Store) -> None:
    _, token = store.page(1, "", None, Listing("state=QUEUED", "priority"))
    for other in (Listing("state=QUEUED"), Listing("", "priority"), Listing("state=QUEUED", "priority desc")):
        with pytest.raises(InvalidRequest, match=r"page_token: .*same filter and order_by"):
            store.page(1, token, None, other)


@given(st.one_of(st.text(min_size=1, max_size=60), st.sampled_from(["W10", "W251bGxd", "WzFd", "W" * 3000])))
def test_a_page_token_that_was_not_made_here_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="page_token"):
        Listing()._key(token)


FILTERS = [
    " ".join(terms)
    for terms in itertools.product(
        ("", "state=QUEUED", "state=QUEUED,RUNNING"), ("", "model_id=digits"), ("", "labels.a=b")
    )
]
ORDERS = [f"{field}{way}" for field in ("create_time", "priority", "model_id") for way in ("", " desc")]


@pytest.mark.parametrize("job_database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("owner", [None, "ann"])
@pytest.mark.parametrize("order_by", ORDERS)
def test_a_list_reads_the_row_of_no_job_that_is_not_in_it(store: Store, order_by: str, owner: str | None) -> None:
    for terms in FILTERS:
        listing = Listing(terms, order_by)
        with store._database.read() as connection:
            row = connection.execute(listing.page(rows.SUMMARY, 1, "")).first()
            plans = [_plan(connection, listing.page(rows.SUMMARY, 51, "", owner))]
            if row:
                plans.append(_plan(connection, listing.page(rows.SUMMARY, 51, listing.token(row), owner)))
        for plan in plans:
            whole = [step for step in plan if " jobs" in step and "COVERING INDEX" not in step]
            # The page itself is read by its keys; where nothing is asked of a job, its key is all that is looked at.
            if terms.strip() in ("", "labels.a=b") and not owner:
                whole = [step for step in whole if step != "SCAN jobs"]
            assert all("PRIMARY KEY" in step for step in whole), plan


def _plan(connection: sa.Connection, query: sa.Select[Any]) -> list[str]:
    text = query.compile(connection.engine, compile_kwargs={"literal_binds": True})
    return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
