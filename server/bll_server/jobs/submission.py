"""What may be said of a new job beside what it is, and whether it may come."""

from __future__ import annotations

from typing import TypedDict

import sqlalchemy as sa

from bll_server.errors import QuotaExceeded, RequestIdReused
from bll_server.jobs import rows
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Job
from bll_server.jobs.schema import jobs
from bll_server.jobs.states import FINAL


class Submission(TypedDict, total=False):
    """What may be said of a new job beside what it is."""

    owner: str
    """Whose it is; "" where the server asks for no token."""
    metadata: Metadata
    request_id: str
    request_digest: str
    most_unfinished: float
    """How many jobs of the owner may not be over."""


def request_key(owner: str, request_id: str) -> str:
    """What no two jobs share: one owner's request ids mean nothing to another."""
    return f"{owner}:{request_id}" if owner else request_id


def check_unfinished(connection: sa.Connection, owner: str, most: float) -> None:
    """Raises QuotaExceeded where `owner` may not have one job more that is not over."""
    if not owner:
        return
    query = sa.select(sa.func.count()).where(jobs.c.owner == owner, jobs.c.state.not_in([s.value for s in FINAL]))
    has = connection.execute(query).scalar_one()
    if has >= most:
        raise QuotaExceeded(f"{owner} may have {most} jobs that are not over, and has {has}")


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
