"""Studies in the job database, beside the jobs that are their trials."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Unpack

import sqlalchemy as sa

from bll.events import evaluation_from_dict
from bll_server.errors import NotFound, RequestIdReused, StudyExists
from bll_server.jobs import rows
from bll_server.jobs.metadata import NO_METADATA
from bll_server.jobs.records import JobSummary, check_deletable
from bll_server.jobs.schema import jobs, studies
from bll_server.jobs.states import FINAL, State
from bll_server.jobs.store import Store
from bll_server.jobs.submission import Submission, check_unfinished, request_key
from bll_server.studies.records import Counts, NewStudy, Study, Trial


class Studies:
    """The studies of one data directory. Safe to call from many threads of one process."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, new: NewStudy, **more: Unpack[Submission]) -> str:
        """The id of a new study whose trials are QUEUED, all in one transaction.

        Of a `request_id` of the same owner that came before with the same digest, it is that of its study. Raises
        StudyExists, JobExists, RequestIdReused, StorageFull, and QuotaExceeded where the owner would have more than
        `most_unfinished` jobs.
        """
        owner, metadata = more.get("owner", ""), more.get("metadata", NO_METADATA)
        request_id, digest = more.get("request_id", ""), more.get("request_digest", "")
        study_id = new.study_id or f"study-{secrets.token_hex(6)}"
        with self._store.write() as connection:
            if request_id and (earlier := _replayed(connection, owner, request_id, digest)):
                return earlier
            check_unfinished(connection, owner, more.get("most_unfinished", math.inf), len(new.trials))
            if connection.execute(sa.select(studies.c.study_id).where(studies.c.study_id == study_id)).first():
                raise StudyExists(f"study_id {study_id!r} is taken")
            connection.execute(
                studies.insert().values(
                    study_id=study_id,
                    owner=owner,
                    request_id=request_key(owner, request_id) if request_id else None,
                    request_digest=digest,
                    request=new.request,
                    max_parallel=new.max_parallel,
                    create_time=datetime.now(UTC).timestamp(),
                )
            )
            for number, trial in enumerate(new.trials):
                job: Submission = {"owner": owner, "metadata": metadata, "study": study_id}
                job |= {"trial": number, "parameters": trial.parameters}
                self._store.insert(connection, f"{study_id}-{number}", "", trial.spec, trial.plan, **job)
        return study_id

    def replayed(self, request_id: str, request_digest: str, owner: str = "") -> str:
        """The study that an earlier call of `owner` with this `request_id` made, or "". Raises RequestIdReused."""
        with self._store.read() as connection:
            return _replayed(connection, owner, request_id, request_digest)

    def get(self, study_id: str) -> tuple[Study, list[Trial]]:
        """A study and its trials, in the order of their numbers, without those whose jobs were deleted.

        Raises NotFound.
        """
        query: sa.Select[Any] = sa.select(*rows.SUMMARY, jobs.c.validation, jobs.c.test)
        query = query.where(jobs.c.study == study_id).order_by(jobs.c.sequence)
        with self._store.read() as connection:
            study = _study(_row(connection, study_id))
            return study, [_trial(row) for row in connection.execute(query)]

    def owner(self, study_id: str) -> str:
        """Raises NotFound."""
        with self._store.read() as connection:
            return str(_row(connection, study_id).owner)

    def page(self, size: int, before: int, owner: str | None = None) -> tuple[list[tuple[Study, Counts]], int]:
        """At most `size` studies (of `owner`), newest first, and what the next page is to come before; 0: nothing.

        A study of number `before` and those after it are left out; 0: none.
        """
        query = sa.select(studies).order_by(studies.c.sequence.desc()).limit(size + 1)
        if before:
            query = query.where(studies.c.sequence < before)
        if owner is not None:
            query = query.where(studies.c.owner == owner)
        with self._store.read() as connection:
            found = connection.execute(query).all()
            counts = _counts(connection, [row.study_id for row in found[:size]])
        following = found[size - 1].sequence if len(found) > size else 0
        return [(_study(row), Counts.of(counts[row.study_id])) for row in found[:size]], following

    def unfinished(self, study_id: str) -> list[str]:
        """The jobs of those trials that are not over; those first that have no runner, so that they never get one.

        Raises NotFound.
        """
        still = {State.QUEUED, State.PAUSED}
        found = [job for job in self._jobs(study_id) if job.state not in FINAL]
        return [job.job_id for job in sorted(found, key=lambda job: job.state not in still)]

    def job_ids(self, study_id: str) -> list[str]:
        """Raises NotFound, and IllegalState if a job cannot be deleted."""
        found = self._jobs(study_id)
        for job in found:
            check_deletable(job)
        return [job.job_id for job in found]

    def delete(self, study_id: str) -> None:
        """Forget a study, its jobs and their events, in one transaction. Raises NotFound, IllegalState."""
        with self._store.write() as connection:
            _row(connection, study_id)
            for (job_id,) in connection.execute(sa.select(jobs.c.job_id).where(jobs.c.study == study_id)).all():
                self._store.remove(connection, job_id)
            connection.execute(studies.delete().where(studies.c.study_id == study_id))

    def _jobs(self, study_id: str) -> list[JobSummary]:
        query = sa.select(*rows.SUMMARY).where(jobs.c.study == study_id).order_by(jobs.c.sequence)
        with self._store.read() as connection:
            _row(connection, study_id)
            return [rows.summary(row) for row in connection.execute(query)]


def _row(connection: sa.Connection, study_id: str) -> sa.Row[Any]:
    row = connection.execute(sa.select(studies).where(studies.c.study_id == study_id)).first()
    if row is None:
        raise NotFound(f"no study is named 'studies/{study_id}'")
    return row


def _replayed(connection: sa.Connection, owner: str, request_id: str, request_digest: str) -> str:
    query = sa.select(studies.c.study_id, studies.c.request_digest)
    row = connection.execute(query.where(studies.c.request_id == request_key(owner, request_id))).first()
    if row is None:
        return ""
    if row.request_digest != request_digest:
        raise RequestIdReused(f"request_id {request_id!r} came with another body, which made 'studies/{row.study_id}'")
    return str(row.study_id)


def _counts(connection: sa.Connection, study_ids: Sequence[str]) -> dict[str, dict[State, int]]:
    """Number of the trials of each study in each state."""
    found: dict[str, dict[State, int]] = {study_id: {} for study_id in study_ids}
    query = sa.select(jobs.c.study, jobs.c.state, sa.func.count()).where(jobs.c.study.in_(study_ids))
    for study_id, state, count in connection.execute(query.group_by(jobs.c.study, jobs.c.state)):
        found[study_id][State(state)] = count
    return found


def _study(row: sa.Row[Any]) -> Study:
    return Study(row.study_id, row.owner, row.request, rows.time_of(row.create_time))


def _trial(row: sa.Row[Any]) -> Trial:
    return Trial(
        number=row.trial,
        job=rows.summary(row),
        validation=evaluation_from_dict(row.validation) if row.validation else None,
        test=evaluation_from_dict(row.test) if row.test else None,
    )
