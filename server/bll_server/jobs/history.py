"""What the events of a job say of its run as it stands: what was told and then undone is not in it.

A run that goes back to a checkpoint tells the later steps again. So whatever is of a step beyond the checkpoint that it
goes on from is taken out, and what is told twice of one step counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from bll.events import (
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    RolledBack,
)
from bll_server.jobs.records import Job, JobEvent, StateChange
from bll_server.jobs.states import State

T = TypeVar("T")


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


@dataclass
class History:
    """A job's events, taken in one after the other."""

    progress: dict[int, dict[int, BlockProgress]] = field(default_factory=dict)
    """By block and step."""
    evaluations: dict[tuple[str, int], Evaluation] = field(default_factory=dict)
    """By split and step."""
    checkpoints: dict[int, datetime] = field(default_factory=dict)
    """When each was saved, by step."""
    placed: BlocksPlaced | None = None
    waiting: dict[int, BlockWaiting] = field(default_factory=dict)
    """By block."""

    @classmethod
    def of(cls, events: Iterable[JobEvent]) -> History:
        """What has come of `events`, which are all of a job's, in order."""
        history = cls()
        for event in events:
            history.take(event)
        return history

    def take(self, event: JobEvent) -> None:
        """Take in the next event."""
        match event.event:
            case BlockProgress(block=block, step=step) as told:
                self.progress.setdefault(block, {})[step] = told
            case Evaluation(split=split, step=step) as told:
                self.evaluations[split, step] = told
            case CheckpointSaved(step=step):
                self.checkpoints[step] = event.time
            case BlocksPlaced() as told:
                self.placed = told
            case BlockWaiting(block=block, ended=True):
                self.waiting.pop(block, None)
            case BlockWaiting(block=block) as told:
                self.waiting[block] = told
            case RolledBack(step=step):
                self._go_back(step)
            case CheckpointDamaged(fallback_step=step):
                self._go_back(step)
            case StateChange(state=State.STARTING):
                self._go_back(max(self.checkpoints, default=0))
            case StateChange():
                self.waiting.clear()

    def series(self, most: int) -> dict[int, list[BlockProgress]]:
        """At most `most` reports of each block, in order, evenly spread from the first to the last."""
        return {block: spread(list(told.values()), most) for block, told in sorted(self.progress.items())}

    def blocks(self, job: Job) -> list[BlockStatus]:
        """How each block of `job` stands."""
        return [self._status(job, block) for block in range(job.plan.num_blocks)]

    def _go_back(self, step: int) -> None:
        for told in self.progress.values():
            for later in [s for s in told if s > step]:
                del told[later]
        self.evaluations = {key: told for key, told in self.evaluations.items() if key[1] <= step}
        self.checkpoints = {saved: time for saved, time in self.checkpoints.items() if saved <= step}
        self.waiting.clear()

    def _status(self, job: Job, block: int) -> BlockStatus:
        runs = job.state in (State.RUNNING, State.PAUSING, State.CANCELLING)
        workers = self.placed.workers if self.placed and runs else ()
        worker = next((number for number, worker in enumerate(workers) if block in worker.blocks), None)
        devices = job.plan.config.executor.devices
        told = self.progress.get(block)
        progress = told[max(told)] if told else None
        waiting = self.waiting.get(block)
        saved = max(self.checkpoints, default=0)
        return BlockStatus(
            block=block,
            state=_state(job, runs, progress, waiting),
            device=devices[block if len(devices) > 1 else 0],
            worker=worker,
            cpus=workers[worker].cpus if worker is not None else (),
            progress=progress,
            waiting=waiting,
            checkpoint_step=saved,
            checkpoint_time=self.checkpoints.get(saved),
        )


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, in order, evenly spread from the first to the last; of one, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _state(job: Job, runs: bool, progress: BlockProgress | None, waiting: BlockWaiting | None) -> BlockState:
    if progress and progress.step >= job.total_steps:
        return BlockState.DONE
    if not runs:
        return BlockState.IDLE
    return BlockState.WAITING if waiting else BlockState.TRAINING
