"""Jobs and their numbered events."""

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER, JSON, NAME

revision, down_revision = "1", None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.Text, nullable=False, unique=True),
        sa.Column("request_id", sa.Text, unique=True),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("model_id", NAME, nullable=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("total_steps", INTEGER, nullable=False),
        sa.Column("total_epochs", INTEGER, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("failure", JSON),
        sa.Column("progress", JSON),
        sa.Column("validation", JSON),
        sa.Column("test", JSON),
        sa.Column("checkpoint_step", INTEGER, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sa.Column("start_time", sa.Float),
        sa.Column("end_time", sa.Float),
        sa.Column("last_event", INTEGER, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_state", "jobs", ["state"])
    op.create_table(
        "events",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
        sa.Column("number", INTEGER, primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
