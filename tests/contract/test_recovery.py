"""Whatever happens to its workers, a run ends with the bits of one that nothing happened to."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bll.choices import ExecutorName
from bll.config import TrainingConfig
from bll.errors import BlockFailed, CheckpointError
from bll.events import BlockProgress, CheckpointDamaged, CheckpointSaved, Event, RolledBack, RunEnded
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training

EXECUTORS = (ExecutorName.SEQUENTIAL, ExecutorName.THREADS, ExecutorName.PROCESSES)
every_executor = pytest.mark.parametrize("name", EXECUTORS)

SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [16, 16, 16], "dropout": 0.2},
    "blocks": {"num_blocks": 3},
    "backward": {"twin": "chain", "delay_steps": 3},
    "epochs": 2,
    "batch_size": 128,
}


def plan_of(name: ExecutorName, **executor: Any) -> Plan:
    config = from_dict(TrainingConfig, SPEC)
    options = {"checkpoint_steps": 5, "max_restarts": 10, **executor}
    return resolve(replace(config, executor=replace(config.executor, name=name, **options)))


def bits_of(plan: Plan, run_dir: Path) -> str:
    """SHA-256 over the last checkpoint: weights, statistics, moments, tables."""
    folder = run_dir / "checkpoints" / f"step-{plan.total_steps:09d}"
    content = b"".join((folder / f"block-{block}.safetensors").read_bytes() for block in range(plan.num_blocks))
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    plan = plan_of(ExecutorName.SEQUENTIAL)
    list(Training(plan, run_dir).events())
    return bits_of(plan, run_dir)


def watched(events: Iterator[Event], at: dict[int, Callable[[], None]]) -> list[Event]:
    """All events; each action of `at` is taken once, when a block has first done that many steps."""
    told, left = [], dict(at)
    for event in events:
        told.append(event)
        if isinstance(event, BlockProgress) and (due := [step for step in left if step <= event.step]):
            left.pop(due[0])()
    assert not left
    return told


def strike(block: int, number: signal.Signals) -> Callable[[], None]:
    def action() -> None:
        victims = [process for process in multiprocessing.active_children() if process.name == f"block-{block}"]
        for victim in victims:
            assert victim.pid is not None
            os.kill(victim.pid, number)

    return action


def roll_backs(events: list[Event]) -> list[RolledBack]:
    return [event for event in events if isinstance(event, RolledBack)]


@pytest.mark.parametrize("seed", [0, 1])
def test_workers_killed_at_random_steps_change_no_bit(seed: int, undisturbed: str, tmp_path: Path) -> None:
    draw = random.Random(seed)
    plan = plan_of(ExecutorName.PROCESSES)
    steps = sorted(draw.sample(range(1, plan.total_steps - 2), 3))
    at = {step: strike(draw.randrange(3), signal.SIGKILL) for step in steps}
    events = watched(Training(plan, tmp_path).events(), at)
    assert events[-1] == RunEnded(plan.total_steps, finished=True)
    assert bits_of(plan, tmp_path) == undisturbed
    saved = 0
    for event in events:
        if isinstance(event, CheckpointSaved):
            saved = event.step
        elif isinstance(event, RolledBack):
            assert event.step == saved, "more than the steps after the newest cut was lost"
            assert "was killed by SIGKILL" in event.cause
    assert 1 <= len(roll_backs(events)) <= 3  # a worker may have been at its end when it was struck
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_stopped_is_found_and_replaced(undisturbed: str, tmp_path: Path) -> None:
    plan = plan_of(ExecutorName.PROCESSES, heartbeat_seconds=1.0)
    events = watched(Training(plan, tmp_path).events(), {8: strike(1, signal.SIGSTOP)})
    assert any("gave no sign of life for 1 seconds" in event.cause for event in roll_backs(events))
    assert bits_of(plan, tmp_path) == undisturbed
    assert multiprocessing.active_children() == []


def test_a_block_that_dies_at_every_attempt_fails_the_run_by_name(tmp_path: Path) -> None:
    plan = plan_of(ExecutorName.PROCESSES, checkpoint_steps=1000, max_restarts=1)
    kill = strike(2, signal.SIGKILL)
    told: list[Event] = []

    def train() -> None:
        for event in Training(plan, tmp_path).events():
            told.append(event)
            if isinstance(event, BlockProgress):
                kill()

    with pytest.raises(BlockFailed, match=r"block 2: .* was killed by SIGKILL; it was the last of 2") as caught:
        train()
    assert caught.value.block == 2
    assert len(roll_backs(told)) == 1
    assert multiprocessing.active_children() == []


@every_executor
def test_a_run_that_is_paused_and_resumed_ends_with_the_same_bits(
    name: ExecutorName, undisturbed: str, tmp_path: Path
) -> None:
    plan = plan_of(name)
    training = Training(plan, tmp_path)
    steps = []
    for pause_at in (3, 12):
        end = watched(training.events(), {pause_at: training.pause})[-1]
        assert isinstance(end, RunEnded)
        assert not end.finished
        assert pause_at <= end.step < plan.total_steps
        assert multiprocessing.active_children() == []
        steps.append(end.step)
    assert steps == sorted(set(steps))
    assert list(training.events())[-1] == RunEnded(plan.total_steps, finished=True)
    assert bits_of(plan, tmp_path) == undisturbed


@every_executor
def test_a_cancelled_run_ends_at_once_and_could_go_on(name: ExecutorName, undisturbed: str, tmp_path: Path) -> None:
    plan = plan_of(name)
    training = Training(plan, tmp_path)
    threads_before = threading.active_count()
    events = watched(training.events(), {7: training.cancel})
    end = events[-1]
    assert isinstance(end, RunEnded)
    assert not end.finished
    assert end.step == max((event.step for event in events if isinstance(event, CheckpointSaved)), default=0)
    assert multiprocessing.active_children() == []
    assert threading.active_count() == threads_before
    assert list(training.events())[-1] == RunEnded(plan.total_steps, finished=True)
    assert bits_of(plan, tmp_path) == undisturbed


def test_cancelling_does_not_wait_for_a_worker_that_hangs(tmp_path: Path) -> None:
    plan = plan_of(ExecutorName.PROCESSES, heartbeat_seconds=0)
    training = Training(plan, tmp_path)
    struck: list[float] = []

    def stop_and_cancel() -> None:
        for block in range(3):
            strike(block, signal.SIGSTOP)()
        struck.append(time.monotonic())
        threading.Timer(0.05, training.cancel).start()

    events = watched(training.events(), {2: stop_and_cancel})
    assert events[-1] == RunEnded(0, finished=False)
    assert time.monotonic() - struck[0] < 5
    assert multiprocessing.active_children() == []


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(undisturbed: str, tmp_path: Path) -> None:
    plan = plan_of(ExecutorName.PROCESSES)
    training = Training(plan, tmp_path)
    watched(training.events(), {12: training.pause})
    newest = max((tmp_path / "checkpoints").iterdir())
    file = newest / "block-1.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    first, *rest = training.events()
    assert isinstance(first, CheckpointDamaged)
    assert str(file) in first.cause
    assert first.fallback_step < first.step
    assert rest[-1] == RunEnded(plan.total_steps, finished=True)
    assert bits_of(plan, tmp_path) == undisturbed


def test_a_damaged_checkpoint_without_another_is_an_error_that_names_it(tmp_path: Path) -> None:
    plan = plan_of(ExecutorName.SEQUENTIAL, checkpoints_kept=1)
    training = Training(plan, tmp_path)
    watched(training.events(), {12: training.pause})
    (only,) = (tmp_path / "checkpoints").iterdir()
    (only / "block-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{only.name}/block-2\.safetensors: cannot be read"):
        list(training.events())


@pytest.mark.parametrize("name", [ExecutorName.THREADS, ExecutorName.PROCESSES])
def test_a_run_that_moves_between_workers_ends_with_the_same_bits(
    name: ExecutorName, undisturbed: str, tmp_path: Path
) -> None:
    plan = plan_of(name, num_workers=1)
    training = Training(plan, tmp_path)
    seen = []

    def count() -> int:
        names = [thread.name for thread in threading.enumerate()]
        names += [process.name for process in multiprocessing.active_children()]
        return sum(name.startswith("block") for name in names)

    def move(num_workers: int) -> Callable[[], None]:
        def action() -> None:
            seen.append(count())
            training.place(num_workers)

        return action

    events = watched(training.events(), {2: move(3), 8: move(1), 14: move(2), 20: lambda: seen.append(count())})
    assert seen == [1, 3, 1, 2]
    assert [event for event in events if isinstance(event, RunEnded)] == [RunEnded(plan.total_steps, finished=True)]
    assert bits_of(plan, tmp_path) == undisturbed
