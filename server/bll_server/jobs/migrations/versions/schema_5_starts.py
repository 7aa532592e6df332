"""Servers that have started on the database."""

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER

revision, down_revision = "5", "4"


def upgrade() -> None:
    op.create_table(
        "starts",
        sa.Column("number", INTEGER, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
