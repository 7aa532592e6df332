"""What the events of a job say of its run as it stands: what was told and then undone is not in it.

A run that goes back to a checkpoint tells the later steps again. So whatever is of a step beyond the checkpoint that it
goes on from is taken out, and what is told twice of one step counts once. The table `standing` keeps the numbers of the
events that hold, by what they tell of (`progress 3`, `evaluation test`) and their step. It is written with the events:
however long a job has run, as much is read of it as is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

import sqlalchemy as sa

from bll.events import (
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    RolledBack,
)
from bll_server.jobs import rows
from bll_server.jobs.database import Database
from bll_server.jobs.records import Job, JobEvent, RunEvent, StateChange
from bll_server.jobs.schema import INTEGER, events, standing
from bll_server.jobs.states import State

T = TypeVar("T")

_CHECKPOINT, _PLACED = "checkpoint", "placed"
_PROGRESS, _EVALUATION, _WAITING = "progress ", "evaluation ", "waiting "
"""Before the number of a block, the name of a split, the number of a block."""


class BlockState(StrEnum):
    """What a block is doing. `training.proto` has the same names and says what they mean."""

    IDLE = "idle"
    TRAINING = "training"
    WAITING = "waiting"
    DONE = "done"


@dataclass(frozen=True)
class BlockStatus:
    """One block of a job, by the newest that was told of it."""

    block: int
    state: BlockState
    device: str
    worker: int | None
    """The place of the worker that runs it, from 0; None where none does."""
    cpus: tuple[int, ...]
    """The cores that the worker keeps to; empty: any."""
    progress: BlockProgress | None
    waiting: BlockWaiting | None
    """The neighbour that it has waited long for, and still does."""
    checkpoint_step: int
    """Steps after which it is safe on disk; 0 before the first checkpoint."""
    checkpoint_time: datetime | None


def take(connection: sa.Connection, job_id: str, number: int, event: StateChange | RunEvent) -> None:
    """Take in event `number` of the job, in the transaction that writes it."""
    match event:
        case BlockProgress(block=block, step=step):
            _stand(connection, job_id, f"{_PROGRESS}{block}", step, number)
        case Evaluation(split=split, step=step):
            _stand(connection, job_id, f"{_EVALUATION}{split}", step, number)
        case CheckpointSaved(step=step):
            _stand(connection, job_id, _CHECKPOINT, step, number)
        case BlocksPlaced():
            _stand(connection, job_id, _PLACED, 0, number)
        case BlockWaiting(block=block, ended=True):
            _fall(connection, job_id, standing.c.subject == f"{_WAITING}{block}")
        case BlockWaiting(block=block):
            _stand(connection, job_id, f"{_WAITING}{block}", 0, number)
        case RolledBack(step=step) | CheckpointDamaged(fallback_step=step):
            _go_back(connection, job_id, step)
        case StateChange(state=State.STARTING):
            newest = sa.select(sa.func.max(standing.c.step)).where(*_of(job_id, _CHECKPOINT))
            _go_back(connection, job_id, connection.execute(newest).scalar() or 0)
        case StateChange():
            _fall(connection, job_id, _all(_WAITING))


class History:
    """What holds of one job."""

    def __init__(self, database: Database, job: Job) -> None:
        self._database = database
        self._job = job

    @property
    def job_id(self) -> str:
        return self._job.job_id

    def series(self, most: int) -> dict[int, list[BlockProgress]]:
        """At most `most` reports of each block, in order: all, or such as are evenly spread over the steps to the
        last."""
        with self._database.read() as connection:
            told = {block: self._spread(connection, block, most) for block in range(self._job.plan.num_blocks)}
        return {block: reports for block, reports in told.items() if reports}

    def evaluations(self) -> list[Evaluation]:
        """All of them, as they came."""
        query = _told(standing.c.job_id == self._job.job_id, _all(_EVALUATION)).order_by(standing.c.number)
        with self._database.read() as connection:
            return _read(connection, query, Evaluation)

    def blocks(self) -> list[BlockStatus]:
        """How each block stands."""
        with self._database.read() as connection:
            placed, saved = self._newest(connection, _PLACED), self._newest(connection, _CHECKPOINT)
            return [self._status(connection, block, placed, saved) for block in range(self._job.plan.num_blocks)]

    def _spread(self, connection: sa.Connection, block: int, most: int) -> list[BlockProgress]:
        told = _of(self._job.job_id, f"{_PROGRESS}{block}")
        query = sa.select(standing.c.step).where(*told).order_by(standing.c.step).limit(most + 1)
        steps: Sequence[int] = connection.execute(query).scalars().all()
        if not steps:
            return []
        held = standing.c.step >= steps[0]
        if len(steps) > most:
            last: int = connection.execute(sa.select(sa.func.max(standing.c.step)).where(*told)).scalar_one()
            held = standing.c.step.in_(_strides(told, steps[0], last, most) if most > 1 else [last])
        return _read(connection, _told(*told, held).order_by(standing.c.step), BlockProgress)

    def _newest(self, connection: sa.Connection, subject: str) -> JobEvent | None:
        """The event of the last step of `subject`."""
        query = _told(*_of(self._job.job_id, subject)).order_by(standing.c.step.desc()).limit(1)
        row = connection.execute(query).first()
        return rows.event(row) if row else None

    def _status(
        self, connection: sa.Connection, block: int, placed: JobEvent | None, saved: JobEvent | None
    ) -> BlockStatus:
        job = self._job
        runs = job.state in (State.RUNNING, State.PAUSING, State.CANCELLING)
        workers = placed.event.workers if placed and isinstance(placed.event, BlocksPlaced) and runs else ()
        worker = next((number for number, worker in enumerate(workers) if block in worker.blocks), None)
        devices = job.plan.config.executor.devices
        told = self._newest(connection, f"{_PROGRESS}{block}")
        waits = self._newest(connection, f"{_WAITING}{block}")
        progress = told.event if told and isinstance(told.event, BlockProgress) else None
        waiting = waits.event if waits and isinstance(waits.event, BlockWaiting) else None
        return BlockStatus(
            block=block,
            state=_state(job, runs, progress, waiting),
            device=devices[block if len(devices) > 1 else 0],
            worker=worker,
            cpus=workers[worker].cpus if worker is not None else (),
            progress=progress,
            waiting=waiting,
            checkpoint_step=saved.event.step if saved and isinstance(saved.event, CheckpointSaved) else 0,
            checkpoint_time=saved.time if saved else None,
        )


def _state(job: Job, runs: bool, progress: BlockProgress | None, waiting: BlockWaiting | None) -> BlockState:
    if progress and progress.step >= job.total_steps:
        return BlockState.DONE
    if not runs:
        return BlockState.IDLE
    return BlockState.WAITING if waiting else BlockState.TRAINING


# The table


def _of(job_id: str, subject: str) -> tuple[sa.ColumnElement[bool], ...]:
    return standing.c.job_id == job_id, standing.c.subject == subject


def _all(subjects: str) -> sa.ColumnElement[bool]:
    """All subjects that begin so: a range, which the key finds."""
    after = subjects[:-1] + chr(ord(subjects[-1]) + 1)
    return (standing.c.subject >= subjects) & (standing.c.subject < after)


def _told(*held: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The events of the rows that are `held`."""
    same = sa.and_(events.c.job_id == standing.c.job_id, events.c.number == standing.c.number)
    return sa.select(events.c.number, events.c.time, events.c.payload).join(standing, same).where(*held)


def _read(connection: sa.Connection, query: sa.Select[Any], kind: type[T]) -> list[T]:
    told = (rows.event(row).event for row in connection.execute(query))
    return [event for event in told if isinstance(event, kind)]


def _strides(told: Sequence[sa.ColumnElement[bool]], first: int, last: int, most: int) -> sa.CompoundSelect[Any]:
    """`first`, the first step a stride further, and so on, and `last`: at most `most` steps, each found by the key."""
    stride = math.ceil((last - first) / (most - 1))
    taken = sa.select(sa.literal(first, INTEGER).label("step")).cte("taken", recursive=True)
    further = sa.select(sa.func.min(standing.c.step)).where(*told, standing.c.step >= taken.c.step + stride)
    taken = taken.union_all(sa.select(further.correlate(taken).scalar_subquery()).where(taken.c.step <= last - stride))
    return sa.union(sa.select(taken.c.step), sa.select(sa.literal(last, INTEGER)))


def _stand(connection: sa.Connection, job_id: str, subject: str, step: int, number: int) -> None:
    connection.execute(standing.delete().where(*_of(job_id, subject), standing.c.step == step))
    connection.execute(standing.insert().values(job_id=job_id, subject=subject, step=step, number=number))


def _fall(connection: sa.Connection, job_id: str, which: sa.ColumnElement[bool]) -> None:
    connection.execute(standing.delete().where(standing.c.job_id == job_id, which))


def _go_back(connection: sa.Connection, job_id: str, step: int) -> None:
    _fall(connection, job_id, standing.c.step > step)
    _fall(connection, job_id, _all(_WAITING))
