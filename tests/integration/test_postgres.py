"""Jobs in PostgreSQL: one server at a time, and what happens while the database is away."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from grpc_status import rpc_status
from pydantic import SecretStr

from benchmarks.postgres import Cluster
from bll.config import BlocksConfig, TrainingConfig
from bll.events import BlockProgress
from bll.plan import BlockPlan, Plan
from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import CannotStart, Server
from bll_server.errors import DatabaseUnavailable, ShuttingDown
from bll_server.jobs import insistence
from bll_server.jobs import postgres as jobs_in_postgres
from bll_server.jobs.capacity import Capacity
from bll_server.jobs.database import CannotOpen
from bll_server.jobs.scheduler import Scheduler
from bll_server.jobs.states import State
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics
from bll_server.settings import Settings

PLAN = Plan(
    TrainingConfig(blocks=BlocksConfig(num_blocks=2, cuts=(3,)), epochs=2),
    (BlockPlan(0, ("stem",), 100, 2000, (16, 28, 28), 4096), BlockPlan(3, ("conv",), 50, 1000, (64,), 4096)),
    (1, 28, 28),
    ("a", "b"),
    10,
    "0" * 64,
)

# Tells that it trains, waits until the pipe `gate` is opened, and then tells all that it has to tell at once.
RUNNER = """
import json, pathlib, sys
from bll.events import BlockProgress, RunEnded, to_json
folder = pathlib.Path(sys.argv[1])
def tell(text): print(text, flush=True)
tell(json.dumps({"event": "Started"}))
(folder.parent.parent / "gate").read_text()
for step in range(1, 51):
    tell(to_json(BlockProgress(0, 0, step, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.0)))
(folder / "staging").mkdir()
tell(to_json(RunEnded(20, True)))
tell(json.dumps({"event": "Exported"}))
"""

_names = (f"server_{number}" for number in itertools.count())


@pytest.fixture
def url(postgres: Cluster, monkeypatch: pytest.MonkeyPatch) -> sa.URL:
    """A new database, whose servers do not wait long for their locks."""
    monkeypatch.setitem(jobs_in_postgres._SESSION, "lock_timeout", 200)
    monkeypatch.setattr(insistence, "RETRY_S", 0.05)
    return sa.make_url(postgres.database(next(_names)))


@pytest.fixture
def store(url: sa.URL) -> Iterator[Store]:
    store = Store(url)
    yield store
    store.close()


def cut_connections(url: sa.URL) -> None:
    """End everyone's connections to the database, and return when they have ended."""
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    engine.dispose()


def settings(folder: Path, url: sa.URL) -> Settings:
    return Settings(
        port=0, metrics_port=0, data_dir=folder, drain_s=5, database_url=SecretStr(url.render_as_string(False))
    )


def test_a_second_server_on_the_database_is_refused_until_the_first_has_ended(url: sa.URL, tmp_path: Path) -> None:
    first = Server(settings(tmp_path / "first", url))
    with pytest.raises(CannotStart, match="the job database is in use by another server"):
        Server(settings(tmp_path / "second", url))
    first.stop()
    Server(settings(tmp_path / "second", url)).stop()


def test_a_second_server_on_the_data_directory_is_refused(url: sa.URL, postgres: Cluster, tmp_path: Path) -> None:
    first = Server(settings(tmp_path, url))
    with pytest.raises(CannotStart, match=r"data directory .* is in use by another server"):
        Server(settings(tmp_path, sa.make_url(postgres.database(next(_names)))))
    first.stop()


def test_a_server_whose_connections_were_cut_goes_on(url: sa.URL, store: Store) -> None:
    store.create("one", "", b"", PLAN)
    cut_connections(url)
    assert store.get("one").state is State.QUEUED
    assert store.transition("one", State.PAUSED).state is State.PAUSED
    with pytest.raises(CannotOpen):  # it holds the lock again
        Store(url)


def test_a_server_whose_place_was_taken_writes_no_more_and_is_told_so(
    url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_in_postgres, "_LOOK_EVERY_S", 0.05)
    told = threading.Event()
    first = Store(url, told.set)
    first.create("one", "", b"", PLAN)
    with first._database._writing:  # too busy to notice
        cut_connections(url)
        second = Store(url)
    assert told.wait(30)
    with pytest.raises(ShuttingDown, match="another server has taken over the job database"):
        first.create("two", "", b"", PLAN)
    assert second.create("two", "", b"", PLAN).job_id == "two"
    second.close()
    with pytest.raises(ShuttingDown):  # not even when the other has gone again: its jobs are not as they were
        first.transition("one", State.PAUSED)
    first.close()


def test_a_server_process_whose_place_was_taken_ends_with_a_status(url: sa.URL, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bll_server", f"--data-dir={tmp_path}", "--port=0", "--metrics-port=0"]
    variables = os.environ | {"BLL_DATABASE_URL": url.render_as_string(False)}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("bll: serving on")
        second = None
        while not second:
            cut_connections(url)
            with suppress(CannotOpen):  # where the first was quicker
                second = Store(url)
        _, told = process.communicate(timeout=60)
    second.close()
    assert process.returncode == 1
    assert "another server has taken over the job database" in told


def test_what_runs_while_the_database_is_away_is_written_once_it_is_back(
    store: Store, postgres: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "runner.py").write_text(RUNNER)
    os.mkfifo(tmp_path / "gate")
    scheduler = Scheduler(
        store,
        lambda model, staging, job: f"models/{model}/versions/1",
        Metrics(),
        tmp_path,
        [sys.executable, str(tmp_path / "runner.py")],
        capacity=Capacity(jobs=1, threads=2),
        max_watchers=1,
        cancel_grace_s=5,
        pause_grace_s=5,
    )
    scheduler.start()
    scheduler.submit("one", "", b"", PLAN)
    while store.get("one").state is not State.RUNNING:
        store.wait("one", store.last_event("one"), 30, lambda: False)
    postgres.kill()
    try:
        (tmp_path / "gate").write_text("")
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            store.get("one")
        with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
            scheduler.submit("two", "", b"", PLAN)
    finally:
        postgres.start()
    while (job := store.get("one")).state is State.RUNNING:
        store.wait("one", job.last_event, 30, lambda: False)
    assert job.state is State.SUCCEEDED, job
    events = store.events("one", 0)
    assert [event.number for event in events] == list(range(1, job.last_event + 1))
    steps = [event.event.step for event in events if isinstance(event.event, BlockProgress)]
    assert steps == list(range(1, 51))
    scheduler.drain(0)


def test_calls_are_answered_unavailable_while_the_database_is_away(
    url: sa.URL, postgres: Cluster, tmp_path: Path
) -> None:
    server = Server(settings(tmp_path, url))
    with grpc.insecure_channel(server.address) as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        postgres.kill()
        try:
            with pytest.raises(grpc.RpcError) as refused:
                stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10)
        finally:
            postgres.start()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert str(tmp_path) not in str(refused.value.details()), "what the database says is not for callers"
        status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
        assert b"DATABASE_UNAVAILABLE" in status.SerializeToString()
        assert len(stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10).jobs) == 0
    server.stop()


def test_a_database_that_cannot_be_reached_ends_the_start_and_its_password_is_not_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bll_server", "--data-dir", str(tmp_path), "--port=0", "--metrics-port=0"]
    for url in ("postgresql://bll:s3cret@127.0.0.1:1/none", "postgresql://bll:s3cret@127.0.0.1:port/none"):
        variables = os.environ | {"BLL_DATABASE_URL": url}
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1, ended
        assert "database" in ended.stderr
        assert "s3cret" not in ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
