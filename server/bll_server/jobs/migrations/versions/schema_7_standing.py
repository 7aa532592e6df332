"""Which events hold of a run as it stands, so that nobody has to read them all."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from bll_server.jobs.schema import INTEGER, NAME

revision, down_revision = "7", "6"

_EVENTS = sa.text("SELECT number, payload FROM events WHERE job_id = :job_id ORDER BY number")


def upgrade() -> None:
    table = op.create_table(
        "standing",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id"), primary_key=True),
        sa.Column("subject", NAME, primary_key=True),
        sa.Column("step", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("number", INTEGER, nullable=False),
        sqlite_with_rowid=False,
    )
    connection = op.get_bind()
    for job_id in connection.execute(sa.text("SELECT job_id FROM jobs")).scalars().all():
        standing: dict[tuple[str, int], int] = {}
        for number, payload in connection.execute(_EVENTS, {"job_id": job_id}):
            _take(standing, number, json.loads(payload))
        told = [
            {"job_id": job_id, "subject": subject, "step": step, "number": number}
            for (subject, step), number in standing.items()
        ]
        op.bulk_insert(table, told)


def _take(standing: dict[tuple[str, int], int], number: int, event: dict[str, Any]) -> None:
    match event:
        case {"event": "BlockProgress", "block": block, "step": step}:
            standing[f"progress {block}", step] = number
        case {"event": "Evaluation", "split": split, "step": step}:
            standing[f"evaluation {split}", step] = number
        case {"event": "CheckpointSaved", "step": step}:
            standing["checkpoint", step] = number
        case {"event": "BlocksPlaced"}:
            standing["placed", 0] = number
        case {"event": "BlockWaiting", "block": block, "ended": True}:
            standing.pop((f"waiting {block}", 0), None)
        case {"event": "BlockWaiting", "block": block}:
            standing[f"waiting {block}", 0] = number
        case {"event": "RolledBack", "step": step} | {"event": "CheckpointDamaged", "fallback_step": step}:
            _go_back(standing, step)
        case {"event": "StateChange", "state": "starting"}:
            _go_back(standing, max((step for subject, step in standing if subject == "checkpoint"), default=0))
        case {"event": "StateChange"}:
            _stop_waiting(standing)


def _go_back(standing: dict[tuple[str, int], int], to_step: int) -> None:
    for subject, step in [key for key in standing if key[1] > to_step]:
        del standing[subject, step]
    _stop_waiting(standing)


def _stop_waiting(standing: dict[tuple[str, int], int]) -> None:
    for key in [key for key in standing if key[0].startswith("waiting ")]:
        del standing[key]
