"""Lists in other orders than that of creation, and by label."""

from alembic import op

revision, down_revision = "4", "3"


def upgrade() -> None:
    op.create_index("ix_jobs_priority", "jobs", ["priority", "sequence"])
    op.create_index("ix_jobs_model_id", "jobs", ["model_id", "sequence"])
    op.create_index("ix_jobs_labels", "jobs", ["labels"])
