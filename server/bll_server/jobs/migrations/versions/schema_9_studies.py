"""Studies, and which job is a trial of which."""

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER, JSON

revision, down_revision = "9", "8"


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("sequence", INTEGER, primary_key=True, autoincrement=True),
        sa.Column("study_id", sa.Text, nullable=False, unique=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, unique=True),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("max_parallel", INTEGER, nullable=False),
        sa.Column("create_time", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_studies_owner", "studies", ["owner", "sequence"])
    op.add_column("jobs", sa.Column("study", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("trial", INTEGER, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("parameters", JSON, nullable=False, server_default="{}"))
    op.create_index("ix_jobs_study", "jobs", ["study", "sequence", "state", "owner", "model_id", "priority"])
