"""Databases of older servers, brought up to date where they lie."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations

from bll.config import TrainingConfig
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
from bll.plan import BlockPlan, Plan
from bll_server.jobs.listing import Listing
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.migrations import NewerSchema
from bll_server.jobs.migrations.versions import schema_7_standing
from bll_server.jobs.records import RunEvent, StateChange, plan_to_json
from bll_server.jobs.schema import metadata, standing
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, ("dense",), 1, 2, (4,), 8),), (4,), ("a", "b"), 10, "0" * 64)

# What servers made before alembic, and told by user_version.
EARLIER = {
    1: """
CREATE TABLE jobs (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL, request_id TEXT,
    request_digest TEXT NOT NULL, model_id TEXT NOT NULL, spec BLOB NOT NULL, "plan" TEXT NOT NULL,
    total_steps INTEGER NOT NULL, total_epochs INTEGER NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,
    failure JSON, progress JSON, validation JSON, test JSON, checkpoint_step INTEGER NOT NULL,
    model_version TEXT NOT NULL, create_time FLOAT NOT NULL, start_time FLOAT, end_time FLOAT,
    last_event INTEGER NOT NULL, UNIQUE (job_id), UNIQUE (request_id));
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE TABLE events (
    job_id TEXT NOT NULL, number INTEGER NOT NULL, time FLOAT NOT NULL, payload TEXT NOT NULL,
    PRIMARY KEY (job_id, number), FOREIGN KEY(job_id) REFERENCES jobs (job_id)) WITHOUT ROWID;
""",
    2: """
ALTER TABLE jobs ADD COLUMN owner TEXT DEFAULT '' NOT NULL;
CREATE INDEX ix_jobs_owner ON jobs (owner);
""",
    3: """
ALTER TABLE jobs ADD COLUMN display_name TEXT DEFAULT '' NOT NULL;
ALTER TABLE jobs ADD COLUMN labels JSON DEFAULT '{}' NOT NULL;
ALTER TABLE jobs ADD COLUMN priority INTEGER DEFAULT '0' NOT NULL;
ALTER TABLE jobs ADD COLUMN revision INTEGER DEFAULT '1' NOT NULL;
ALTER TABLE jobs ADD COLUMN queue_time FLOAT DEFAULT '0' NOT NULL;
UPDATE jobs SET queue_time = create_time;
""",
    4: """
CREATE INDEX ix_jobs_priority ON jobs (priority, sequence);
CREATE INDEX ix_jobs_model_id ON jobs (model_id, sequence);
CREATE INDEX ix_jobs_labels ON jobs (labels);
""",
}


SCORES = Scores(0.9, 0.3, 0.01, 0.1)
EVENTS: tuple[RunEvent, ...] = (
    BlocksPlaced(0, False, (PlacedWorker((0,), 1.0, ()),)),
    *(BlockProgress(0, 0, step, 1.0, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.5) for step in (5, 10)),
    CheckpointSaved(10, 0),
    Evaluation("validation", 0, 10, 100, SCORES, SCORES, (SCORES,), 0.0),
    BlockProgress(0, 0, 15, 1.0, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.5),
    CheckpointSaved(15, 0),
    BlockWaiting(0, 1, False, 30.0, False),
    BlockWaiting(0, 1, False, 31.0, True),
    CheckpointDamaged(15, 10, "truncated"),
    BlockProgress(0, 0, 12, 1.0, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.5),
    RolledBack(10, 0, "killed", 1),
    Evaluation("validation", 1, 20, 100, SCORES, SCORES, (SCORES,), 0.0),
)


@pytest.fixture(params=EARLIER)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A database of an earlier schema with two queued jobs."""
    path = tmp_path / "bll.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(EARLIER[1])
        for name, created in (("one", 10.0), ("two", 20.0)):
            values: dict[str, Any] = {
                "job_id": name, "request_id": name, "request_digest": "d", "model_id": name, "spec": b"spec",
                "plan": plan_to_json(PLAN), "total_steps": 20, "total_epochs": 2, "state": "queued", "reason": "",
                "checkpoint_step": 0, "model_version": "", "create_time": created, "last_event": 1,
            }  # fmt: skip
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO jobs ({', '.join(values)}) VALUES ({marks})", list(values.values()))
            payload = '{"event": "StateChange", "state": "queued", "reason": ""}'
            connection.execute("INSERT INTO events VALUES (?, 1, ?, ?)", [name, created, payload])
        for schema in range(2, request.param + 1):
            connection.executescript(EARLIER[schema])
        if request.param >= 3:
            connection.execute("UPDATE jobs SET labels = '{\"stage\": \"a\"}' WHERE job_id = 'one'")
        connection.execute(f"PRAGMA user_version = {request.param}")
    connection.close()
    return path


def shape(path: Path) -> dict[str, Any]:
    """The version, and every table's columns and indices, whatever their order."""
    with sqlite3.connect(path) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found: dict[str, Any] = {"version": connection.execute("PRAGMA user_version").fetchone()}
        for table in tables:
            found[table] = sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({table})"))
        indices = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        found["indices"] = sorted(indices.fetchall())
    connection.close()
    return found


def test_an_old_database_becomes_what_a_new_one_is(old: Path, tmp_path: Path) -> None:
    Store(old).close()
    Store(tmp_path / "new.db").close()
    assert shape(old) == shape(tmp_path / "new.db")


def test_the_jobs_of_an_old_database_are_all_there_and_can_be_worked_with(old: Path) -> None:
    labels = {"stage": "a"} if shape(old)["version"] >= (3,) else {}
    store = Store(old)
    assert [job.job_id for job in store.queue()] == ["one", "two"]
    job = store.get("one")
    assert (job.plan, job.spec, job.metadata, job.run_s) == (PLAN, b"spec", Metadata("", labels), 0)
    assert [event.event for event in store.events("one", 0)] == [StateChange(State.QUEUED)]
    found, _ = store.page(5, "", listing=Listing("labels.stage=a"))
    assert [job.job_id for job in found] == (["one"] if labels else [])
    store.update("two", {"priority": 1, "labels": {"team": "x"}})
    assert [job.job_id for job in store.queue()] == ["two", "one"]
    again = store.create("", "", b"spec", PLAN, request_id="one", request_digest="d")
    assert again.job_id == "one"
    store.close()
    assert Store(old).get("two").metadata == Metadata("", {"team": "x"}, 1)


@pytest.mark.parametrize("old", [1], indirect=True)
def test_an_upgrade_that_fails_half_way_leaves_an_old_database_as_it_was(old: Path) -> None:
    with sqlite3.connect(old) as connection:
        connection.execute("CREATE INDEX ix_jobs_priority ON events (time)")  # in the way of schema 4
    connection.close()
    before = shape(old)
    with pytest.raises(sa.exc.OperationalError, match="ix_jobs_priority already exists"):
        Store(old)
    assert shape(old) == before


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_tables_that_migrations_make_are_those_that_the_store_knows(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where: Path | sa.URL = tmp_path / "bll.db"
    if kind == "postgres":
        where = sa.make_url(request.getfixturevalue("postgres").database("schema"))
    store = Store(where)
    with store._database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    store.close()


def test_what_holds_of_a_run_is_found_in_the_events_of_an_older_server(tmp_path: Path) -> None:
    store = Store(tmp_path / "bll.db")
    for job_id in ("one", "two"):
        store.create(job_id, "", b"", PLAN)
        store.transition(job_id, State.STARTING)
    for event in EVENTS:
        store.append("one", event)
    store.transition("one", State.QUEUED, "the server died")
    store.append("one", BlockWaiting(0, 1, False, 30.0, False))
    everything = sa.select(standing).order_by(*standing.primary_key)
    with store._database.write() as connection:
        before = connection.execute(everything).all()
        connection.exec_driver_sql("DROP TABLE standing")
        with Operations.context(MigrationContext.configure(connection)):
            schema_7_standing.upgrade()
        assert connection.execute(everything).all() == before
    store.close()
    assert {row.subject for row in before} == {
        "checkpoint", "evaluation validation", "placed", "progress 0", "waiting 0"
    }  # fmt: skip


@pytest.mark.parametrize("change", ["PRAGMA user_version = 999", "UPDATE alembic_version SET version_num = '999'"])
def test_a_database_of_a_newer_server_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "bll.db"
    if "alembic" in change:
        Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(NewerSchema, match=r"newer server \(schema 999"):
        Store(path)
