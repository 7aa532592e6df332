"""Jobs and events as they lie in the database, read."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from bll.events import evaluation_from_dict
from bll_server.errors import NotFound
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Failure, Job, JobEvent, JobSummary, Progress, event_from_json, plan_from_json
from bll_server.jobs.schema import jobs
from bll_server.jobs.states import State

SUMMARY = tuple(
    column
    for column in jobs.columns
    if column.name not in ("spec", "plan", "validation", "test", "request_id", "request_digest")
)
"""What a summary is read from."""


def job(connection: sa.Connection, job_id: str) -> Job:
    """Raises NotFound."""
    row = connection.execute(sa.select(jobs).where(jobs.c.job_id == job_id)).first()
    if row is None:
        raise not_found(job_id)
    return Job(
        **_fields(row),
        spec=row.spec,
        plan=plan_from_json(row.plan),
        validation=evaluation_from_dict(row.validation) if row.validation else None,
        test=evaluation_from_dict(row.test) if row.test else None,
    )


def summary(row: sa.Row[Any]) -> JobSummary:
    """The job of a row with the columns of `SUMMARY`."""
    return JobSummary(**_fields(row))


def event(row: sa.Row[*tuple[Any, ...]]) -> JobEvent:
    """The event of a row with its number, time and payload."""
    return JobEvent(row.number, time_of(row.time), event_from_json(row.payload))


def not_found(job_id: str) -> NotFound:
    """What a name that no job has is answered with."""
    return NotFound(f"no job is named 'jobs/{job_id}'")


def _fields(row: sa.Row[Any]) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "owner": row.owner,
        "model_id": row.model_id,
        "metadata": Metadata(**{field.name: getattr(row, field.name) for field in fields(Metadata)}),
        "etag": f'W/"{row.sequence}-{row.revision}"',
        "state": State(row.state),
        "reason": row.reason,
        "failure": Failure(**row.failure) if row.failure else None,
        "progress": Progress(**row.progress) if row.progress else None,
        "total_steps": row.total_steps,
        "total_epochs": row.total_epochs,
        "checkpoint_step": row.checkpoint_step,
        "model_version": row.model_version,
        "create_time": time_of(row.create_time),
        "start_time": time_of(row.start_time) if row.start_time else None,
        "end_time": time_of(row.end_time) if row.end_time else None,
        "expire_time": time_of(row.expire_time) if row.expire_time else None,
        "run_s": row.run_s,
        "last_event": row.last_event,
        "study": row.study,
        "parameters": row.parameters,
    }


def time_of(seconds: float) -> datetime:
    """The instant that is so many seconds after 1970."""
    return datetime.fromtimestamp(seconds, UTC)
