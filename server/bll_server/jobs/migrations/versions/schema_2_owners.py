"""Jobs belong to somebody."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "2", "1"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("owner", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_jobs_owner", "jobs", ["owner"])
