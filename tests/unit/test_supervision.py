"""What a run does when workers are lost, by an executor that loses them as the test says."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from bll import checkpoint, supervision
from bll.choices import ExecutorName
from bll.config import TrainingConfig
from bll.errors import BlockFailed, CheckpointError, DataError, Diverged, InvalidConfig, WorkerLost
from bll.events import BlockContinued, BlocksPlaced, CheckpointDamaged, CheckpointSaved, Event, RolledBack, RunEnded
from bll.execution import ExecutorConfig
from bll.lineage import Continuation
from bll.plan import BlockPlan, Plan
from bll.supervision import Restarts, Supervisor
from bll.wiring import BlockEnded, BlockSaved, WorkerEvent, WorkerMissing
from bll.worker import Run


def plan(max_restarts: int = 3, checkpoints_kept: int = 2) -> Plan:
    """Two blocks, 40 steps, a checkpoint each ten."""
    executor = ExecutorConfig(
        ExecutorName.THREADS, checkpoint_steps=10, max_restarts=max_restarts, checkpoints_kept=checkpoints_kept
    )
    block = BlockPlan(0, (), 0, 1, (1,), 0)
    return Plan(TrainingConfig(executor=executor, epochs=2), (block,) * 2, (4,), ("a", "b"), 20, "")


class Executor:
    """Saves each cut, and comes to grief at the steps that it is given, once at each."""

    def __init__(self, *grief: tuple[int, Exception | WorkerMissing]) -> None:
        self.grief = list(grief)
        self.starts: list[int] = []
        self.workers: list[int] = []
        self.stopping = self.cancelled = False

    def launch(self, run: Run) -> None:
        self.run = run
        self.starts.append(run.start_step)
        self.workers.append(len(run.placement.workers))
        self.stopping = self.cancelled = False

    def events(self) -> Generator[WorkerEvent, None, None]:
        step, total = self.run.start_step, self.run.plan.total_steps
        while step < total and not self.stopping:
            if self.cancelled:
                return
            step += 1
            if self.grief and self.grief[0][0] == step:
                grief = self.grief.pop(0)[1]
                if isinstance(grief, Exception):
                    raise grief
                yield grief
            if step % 10 == 0:
                yield from self.saved(step)
        if step % 10 and step != self.run.start_step:
            yield from self.saved(step)
        for block in range(2):
            yield BlockEnded(block, step)

    def saved(self, step: int) -> Generator[WorkerEvent, None, None]:
        for block in range(2):
            tensors = {"step": torch.tensor(step)}
            yield BlockSaved(block, step, checkpoint.save_block(self.run.run_dir, step, block, tensors))

    def stop(self) -> None:
        self.stopping = True

    def cancel(self) -> None:
        self.cancelled = True


def supervised(executor: Executor, run_dir: Path, a_plan: Plan | None = None) -> Supervisor:
    return Supervisor(a_plan or plan(), run_dir, None, "config", make=lambda _: executor)


def but_placements(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, BlocksPlaced)]


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long restarts were put off; nobody waits."""
    told: list[float] = []
    monkeypatch.setattr(Supervisor, "_wait", lambda _, delay_s: told.append(delay_s))
    monkeypatch.setattr(supervision, "log", logging.getLogger("silent"))
    return told


def lost(block: int = 1, how: str = "was killed") -> WorkerLost:
    return WorkerLost(block, how)


def test_a_run_goes_on_from_the_newest_cut_and_says_from_where(tmp_path: Path) -> None:
    executor = Executor((5, lost()), (13, lost(0, "fell silent")))
    events = list(supervised(executor, tmp_path).events())
    assert executor.starts == [0, 0, 10]
    assert [event.step for event in events if isinstance(event, BlocksPlaced)] == executor.starts
    assert but_placements(events) == [
        RolledBack(0, 1, "was killed", 1),
        CheckpointSaved(10, 0),
        RolledBack(10, 0, "fell silent", 1),
        CheckpointSaved(20, 0),
        CheckpointSaved(30, 1),
        CheckpointSaved(40, 1),
        RunEnded(40, finished=True),
    ]


def missing(*came_in: Continuation) -> WorkerMissing:
    return WorkerMissing(lost(came_in[0].block), came_in)


def test_blocks_that_go_on_alone_are_told_and_stay_with_every_cut_that_they_are_in(
    tmp_path: Path, delays: list[float]
) -> None:
    first, *both = Continuation(1, 9, 0), Continuation(0, 21, 10), Continuation(1, 21, 20)
    executor = Executor((9, missing(first)), (18, missing(*both)))
    events = list(supervised(executor, tmp_path, plan(checkpoints_kept=4)).events())
    assert executor.starts == [0]
    assert delays == [0.0, 0.0]
    assert [event for event in events if isinstance(event, BlockContinued)] == [
        BlockContinued(1, 9, 0, "was killed", 1),
        BlockContinued(0, 21, 10, "was killed", 1),
        BlockContinued(1, 21, 20, "was killed", 1),
    ]
    # The cut of step 20 was taken before the blocks that had come further were lost.
    through = {step: checkpoint.continuations(tmp_path, step, "config") for step in (10, 20, 30, 40)}
    assert through == {10: (first,), 20: (first,), 30: (first, *both), 40: (first, *both)}


def test_a_cut_that_is_gone_back_to_takes_its_lineage_along(tmp_path: Path) -> None:
    before, after = Continuation(1, 9, 0), Continuation(1, 12, 10)
    executor = Executor((9, missing(before)), (12, missing(after)), (15, lost()))
    list(supervised(executor, tmp_path).events())
    assert executor.starts == [0, 10]
    assert checkpoint.continuations(tmp_path, 40, "config") == (before,)


def test_a_block_that_keeps_going_on_alone_fails_the_run_in_the_end(tmp_path: Path) -> None:
    executor = Executor(*[(step, missing(Continuation(1, step, 0))) for step in (2, 3, 4, 5)])
    with pytest.raises(BlockFailed, match="block 1: was killed; it was the last of 4"):
        list(supervised(executor, tmp_path).events())


def test_a_block_that_keeps_dying_fails_the_run_by_name(tmp_path: Path, delays: list[float]) -> None:
    executor = Executor(*[(15, lost(1, f"death {number}")) for number in range(9)])
    told: list[Event] = []
    with pytest.raises(
        BlockFailed, match="block 1: death 3; it was the last of 4 since a checkpoint was sav"
    ) as caught:
        told.extend(supervised(executor, tmp_path).events())
    assert caught.value.block == 1
    assert not isinstance(caught.value, WorkerLost)
    assert [event.restart for event in told if isinstance(event, RolledBack)] == [1, 2, 3]
    assert executor.starts == [0, 10, 10, 10]
    assert delays == [0.0, 0.5, 1.0]


def test_a_new_cut_makes_up_for_restarts(tmp_path: Path, delays: list[float]) -> None:
    executor = Executor(*[(step, lost()) for step in (1, 2, 3, 11, 12, 13, 21, 22, 23)])
    assert list(supervised(executor, tmp_path).events())[-1] == RunEnded(40, finished=True)
    assert delays == [0.0, 0.5, 1.0] * 3


def test_without_restarts_the_first_loss_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(BlockFailed, match=r"^block 1: was killed$"):
        list(supervised(Executor((5, lost())), tmp_path, plan(max_restarts=0)).events())


def test_delays_double_up_to_a_bound() -> None:
    restarts = Restarts(1000)
    assert [restarts.after(lost()) for _ in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    "error", [Diverged("nan"), DataError("gone"), CheckpointError("bad"), BlockFailed(0, "raised")]
)
def test_an_error_of_the_run_itself_is_not_retried(error: Exception, tmp_path: Path) -> None:
    executor = Executor((5, error))
    with pytest.raises(type(error)) as caught:
        list(supervised(executor, tmp_path).events())
    assert caught.value is error
    assert executor.starts == [0]


def test_a_paused_run_goes_on_where_it_was(tmp_path: Path) -> None:
    executor = Executor()
    supervisor = supervised(executor, tmp_path)
    first = []
    for event in supervisor.events():
        first.append(event)
        if event == CheckpointSaved(20, 0):
            supervisor.pause()
    assert first[-1] == RunEnded(20, finished=False)
    assert list(supervisor.events())[-1] == RunEnded(40, finished=True)
    assert executor.starts == [0, 20]


def test_a_pause_before_the_start_holds_the_run_back_once(tmp_path: Path) -> None:
    executor = Executor()
    supervisor = supervised(executor, tmp_path)
    supervisor.pause()
    assert list(supervisor.events()) == [RunEnded(0, finished=False)]
    assert executor.starts == []
    assert list(supervisor.events())[-1] == RunEnded(40, finished=True)


def test_a_cancelled_run_ends_at_its_newest_cut(tmp_path: Path) -> None:
    supervisor = supervised(Executor(), tmp_path)
    events = []
    for event in supervisor.events():
        events.append(event)
        if event == CheckpointSaved(10, 0):
            supervisor.cancel()
    assert but_placements(events) == [CheckpointSaved(10, 0), RunEnded(10, finished=False)]
    assert list(supervisor.events())[-1] == RunEnded(40, finished=True)


def test_a_worker_lost_on_the_way_to_a_pause_is_not_replaced(tmp_path: Path) -> None:
    executor = Executor((15, lost()))
    supervisor = supervised(executor, tmp_path)
    executor.stop = lambda: None  # type: ignore[method-assign]  # the marker is still on its way
    events = []
    for event in supervisor.events():
        events.append(event)
        if event == CheckpointSaved(10, 0):
            supervisor.pause()
    assert but_placements(events)[1:] == [RolledBack(10, 1, "was killed", 1), RunEnded(10, finished=False)]
    assert executor.starts == [0]


def test_a_damaged_cut_is_told_and_the_one_before_is_taken(tmp_path: Path) -> None:
    executor = Executor()
    supervisor = supervised(executor, tmp_path)
    for event in supervisor.events():
        if event == CheckpointSaved(20, 0):
            supervisor.pause()
    (tmp_path / "checkpoints" / "step-000000020" / "block-1.safetensors").write_bytes(b"")
    damaged, *rest = but_placements(supervisor.events())
    assert isinstance(damaged, CheckpointDamaged)
    assert (damaged.step, damaged.fallback_step) == (20, 10)
    assert "step-000000020/block-1.safetensors: SHA-256 must be" in damaged.cause
    assert rest[0] == CheckpointSaved(20, 0)
    assert executor.starts == [0, 10]


def test_as_many_cuts_stay_as_were_asked_for(tmp_path: Path) -> None:
    list(supervised(Executor(), tmp_path, plan(checkpoints_kept=3)).events())
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000020", "step-000000030", "step-000000040"]


def test_a_run_moves_to_other_workers_at_the_next_marker(tmp_path: Path) -> None:
    executor = Executor((25, lost()))
    supervisor = supervised(executor, tmp_path)
    supervisor.place(1)
    events = []
    for event in supervisor.events():
        events.append(event)
        if event in (CheckpointSaved(10, 0), CheckpointSaved(30, 1)):
            supervisor.place(2 if event.step == 10 else 1)
    assert executor.starts == [0, 10, 20, 30]
    assert executor.workers == [1, 2, 2, 1]  # the third replaces the lost ones
    assert events[-1] == RunEnded(40, finished=True)


@pytest.mark.parametrize("workers", [0, 3, True, 1.5])
def test_a_number_of_workers_that_there_cannot_be_is_refused(workers: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="num_workers: must be a whole number between 1 and 2, got"):
        supervised(Executor(), tmp_path).place(workers)
