"""What a caller writes on a job, and its place in the queue."""

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER, JSON

revision, down_revision = "3", "2"


def upgrade() -> None:
    # Defaults are in the database, where the jobs that are there get them from.
    op.add_column("jobs", sa.Column("display_name", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("labels", JSON, nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("priority", INTEGER, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("revision", INTEGER, nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("queue_time", sa.Float, nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET queue_time = create_time")
