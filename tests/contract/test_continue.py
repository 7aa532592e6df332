"""With recovery `continue`, the blocks of a lost worker go on alone, and everything comes to its end."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bll.choices import ExecutorName, Recovery
from bll.config import TrainingConfig
from bll.errors import BlockFailed
from bll.events import BlockContinued, BlockProgress, CheckpointSaved, Event, RunEnded
from bll.lineage import Continuation
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training

SPEC: dict[str, Any] = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [32, 32, 32], "dropout": 0.1},
    "blocks": {"num_blocks": 3},
    "epochs": 6,
    "batch_size": 64,
}
"""20 steps an epoch."""
CHAIN = {"backward": {"twin": "chain", "delay_steps": 2}, "latent": {"readout": "next_layer"}}

FOUR = {"network": {"architecture": "mlp", "widths": [32] * 4}, "blocks": {"num_blocks": 4}}


def plan_of(values: dict[str, Any] | None = None, **executor: Any) -> Plan:
    config = from_dict(TrainingConfig, SPEC | (values or {}))
    options = {"name": ExecutorName.PROCESSES, "recovery": Recovery.CONTINUE, "max_restarts": 20, **executor}
    return resolve(replace(config, executor=replace(config.executor, **options)))


def workers() -> dict[str, int]:
    """The process of each worker that lives, by its name."""
    return {p.name: p.pid for p in multiprocessing.active_children() if p.name.startswith("block") and p.pid}


def strike(name: str, number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    return lambda: os.kill(workers()[name], number)


def trained(training: Training, *, at: dict[int, Callable[[], None]]) -> list[Event]:
    """All events of a run; each action of `at` is taken once, when any block has done that many steps."""
    told, left = [], dict(at)
    for event in training.events():
        told.append(event)
        if isinstance(event, BlockProgress) and (due := [step for step in left if step <= event.step]):
            left.pop(due[0])()
    assert not left
    return told


def continued(events: list[Event]) -> list[BlockContinued]:
    return [event for event in events if isinstance(event, BlockContinued)]


def shared_memory() -> list[Path]:
    """Files of memory that this process shares: other processes of the machine have theirs."""
    return list(Path("/dev/shm").glob(f"pym-{os.getpid()}-*"))


@pytest.mark.parametrize(
    ("values", "executor"),
    [
        ({}, {"messages_in_flight": 1}),
        (CHAIN, {"checkpoint_steps": 7}),
        ({"loss": {"span": 2}}, {}),
        (
            CHAIN | {"network": {"architecture": "mlp", "widths": [32] * 4}, "blocks": {"num_blocks": 4}},
            {"num_workers": 2},
        ),
    ],
    ids=["direct", "chain_and_next_layer", "joint", "two_blocks_a_worker"],
)
def test_a_run_whose_workers_are_killed_at_random_comes_to_its_end(
    values: dict[str, Any], executor: dict[str, Any], tmp_path: Path
) -> None:
    plan, choice = plan_of(values, **executor), random.Random(3)
    training = Training(plan, tmp_path)

    def kill() -> None:
        os.kill(choice.choice(sorted(workers().values())), signal.SIGKILL)

    events = trained(training, at=dict.fromkeys(sorted(choice.sample(range(5, plan.total_steps - 20), 4)), kill))
    losses = continued(events)
    assert len({event.cause for event in losses}) == 4  # each names its process
    assert all(0 <= event.from_step <= event.step for event in losses)
    assert events[-1] == RunEnded(plan.total_steps, finished=True)
    for block in range(plan.num_blocks):
        assert max(e.step for e in events if isinstance(e, BlockProgress) and e.block == block) == plan.total_steps
    saved = [event.step for event in events if isinstance(event, CheckpointSaved)]
    every = plan.config.executor.checkpoint_steps
    assert saved == [*range(every, plan.total_steps, every), plan.total_steps]
    model = training.model()
    assert model.evaluate("validation").mixture.accuracy > 0.8
    assert model.continuations == tuple(Continuation(e.block, e.step, e.from_step) for e in losses)
    assert workers() == {}
    assert shared_memory() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_only_the_lost_block_is_started_again(number: signal.Signals, tmp_path: Path) -> None:
    plan, seen = plan_of(heartbeat_seconds=1.0), list[dict[str, int]]()

    def stop_block_1() -> None:
        seen.append(workers())
        os.kill(workers()["block-1"], number)

    events = trained(Training(plan, tmp_path), at={30: stop_block_1, 110: lambda: seen.append(workers())})
    (loss,) = continued(events)
    assert (loss.block, loss.restart) == (1, 1)
    assert ("SIGKILL" if number is signal.SIGKILL else "no sign of life for 1 seconds") in loss.cause
    before, after = seen
    assert {name for name in before if before[name] != after[name]} == {"block-1"}


def test_a_block_that_keeps_dying_fails_the_run_by_name(tmp_path: Path) -> None:
    plan = plan_of({"epochs": 10_000}, max_restarts=0, checkpoint_steps=1_000_000)
    with pytest.raises(BlockFailed, match=r"block 2: its process \(pid \d+\) was killed by SIGKILL") as caught:
        trained(Training(plan, tmp_path), at={10: strike("block-2")})
    assert caught.value.block == 2
    assert workers() == {}


def test_what_a_cut_has_come_through_stays_with_it_over_a_pause(tmp_path: Path) -> None:
    plan = plan_of(CHAIN)
    training = Training(plan, tmp_path)
    losses = continued(trained(training, at={25: strike("block-1"), 60: training.pause}))
    assert [(event.block, event.from_step) for event in losses] == [(1, 20)]
    losses += continued(trained(Training(plan, tmp_path), at={100: strike("block-0")}))
    model = Training(plan, tmp_path).model()
    assert [each.block for each in model.continuations] == [1, 0]
    manifest = json.loads((tmp_path / "checkpoints" / f"step-{plan.total_steps:09d}" / "manifest.json").read_text())
    assert manifest["continuations"] == [{"block": e.block, "step": e.step, "from_step": e.from_step} for e in losses]


def test_a_run_that_nothing_happens_to_has_the_bits_of_exact_recovery(tmp_path: Path) -> None:
    """Which says that slots are kept and given back without a difference."""

    def digests(folder_name: str, **executor: Any) -> list[str]:
        plan = plan_of(CHAIN, **executor)
        list(Training(plan, tmp_path / folder_name).events())
        folder = tmp_path / folder_name / "checkpoints" / f"step-{plan.total_steps:09d}"
        return list(json.loads((folder / "manifest.json").read_text())["blocks"])

    exact = digests("exact", name=ExecutorName.SEQUENTIAL, recovery=Recovery.EXACT)
    assert digests("continue", messages_in_flight=1) == exact
