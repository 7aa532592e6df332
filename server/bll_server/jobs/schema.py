"""The tables of the job database, and how those of older servers become them."""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA = 4
"""Kept as SQLite's user_version; raised when older servers would misread the tables."""

_metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("job_id", sa.Text, nullable=False, unique=True),
    # Since schema 2.
    sa.Column("owner", sa.Text, nullable=False, server_default="", index=True),
    # A repeated request_id finds its job here, by its owner too; the digest tells whether the body was the same.
    sa.Column("request_id", sa.Text, unique=True),
    sa.Column("request_digest", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("spec", sa.LargeBinary, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("total_steps", sa.Integer, nullable=False),
    sa.Column("total_epochs", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, index=True),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("failure", sa.JSON(none_as_null=True)),
    sa.Column("progress", sa.JSON(none_as_null=True)),
    sa.Column("validation", sa.JSON(none_as_null=True)),
    sa.Column("test", sa.JSON(none_as_null=True)),
    sa.Column("checkpoint_step", sa.Integer, nullable=False, default=0),
    sa.Column("model_version", sa.Text, nullable=False, default=""),
    sa.Column("create_time", sa.Float, nullable=False),
    sa.Column("start_time", sa.Float),
    sa.Column("end_time", sa.Float),
    sa.Column("last_event", sa.Integer, nullable=False, default=0),
    # Since schema 3. Their defaults are in the database, where older rows get them from.
    sa.Column("display_name", sa.Text, nullable=False, server_default=""),
    sa.Column("labels", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("revision", sa.Integer, nullable=False, server_default="1"),
    sa.Column("queue_time", sa.Float, nullable=False, server_default="0"),
    sqlite_autoincrement=True,  # a number is never given twice, so that page tokens stay true
)

# Lists in these orders are read a page at a time, and labels without the jobs that they are on.
sa.Index("ix_jobs_priority", jobs.c.priority, jobs.c.sequence)
sa.Index("ix_jobs_model_id", jobs.c.model_id, jobs.c.sequence)
sa.Index("ix_jobs_labels", jobs.c.labels)

events = sa.Table(
    "events",
    _metadata,
    sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sqlite_with_rowid=False,  # the events of a job lie side by side, in order
)

_MIGRATIONS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE jobs ADD COLUMN owner TEXT DEFAULT '' NOT NULL",
        "CREATE INDEX ix_jobs_owner ON jobs (owner)",
    ),
    3: (
        "ALTER TABLE jobs ADD COLUMN display_name TEXT DEFAULT '' NOT NULL",
        "ALTER TABLE jobs ADD COLUMN labels JSON DEFAULT '{}' NOT NULL",
        "ALTER TABLE jobs ADD COLUMN priority INTEGER DEFAULT '0' NOT NULL",
        "ALTER TABLE jobs ADD COLUMN revision INTEGER DEFAULT '1' NOT NULL",
        "ALTER TABLE jobs ADD COLUMN queue_time FLOAT DEFAULT '0' NOT NULL",
        "UPDATE jobs SET queue_time = create_time",
    ),
    4: (
        "CREATE INDEX ix_jobs_priority ON jobs (priority, sequence)",
        "CREATE INDEX ix_jobs_model_id ON jobs (model_id, sequence)",
        "CREATE INDEX ix_jobs_labels ON jobs (labels)",
    ),
}
"""What makes the tables of the schema before into those of each: the steps of `SCHEMA` and `jobs` are told twice, and a
test compares what comes of both."""


def prepare(connection: sa.Connection) -> None:
    """Make the tables, or bring those of an older server up to date, in the transaction of `connection`.

    Raises RuntimeError where a newer server made them.
    """
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if version > SCHEMA:
        raise RuntimeError(f"the job database was made by a newer server (schema {version}, known is {SCHEMA})")
    if version:
        for step in range(version + 1, SCHEMA + 1):
            for statement in _MIGRATIONS[step]:
                connection.exec_driver_sql(statement)
    else:
        _metadata.create_all(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
