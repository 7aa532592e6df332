"""The tables of the job database as they are now. What makes those of older servers into them is in `migrations`."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa


class _JsonText(sa.TypeDecorator[Any]):
    """JSON as Python writes it, with the NaN of a run that has diverged: PostgreSQL's own types refuse that."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else json.loads(value)


INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits wide; of SQLite only INTEGER can number rows."""
JSON = sa.JSON(none_as_null=True).with_variant(_JsonText(), "postgresql")
NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""What is sorted, or found by its beginning: in the same order in every database, whatever its locale."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False, server_default=""),
    # A repeated request_id finds its job here, by its owner too; the digest tells whether the body was the same.
    sa.Column("request_id", sa.Text, unique=True),
    sa.Column("request_digest", sa.Text, nullable=False),
    sa.Column("model_id", NAME, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("total_steps", INTEGER, nullable=False),
    sa.Column("total_epochs", INTEGER, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("failure", JSON),
    sa.Column("progress", JSON),
    sa.Column("validation", JSON),
    sa.Column("test", JSON),
    sa.Column("checkpoint_step", INTEGER, nullable=False, default=0),
    sa.Column("model_version", sa.Text, nullable=False, default=""),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("start_time", sa.Float),
    sa.Column("end_time", sa.Float),
    sa.Column("last_event", INTEGER, nullable=False, default=0),
    sa.Column("display_name", sa.Text, nullable=False, server_default=""),
    sa.Column("labels", JSON, nullable=False, server_default="{}"),
    sa.Column("priority", INTEGER, nullable=False, server_default="0"),
    sa.Column("revision", INTEGER, nullable=False, server_default="1"),
    sa.Column("queue_time", sa.Float, nullable=False, server_default="0"),
    sa.Column("preemptible", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("max_run_duration_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("ttl_after_finish_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("run_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("expire_time", sa.Float, index=True),
    sa.Column("study", sa.Text, nullable=False, server_default=""),
    sa.Column("trial", INTEGER, nullable=False, server_default="0"),
    sa.Column("parameters", JSON, nullable=False, server_default="{}"),
    sqlite_autoincrement=True,  # a number is never given twice, so that page tokens stay true
)

# Each holds all that lists filter and sort by, so that a list reads no row of a job that is not in it.
_LISTED = ("state", "owner", "model_id", "priority")
for _first in _LISTED:
    _rest = (name for name in _LISTED if name != _first)
    sa.Index(f"ix_jobs_{_first}", *(jobs.c[name] for name in (_first, "sequence", *_rest)))
sa.Index("ix_jobs_study", *(jobs.c[name] for name in ("study", "sequence", *_LISTED)))

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True),
    sa.Column("study_id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),
    # As of jobs.
    sa.Column("request_id", sa.Text, unique=True),
    sa.Column("request_digest", sa.Text, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("max_parallel", INTEGER, nullable=False),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Index("ix_studies_owner", "owner", "sequence"),
    sqlite_autoincrement=True,
)

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, primary_key=True),
    sa.Column("sequence", INTEGER, sa.ForeignKey("jobs.sequence"), primary_key=True, autoincrement=False, index=True),
    sqlite_with_rowid=False,
)
"""Jobs by their labels, which no database can index where a job has them."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("number", INTEGER, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sqlite_with_rowid=False,  # the events of a job lie side by side, in order
)

standing = sa.Table(
    "standing",
    metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("subject", NAME, primary_key=True),
    sa.Column("step", INTEGER, primary_key=True, autoincrement=False),
    sa.Column("number", INTEGER, nullable=False),
    sqlite_with_rowid=False,
)
"""Numbers of the events that hold of a run as it stands, by what they tell of; see `history`."""

starts = sa.Table(
    "starts",
    metadata,
    sa.Column("number", INTEGER, primary_key=True, autoincrement=True),
    sa.Column("time", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)
"""Every start of a server on the database: the newest is the one that may write."""
