"""Lists that read no row of a job which is not in them."""

import json

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER

revision, down_revision = "6", "5"

_LISTED = ("state", "owner", "model_id", "priority")


def upgrade() -> None:
    op.drop_index("ix_jobs_labels", "jobs")
    for first in _LISTED:
        op.drop_index(f"ix_jobs_{first}", "jobs")
        op.create_index(f"ix_jobs_{first}", "jobs", [first, "sequence", *(name for name in _LISTED if name != first)])
    labels = op.create_table(
        "labels",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("sequence", INTEGER, sa.ForeignKey("jobs.sequence"), primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_labels_sequence", "labels", ["sequence"])
    labelled = op.get_bind().execute(sa.text("SELECT sequence, labels FROM jobs WHERE labels != '{}'"))
    for sequence, told in labelled.all():
        op.bulk_insert(labels, [{"key": k, "value": v, "sequence": sequence} for k, v in json.loads(told).items()])
