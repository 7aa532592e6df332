"""Databases of older servers, brought up to date where they lie."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from bll.config import TrainingConfig
from bll.plan import BlockPlan, Plan
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import StateChange, plan_to_json
from bll_server.jobs.schema import SCHEMA
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, ("dense",), 1, 2, (4,), 8),), (4,), ("a", "b"), 10, "0" * 64)

SCHEMA_1 = """
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
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database of schema 1 with two queued jobs."""
    path = tmp_path / "bll.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA_1)
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
    assert shape(old)["version"] == (SCHEMA,)


def test_the_jobs_of_an_old_database_are_all_there_and_can_be_worked_with(old: Path) -> None:
    store = Store(old)
    assert [job.job_id for job in store.queue()] == ["one", "two"]
    job = store.get("one")
    assert (job.plan, job.spec, job.metadata, job.queue_position) == (PLAN, b"spec", Metadata(), 1)
    assert [event.event for event in store.events("one", 0)] == [StateChange(State.QUEUED)]
    assert store.update("two", {"priority": 1, "labels": {"team": "x"}}).queue_position == 1
    again = store.create("", "", b"spec", PLAN, request_id="one", request_digest="d")
    assert again.job_id == "one"
    store.close()
    assert Store(old).get("two").metadata == Metadata("", {"team": "x"}, 1)
