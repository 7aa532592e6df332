"""Jobs and their numbered events in SQLite: what is written here survives the death of the server.

Every change of state is one transaction: it checks the table of legal transitions, writes the job's row and appends
the event that tells of it. Events of a job are numbered from 1 without gaps.
"""

from __future__ import annotations

import math
import secrets
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict, Unpack

import sqlalchemy as sa

from bll.events import CheckpointDamaged, CheckpointSaved, Evaluation, evaluation_from_dict
from bll.plan import Plan
from bll_server.errors import (
    IllegalState,
    JobExists,
    NotFound,
    QuotaExceeded,
    RequestIdReused,
    StaleEtag,
    StorageFull,
)
from bll_server.jobs.listing import Listing
from bll_server.jobs.metadata import NO_METADATA, Metadata
from bll_server.jobs.migrations import upgrade
from bll_server.jobs.records import (
    Failure,
    Job,
    JobEvent,
    JobSummary,
    Progress,
    RunEvent,
    StateChange,
    check_deletable,
    event_from_json,
    event_to_json,
    plan_from_json,
    plan_to_json,
)
from bll_server.jobs.schema import events, jobs
from bll_server.jobs.states import ACTIVE, FINAL, TRANSITIONS, State

_SUMMARY = tuple(
    column
    for column in jobs.columns
    if column.name not in ("spec", "plan", "validation", "test", "request_id", "request_digest")
)

EVERYTHING = Listing()


class Submission(TypedDict, total=False):
    """What may be said of a new job beside what it is."""

    owner: str
    """Whose it is; "" where the server asks for no token."""
    metadata: Metadata
    request_id: str
    request_digest: str
    most_unfinished: float
    """How many jobs of the owner may not be over."""


class Store:
    """The jobs of one data directory. Safe to call from many threads of one process."""

    def __init__(self, path: Path) -> None:
        """Open or create the database at `path`, or bring it up to date. Raises StorageFull, NewerSchema."""
        self._engine = sa.create_engine(f"sqlite:///{path}", isolation_level="AUTOCOMMIT", pool_size=16)
        sa.event.listen(self._engine, "connect", _configure)
        self._writing = threading.Lock()
        self._appended = threading.Condition()
        self._newest: dict[str, int] = {}
        """Number of the newest event of each job that got one since the start; guarded by `_appended`."""
        self._numbers: dict[str, int] = {}
        """The same for the transaction that is going on; guarded by `_writing`."""
        with self._write() as connection:
            upgrade(connection)

    def close(self) -> None:
        """Give the files back."""
        self._engine.dispose()

    # Writing

    def create(self, job_id: str, model_id: str, spec: bytes, plan: Plan, **more: Unpack[Submission]) -> Job:
        """A new QUEUED job; or, for a `request_id` of the same owner that came before with the same digest, its job.

        An empty `job_id` lets the store choose one, an empty `model_id` means the job's id.
        Raises JobExists, RequestIdReused, StorageFull, and QuotaExceeded where an owner has `most_unfinished` jobs.
        """
        owner, request_id = more.get("owner", ""), more.get("request_id", "")
        digest, most_unfinished = more.get("request_digest", ""), more.get("most_unfinished", math.inf)
        chosen = job_id or f"job-{secrets.token_hex(6)}"
        with self._write() as connection:
            if request_id and (earlier := _replayed(connection, owner, request_id, digest)):
                return earlier
            _check_unfinished(connection, owner, most_unfinished)
            if connection.execute(sa.select(jobs.c.job_id).where(jobs.c.job_id == chosen)).first():
                raise JobExists(f"job_id {chosen!r} is taken")
            now = _now()
            connection.execute(
                jobs.insert().values(
                    job_id=chosen,
                    owner=owner,
                    request_id=_request_key(owner, request_id) if request_id else None,
                    request_digest=digest,
                    model_id=model_id or chosen,
                    spec=spec,
                    plan=plan_to_json(plan),
                    total_steps=plan.total_steps,
                    total_epochs=plan.config.epochs,
                    state=State.QUEUED.value,
                    create_time=now,
                    queue_time=now,
                    **asdict(more.get("metadata", NO_METADATA)),
                )
            )
            self._append(connection, chosen, StateChange(State.QUEUED))
            return _get(connection, chosen)

    def transition(
        self,
        job_id: str,
        state: State,
        reason: str = "",
        *,
        before: State | None = None,
        failure: Failure | None = None,
        model_version: str = "",
        most_unfinished: float = math.inf,
    ) -> Job:
        """The job in its new state.

        Raises NotFound, and IllegalState if the table of transitions forbids it, or the job is not in state `before`;
        QuotaExceeded where a job that was over is to go on, and its owner has `most_unfinished` others.
        """
        with self._write() as connection:
            job = _get(connection, job_id)
            if state not in TRANSITIONS[job.state] or (before is not None and job.state is not before):
                raise IllegalState(f"jobs/{job_id} is {job.state.upper()} and cannot become {state.upper()}")
            if job.state in FINAL:
                _check_unfinished(connection, job.owner, most_unfinished)
            values: dict[str, Any] = {"state": state.value, "reason": reason, "model_version": model_version}
            values["failure"] = asdict(failure) if failure else None
            values["end_time"] = _now() if state in FINAL else None
            values["revision"] = jobs.c.revision + 1
            if state is State.STARTING and job.start_time is None:
                values["start_time"] = _now()
            if state is State.QUEUED and job.state not in ACTIVE:  # else the server puts it back in its place
                values["queue_time"] = _now()
            connection.execute(jobs.update().where(jobs.c.job_id == job_id).values(**values))
            self._append(connection, job_id, StateChange(state, reason))
            return _get(connection, job_id)

    def update(self, job_id: str, changes: Mapping[str, Any], etag: str = "") -> Job:
        """The job with some fields of its `Metadata` replaced. Raises NotFound, StaleEtag, InvalidRequest."""
        with self._write() as connection:
            job = _get(connection, job_id)
            _check_etag(job, etag)
            values = asdict(replace(job.metadata, **changes))
            row = jobs.c.job_id == job_id
            connection.execute(jobs.update().where(row).values(revision=jobs.c.revision + 1, **values))
            return _get(connection, job_id)

    def delete(self, job_id: str, etag: str = "") -> None:
        """Forget a job and its events. Raises NotFound, StaleEtag, IllegalState."""
        with self._write() as connection:
            job = _get(connection, job_id)
            _check_etag(job, etag)
            check_deletable(job)
            connection.execute(events.delete().where(events.c.job_id == job_id))
            connection.execute(jobs.delete().where(jobs.c.job_id == job_id))
            self._numbers[job_id] = sys.maxsize  # whoever waits for the next event looks, and finds no job

    def append(self, job_id: str, event: RunEvent, progress: Progress | None = None) -> None:
        """Add one event of the run, and what it says of the job as a whole."""
        values: dict[str, Any] = {}
        if progress is not None:
            values["progress"] = asdict(progress)
        if isinstance(event, CheckpointSaved):
            values["checkpoint_step"] = event.step
        elif isinstance(event, CheckpointDamaged):
            values["checkpoint_step"] = event.fallback_step
        elif isinstance(event, Evaluation):
            values[event.split] = asdict(event)
        with self._write() as connection:
            if values:
                connection.execute(jobs.update().where(jobs.c.job_id == job_id).values(**values))
            self._append(connection, job_id, event)

    # Reading

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        with self._engine.connect() as connection:
            return _get(connection, job_id)

    def owner(self, job_id: str) -> str:
        """Raises NotFound."""
        with self._engine.connect() as connection:
            owner = connection.execute(sa.select(jobs.c.owner).where(jobs.c.job_id == job_id)).scalar()
        if owner is None:
            raise _not_found(job_id)
        return str(owner)

    def replayed(self, request_id: str, request_digest: str, owner: str = "") -> Job | None:
        """The job that an earlier call of `owner` with this `request_id` made, if any. Raises RequestIdReused."""
        with self._engine.connect() as connection:
            return _replayed(connection, owner, request_id, request_digest)

    def page(
        self, size: int, token: str, owner: str | None = None, listing: Listing = EVERYTHING
    ) -> tuple[list[JobSummary], str]:
        """At most `size` jobs of `listing` (of `owner`), and the token of the next page, or "".

        Raises InvalidRequest.
        """
        query = listing.page(sa.select(*_SUMMARY), size + 1, token)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        following = listing.token(rows[size - 1]) if len(rows) > size else ""
        return [JobSummary(**_summary(row)) for row in rows[:size]], following

    def in_states(self, *states: State) -> list[JobSummary]:
        """The jobs in one of `states`, oldest first."""
        query = sa.select(*_SUMMARY).where(jobs.c.state.in_([s.value for s in states])).order_by(jobs.c.sequence)
        with self._engine.connect() as connection:
            return [JobSummary(**_summary(row)) for row in connection.execute(query)]

    def queue(self) -> list[JobSummary]:
        """The QUEUED jobs, in the order in which they are to start."""
        query = sa.select(*_SUMMARY).where(jobs.c.state == State.QUEUED.value)
        query = query.order_by(jobs.c.priority.desc(), jobs.c.queue_time, jobs.c.sequence)
        with self._engine.connect() as connection:
            return [JobSummary(**_summary(row)) for row in connection.execute(query)]

    def last_event(self, job_id: str) -> int:
        """Number of the job's newest event. Raises NotFound."""
        with self._engine.connect() as connection:
            query = sa.select(jobs.c.last_event).where(jobs.c.job_id == job_id)
            number: int | None = connection.execute(query).scalar()
        if number is None:
            raise _not_found(job_id)
        return number

    def learning_from(self, data_name: str) -> str:
        """A job that is not over and learns from the data set called so, by name; "" if there is none."""
        query = sa.select(jobs.c.job_id, jobs.c.plan).where(jobs.c.state.not_in([s.value for s in FINAL]))
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                if plan_from_json(row.plan).config.data.name == data_name:
                    return f"jobs/{row.job_id}"
        return ""

    def counts(self) -> dict[State, int]:
        """Number of jobs in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._engine.connect() as connection:
            found = {State(state): count for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in State}

    def events(self, job_id: str, after: int, limit: int = 500) -> list[JobEvent]:
        """At most `limit` events numbered above `after`, in order."""
        query = (
            sa.select(events.c.number, events.c.time, events.c.payload)
            .where(events.c.job_id == job_id, events.c.number > after)
            .order_by(events.c.number)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [
                JobEvent(number, _time(time), event_from_json(payload))
                for number, time, payload in connection.execute(query)
            ]

    def all_events(self, job_id: str) -> Iterator[JobEvent]:
        """Every event of the job up to now, in order, read piece by piece. Raises NotFound."""
        after, last = 0, self.last_event(job_id)
        while after < last and (events := self.events(job_id, after)):
            yield from events
            after = events[-1].number

    def wait(self, job_id: str, after: int, timeout_s: float, gone: Callable[[], bool]) -> None:
        """Return once the job has an event above `after`, `gone()` is true at a `wake`, or `timeout_s` is over."""
        with self._appended:
            self._appended.wait_for(lambda: self._newest.get(job_id, 0) > after or gone(), timeout_s)

    def wake(self) -> None:
        """Let every `wait` look at its `gone()` again."""
        with self._appended:
            self._appended.notify_all()

    # Inside a transaction

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        """A transaction that holds the write lock from its start, so that what it reads stays true."""
        with self._writing:
            self._numbers = {}
            try:
                with self._engine.connect() as connection:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    try:
                        yield connection
                        connection.exec_driver_sql("COMMIT")
                    except BaseException:
                        with suppress(sa.exc.OperationalError):  # SQLite has rolled back by itself on some errors
                            connection.exec_driver_sql("ROLLBACK")
                        raise
            except sa.exc.OperationalError as error:
                if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise StorageFull(f"the job database cannot grow: {error.orig}") from error
                raise
            with self._appended:
                self._newest |= self._numbers
                self._appended.notify_all()

    def _append(self, connection: sa.Connection, job_id: str, event: StateChange | RunEvent) -> None:
        row = jobs.c.job_id == job_id
        number = connection.execute(sa.select(jobs.c.last_event).where(row)).scalar_one() + 1
        connection.execute(
            events.insert().values(job_id=job_id, number=number, time=_now(), payload=event_to_json(event))
        )
        connection.execute(jobs.update().where(row).values(last_event=number))
        self._numbers[job_id] = number


def _configure(connection: sqlite3.Connection, record: object) -> None:
    # FULL: a commit that was answered survives power loss. 5 s is for another program that reads the file.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _get(connection: sa.Connection, job_id: str) -> Job:
    row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).first()
    if row is None:
        raise _not_found(job_id)
    return Job(
        **_summary(row),
        spec=row.spec,
        plan=plan_from_json(row.plan),
        queue_position=_queue_position(connection, row) if row.state == State.QUEUED else 0,
        validation=evaluation_from_dict(row.validation) if row.validation else None,
        test=evaluation_from_dict(row.test) if row.test else None,
    )


def _queue_position(connection: sa.Connection, row: sa.Row[Any]) -> int:
    """Counts from 1; see `Store.queue`."""
    earlier = sa.tuple_(jobs.c.queue_time, jobs.c.sequence) < (row.queue_time, row.sequence)
    ahead = (jobs.c.priority > row.priority) | ((jobs.c.priority == row.priority) & earlier)
    query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state == State.QUEUED.value, ahead)
    return 1 + connection.execute(query).scalar_one()


def _check_etag(job: Job, etag: str) -> None:
    if etag and etag != job.etag:
        raise StaleEtag(f"jobs/{job.job_id} has changed: its etag is {job.etag}, got {etag}")


def _not_found(job_id: str) -> NotFound:
    return NotFound(f"no job is named 'jobs/{job_id}'")


def _request_key(owner: str, request_id: str) -> str:
    """What no two jobs share: one owner's request ids mean nothing to another."""
    return f"{owner}:{request_id}" if owner else request_id


def _check_unfinished(connection: sa.Connection, owner: str, most: float) -> None:
    """Raises QuotaExceeded where `owner` may not have one job more that is not over."""
    if not owner:
        return
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state.not_in([s.value for s in FINAL]))
    has = connection.execute(query).scalar_one()
    if has >= most:
        raise QuotaExceeded(f"{owner} may have {most} jobs that are not over, and has {has}")


def _replayed(connection: sa.Connection, owner: str, request_id: str, request_digest: str) -> Job | None:
    key = _request_key(owner, request_id)
    query = sa.select(jobs.c.job_id, jobs.c.request_digest).where(jobs.c.request_id == key)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.request_digest != request_digest:
        raise RequestIdReused(f"request_id {request_id!r} came with another body, which made 'jobs/{row.job_id}'")
    return _get(connection, row.job_id)


def _summary(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "owner": row.owner,
        "model_id": row.model_id,
        "metadata": Metadata(row.display_name, row.labels, row.priority),
        "etag": f'W/"{row.sequence}-{row.revision}"',
        "state": State(row.state),
        "reason": row.reason,
        "failure": Failure(**row.failure) if row.failure else None,
        "progress": Progress(**row.progress) if row.progress else None,
        "total_steps": row.total_steps,
        "total_epochs": row.total_epochs,
        "checkpoint_step": row.checkpoint_step,
        "model_version": row.model_version,
        "create_time": _time(row.create_time),
        "start_time": _time(row.start_time) if row.start_time else None,
        "end_time": _time(row.end_time) if row.end_time else None,
        "last_event": row.last_event,
    }


def _now() -> float:
    return datetime.now(UTC).timestamp()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
