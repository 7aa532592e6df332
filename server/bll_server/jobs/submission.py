"""New jobs: what may be said of them, whether they may come, and their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypedDict

import sqlalchemy as sa

from bll.plan import Plan
from bll_server.errors import JobExists, QuotaExceeded, RequestIdReused
from bll_server.jobs import rows
from bll_server.jobs.metadata import NO_METADATA, Metadata
from bll_server.jobs.records import Job, plan_to_json
from bll_server.jobs.schema import jobs, labels
from bll_server.jobs.states import FINAL, State


class Submission(TypedDict, total=False):
    """What may be said of a new job beside what it is."""

    owner: str
    """Whose it is; "" where the server asks for no token."""
    metadata: Metadata
    request_id: str
    request_digest: str
    most_unfinished: float
    """How many jobs of the owner may not be over."""
    study: str
    """Id of the study that it is a trial of."""
    trial: int
    """Its number there."""
    parameters: Mapping[str, Any]
    """A trial's value of each parameter's field."""


def request_key(owner: str, request_id: str) -> str:
    """What no two jobs share: one owner's request ids mean nothing to another."""
    return f"{owner}:{request_id}" if owner else request_id


def check_unfinished(connection: sa.Connection, owner: str, most: float, more: int = 1) -> None:
    """Raises QuotaExceeded where `owner` may not have so many `more` jobs that are not over."""
    if not owner:
        return
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state.not_in([s.value for s in FINAL]))
    has = connection.execute(query).scalar_one()
    if has + more > most:
        wanted = f"; {more} more were asked for" if more > 1 else ""
        raise QuotaExceeded(f"{owner} may have {most} jobs that are not over, and has {has}{wanted}")


def replayed(connection: sa.Connection, owner: str, request_id: str, request_digest: str) -> Job | None:
    """The job that this request of the owner made before, if it came. Raises RequestIdReused."""
    key = request_key(owner, request_id)
    query = sa.select(jobs.c.job_id, jobs.c.request_digest).where(jobs.c.request_id == key)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.request_digest != request_digest:
        raise RequestIdReused(f"request_id {request_id!r} came with another body, which made 'jobs/{row.job_id}'")
    return rows.job(connection, row.job_id)


def insert(
    connection: sa.Connection, job_id: str, model_id: str, spec: bytes, plan: Plan, now: float, more: Submission
) -> None:
    """Put a QUEUED job there, at `now` in seconds since the epoch. Raises JobExists."""
    if connection.execute(sa.select(jobs.c.job_id).where(jobs.c.job_id == job_id)).first():
        raise JobExists(f"job_id {job_id!r} is taken")
    owner, request_id = more.get("owner", ""), more.get("request_id", "")
    metadata = more.get("metadata", NO_METADATA)
    connection.execute(
        jobs.insert().values(
            job_id=job_id,
            owner=owner,
            request_id=request_key(owner, request_id) if request_id else None,
            request_digest=more.get("request_digest", ""),
            model_id=model_id or job_id,
            spec=spec,
            plan=plan_to_json(plan),
            total_steps=plan.total_steps,
            total_epochs=plan.config.epochs,
            state=State.QUEUED.value,
            create_time=now,
            queue_time=now,
            study=more.get("study", ""),
            trial=more.get("trial", 0),
            parameters=more.get("parameters", {}),
            **asdict(metadata),
        )
    )
    label(connection, job_id, metadata.labels)


def label(connection: sa.Connection, job_id: str, told: Mapping[str, str]) -> None:
    """Let lists find the job by these labels, and no others."""
    sequence = connection.execute(sa.select(jobs.c.sequence).where(jobs.c.job_id == job_id)).scalar_one()
    connection.execute(labels.delete().where(labels.c.sequence == sequence))
    if told:
        found_by = [{"sequence": sequence, "key": key, "value": value} for key, value in told.items()]
        connection.execute(labels.insert(), found_by)
