"""How long a job may run, whether it gives way, and when it is deleted."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "8", "7"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("preemptible", sa.Boolean, nullable=False, server_default=sa.false()))
    for name in ("max_run_duration_s", "ttl_after_finish_s", "run_s"):
        op.add_column("jobs", sa.Column(name, sa.Float, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("expire_time", sa.Float))
    op.create_index("ix_jobs_expire_time", "jobs", ["expire_time"])
