"""Jobs and their numbered events in a database: what is written here survives the death of the server.

Every change of state is one transaction: it checks the table of legal transitions, writes the job's row and appends
the event that tells of it. Events of a job are numbered from 1 without gaps.
"""

from __future__ import annotations

import json
import math
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

import sqlalchemy as sa

from bll.events import CheckpointDamaged, CheckpointSaved, Evaluation
from bll.plan import Plan
from bll_server.errors import DatabaseUnavailable, IllegalState, StaleEtag
from bll_server.jobs import rows, submission
from bll_server.jobs.counting import Counting
from bll_server.jobs.database import Database, SqliteFile
from bll_server.jobs.history import History, take
from bll_server.jobs.listing import Listing
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.migrations import upgrade
from bll_server.jobs.postgres import Postgres
from bll_server.jobs.records import (
    Failure,
    Job,
    JobEvent,
    JobSummary,
    Progress,
    RunEvent,
    StateChange,
    check_deletable,
    event_to_json,
    plan_from_json,
)
from bll_server.jobs.schema import events, jobs, standing, starts, studies
from bll_server.jobs.states import ACTIVE, FINAL, TRANSITIONS, State
from bll_server.jobs.submission import Submission
from bll_server.metrics import Metrics

EVERYTHING = Listing()

_DELETED = sys.maxsize
"""As the number of a job's newest event."""


class Store:
    """The jobs of one data directory. Safe to call from many threads of one process."""

    def __init__(
        self, where: Path | sa.URL, overtaken: Callable[[], None] = lambda: None, metrics: Metrics | None = None
    ) -> None:
        """Open or create the SQLite file or the PostgreSQL database `where`, or bring it up to date.

        `overtaken` is called once another server has taken the database over; `metrics` are told of what has been
        committed. Raises CannotOpen, StorageFull, DatabaseUnavailable.
        """
        self._database: Database = SqliteFile(where) if isinstance(where, Path) else Postgres(where, overtaken)
        self._counting = Counting((metrics or Metrics()).jobs)
        self._appended = threading.Condition()
        self._newest: dict[str, int] = {}
        """Number of the newest event of each job that got one since the start; guarded by `_appended`."""
        self._numbers: dict[str, int] = {}
        """The same for the transaction that is going on, which owns it."""
        self._doubtful: dict[str, int] = {}
        """Number of the event that `append` told last of a job, if nobody knows whether that was committed."""
        try:
            with self.write() as connection:
                upgrade(connection)
                start = connection.execute(starts.insert().values(time=_now())).inserted_primary_key
            assert start is not None
            self._database.serve(start.number)
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Give the files and connections back."""
        self._database.close()

    # Writing

    def create(self, job_id: str, model_id: str, spec: bytes, plan: Plan, **more: Unpack[Submission]) -> Job:
        """A new QUEUED job; or, for a `request_id` of the same owner that came before with the same digest, its job.

        An empty `job_id` lets the store choose one, an empty `model_id` means the job's id.
        Raises JobExists, RequestIdReused, StorageFull, and QuotaExceeded where an owner has `most_unfinished` jobs.
        """
        owner, request_id = more.get("owner", ""), more.get("request_id", "")
        chosen = job_id or f"job-{secrets.token_hex(6)}"
        with self.write() as connection:
            digest = more.get("request_digest", "")
            if request_id and (earlier := submission.replayed(connection, owner, request_id, digest)):
                return earlier
            submission.check_unfinished(connection, owner, more.get("most_unfinished", math.inf))
            self.insert(connection, chosen, model_id, spec, plan, **more)
            return rows.job(connection, chosen)

    def transition(
        self,
        job_id: str,
        state: State,
        reason: str = "",
        *,
        before: State | None = None,
        failure: Failure | None = None,
        model_version: str = "",
        run_s: float | None = None,
        most_unfinished: float = math.inf,
    ) -> Job:
        """The job in its new state, after `run_s` of running time if that is known anew.

        Raises NotFound, and IllegalState if the table of transitions forbids it, or the job is not in state `before`;
        QuotaExceeded where a job that was over is to go on, and its owner has `most_unfinished` others.
        """
        with self.write() as connection:
            job = rows.job(connection, job_id)
            if state not in TRANSITIONS[job.state] or (before is not None and job.state is not before):
                raise IllegalState(f"jobs/{job_id} is {job.state.upper()} and cannot become {state.upper()}")
            if job.state in FINAL:
                submission.check_unfinished(connection, job.owner, most_unfinished)
            values: dict[str, Any] = {"state": state.value, "model_version": model_version}
            values["reason"] = reason.replace("\0", "")  # which PostgreSQL cannot keep
            values["failure"] = asdict(failure) if failure else None
            values["end_time"] = end_time = _now() if state in FINAL else None
            values["expire_time"] = _expiry(end_time, job.metadata)
            values["revision"] = jobs.c.revision + 1
            if state is State.STARTING and job.start_time is None:
                values["start_time"] = _now()
            if run_s is not None:
                values["run_s"] = run_s
            if state is State.QUEUED and job.state not in ACTIVE:  # else the server puts it back in its place
                values["queue_time"] = _now()
            connection.execute(jobs.update().where(jobs.c.job_id == job_id).values(**values))
            self._append(connection, job_id, StateChange(state, reason))
            self._counting.entered(job_id, state, job.state)
            return rows.job(connection, job_id)

    def update(self, job_id: str, changes: Mapping[str, Any], etag: str = "") -> Job:
        """The job with some fields of its `Metadata` replaced. Raises NotFound, StaleEtag, InvalidRequest."""
        with self.write() as connection:
            job = rows.job(connection, job_id)
            _check_etag(job, etag)
            metadata = replace(job.metadata, **changes)
            values = asdict(metadata)
            values["expire_time"] = _expiry(job.end_time.timestamp() if job.end_time else None, metadata)
            row = jobs.c.job_id == job_id
            if metadata.labels != job.metadata.labels:
                submission.label(connection, job_id, metadata.labels)
            connection.execute(jobs.update().where(row).values(revision=jobs.c.revision + 1, **values))
            return rows.job(connection, job_id)

    def delete(self, job_id: str, etag: str = "") -> None:
        """Forget a job and its events. Raises NotFound, StaleEtag, IllegalState."""
        with self.write() as connection:
            self.remove(connection, job_id, etag)

    def append(
        self, job_id: str, event: RunEvent, progress: Progress | None = None, run_s: float | None = None
    ) -> None:
        """Add one event of the run, what it says of the job as a whole, and the running time up to it.

        Raises StorageFull, DatabaseUnavailable. To be repeated after the latter: what was committed
        although the answer was lost is not told twice.
        """
        values: dict[str, Any] = {}
        if run_s is not None:
            values["run_s"] = run_s
        if progress is not None:
            values["progress"] = asdict(progress)
        if isinstance(event, CheckpointSaved):
            values["checkpoint_step"] = event.step
        elif isinstance(event, CheckpointDamaged):
            values["checkpoint_step"] = event.fallback_step
        elif isinstance(event, Evaluation):
            values[event.split] = asdict(event)
        number = self._doubtful.get(job_id, 0)
        try:
            with self.write() as connection:
                if number and _tells(connection, job_id, number, event):
                    self._numbers[job_id] = number
                else:
                    if values:
                        connection.execute(jobs.update().where(jobs.c.job_id == job_id).values(**values))
                    number = self._append(connection, job_id, event)
                self._counting.told(job_id, event, progress)
        except DatabaseUnavailable:
            self._doubtful[job_id] = number
            raise
        self._doubtful.pop(job_id, None)

    # Reading

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        with self._database.read() as connection:
            return rows.job(connection, job_id)

    def owner(self, job_id: str) -> str:
        """Raises NotFound."""
        with self._database.read() as connection:
            owner = connection.execute(sa.select(jobs.c.owner).where(jobs.c.job_id == job_id)).scalar()
        if owner is None:
            raise rows.not_found(job_id)
        return str(owner)

    def replayed(self, request_id: str, request_digest: str, owner: str = "") -> Job | None:
        """The job that an earlier call of `owner` with this `request_id` made, if any. Raises RequestIdReused."""
        with self._database.read() as connection:
            return submission.replayed(connection, owner, request_id, request_digest)

    def page(
        self, size: int, token: str, owner: str | None = None, listing: Listing = EVERYTHING
    ) -> tuple[list[JobSummary], str]:
        """At most `size` jobs of `listing` (of `owner`), and the token of the next page, or "".

        Raises InvalidRequest.
        """
        query = listing.page(rows.SUMMARY, size + 1, token, owner)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        following = listing.token(found[size - 1]) if len(found) > size else ""
        return [rows.summary(row) for row in found[:size]], following

    def in_states(self, *states: State) -> list[JobSummary]:
        """The jobs in one of `states`, oldest first."""
        query = sa.select(*rows.SUMMARY).where(jobs.c.state.in_([s.value for s in states])).order_by(jobs.c.sequence)
        with self._database.read() as connection:
            return [rows.summary(row) for row in connection.execute(query)]

    def queue(self) -> list[JobSummary]:
        """The QUEUED jobs, in the order in which they are to start."""
        query = sa.select(*rows.SUMMARY).where(jobs.c.state == State.QUEUED.value)
        query = query.order_by(jobs.c.priority.desc(), jobs.c.queue_time, jobs.c.sequence)
        with self._database.read() as connection:
            return [rows.summary(row) for row in connection.execute(query)]

    def expired(self, now: float, limit: int = 100) -> list[JobSummary]:
        """At most `limit` jobs that were to be deleted at `now`, in seconds since the epoch, or before."""
        query = sa.select(*rows.SUMMARY).where(jobs.c.expire_time <= now).order_by(jobs.c.expire_time).limit(limit)
        with self._database.read() as connection:
            return [rows.summary(row) for row in connection.execute(query)]

    def parallel_trials(self) -> dict[str, int]:
        """How many trials of each study that has QUEUED ones may run at the same time, where that is bounded."""
        waiting = sa.select(jobs.c.study).where(jobs.c.state == State.QUEUED.value)
        query = sa.select(studies.c.study_id, studies.c.max_parallel)
        query = query.where(studies.c.max_parallel > 0, studies.c.study_id.in_(waiting))
        with self.read() as connection:
            return {row.study_id: row.max_parallel for row in connection.execute(query)}

    def last_event(self, job_id: str) -> int:
        """Number of the job's newest event. Raises NotFound."""
        with self._appended:
            number = self._newest.get(job_id)
        if number is None:
            with self._database.read() as connection:
                number = connection.execute(sa.select(jobs.c.last_event).where(jobs.c.job_id == job_id)).scalar()
        if number is None or number == _DELETED:
            raise rows.not_found(job_id)
        return number

    def learning_from(self, data_name: str) -> str:
        """A job that is not over and learns from the data set called so, by name; "" if there is none."""
        query = sa.select(jobs.c.job_id, jobs.c.plan).where(
            jobs.c.state.not_in([s.value for s in FINAL]), jobs.c.plan.contains(json.dumps(data_name), autoescape=True)
        )
        with self._database.read() as connection:
            for row in connection.execute(query):
                if plan_from_json(row.plan).config.data.name == data_name:
                    return f"jobs/{row.job_id}"
        return ""

    def counts(self) -> dict[State, int]:
        """Number of jobs in each state."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
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
        with self._database.read() as connection:
            return [rows.event(row) for row in connection.execute(query)]

    def history(self, job_id: str) -> History:
        """The job's run as it stands. Raises NotFound."""
        return History(self._database, self.get(job_id))

    def wait(self, job_id: str, after: int, timeout_s: float, gone: Callable[[], bool]) -> None:
        """Return once the job has an event above `after`, `gone()` is true at a `wake`, or `timeout_s` is over."""
        with self._appended:
            self._appended.wait_for(lambda: self._newest.get(job_id, 0) > after or gone(), timeout_s)

    def wake(self) -> None:
        """Let every `wait` look at its `gone()` again."""
        with self._appended:
            self._appended.notify_all()

    # Inside a transaction

    def read(self) -> AbstractContextManager[sa.Connection]:
        """See `Database.read`."""
        return self._database.read()

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """See `Database.write`; those who wait for events hear of the new ones."""
        numbers: dict[str, int] = {}
        with self._counting.transaction(), self._database.write() as connection:
            self._numbers = numbers
            yield connection
        with self._appended:
            self._newest |= numbers
            self._appended.notify_all()

    def insert(
        self,
        connection: sa.Connection,
        job_id: str,
        model_id: str,
        spec: bytes,
        plan: Plan,
        **more: Unpack[Submission],
    ) -> None:
        """Queue one job more, whose owner may have it. Raises JobExists."""
        submission.insert(connection, job_id, model_id, spec, plan, _now(), more)
        self._append(connection, job_id, StateChange(State.QUEUED))
        self._counting.entered(job_id, State.QUEUED, None)

    def remove(self, connection: sa.Connection, job_id: str, etag: str = "") -> None:
        """See `delete`."""
        job = rows.job(connection, job_id)
        _check_etag(job, etag)
        check_deletable(job)
        for table in (events, standing):
            connection.execute(table.delete().where(table.c.job_id == job_id))
        submission.label(connection, job_id, {})
        connection.execute(jobs.delete().where(jobs.c.job_id == job_id))
        self._numbers[job_id] = _DELETED  # whoever waits for the next event looks, and finds no job
        self._counting.deleted(job_id)

    def _append(self, connection: sa.Connection, job_id: str, event: StateChange | RunEvent) -> int:
        row = jobs.c.job_id == job_id
        number: int = connection.execute(sa.select(jobs.c.last_event).where(row)).scalar_one() + 1
        connection.execute(
            events.insert().values(job_id=job_id, number=number, time=_now(), payload=event_to_json(event))
        )
        connection.execute(jobs.update().where(row).values(last_event=number))
        take(connection, job_id, number, event)
        self._numbers[job_id] = number
        return number


def _tells(connection: sa.Connection, job_id: str, number: int, event: RunEvent) -> bool:
    """Whether event `number` of the job is there, and is `event`."""
    query = sa.select(events.c.payload).where(events.c.job_id == job_id, events.c.number == number)
    return connection.execute(query).scalar() == event_to_json(event)


def _check_etag(job: Job, etag: str) -> None:
    if etag and etag != job.etag:
        raise StaleEtag(f"jobs/{job.job_id} has changed: its etag is {job.etag}, got {etag}")


def _expiry(end_time: float | None, metadata: Metadata) -> float | None:
    """When a job that ended then is to be deleted."""
    if end_time is None or not metadata.ttl_after_finish_s:
        return None
    return end_time + metadata.ttl_after_finish_s


def _now() -> float:
    return datetime.now(UTC).timestamp()
