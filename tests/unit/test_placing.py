"""The placement that a run starts with: when steps are timed for it, and that this changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bll import placing
from bll.config import TrainingConfig
from bll.events import BlocksPlaced, CheckpointSaved
from bll.partition import resolve
from bll.placing import Placer
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training


def plan_of(**values: Any) -> Plan:
    network = {"architecture": "mlp", "widths": [16, 16, 16], "dropout": 0.2}
    small = {"data": {"name": "digits"}, "network": network, "latent": {"units": 4}, "blocks": {"num_blocks": 3}}
    base = {**small, "backward": {"twin": "chain", "delay_steps": 2}, "batch_size": 128, "epochs": 2}
    return resolve(from_dict(TrainingConfig, {**base, **values}))


@pytest.fixture
def slow_last(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the last of three blocks seem the slowest; the number of steps asked for, each time that they are timed."""
    asked: list[int] = []

    def step_times(plan: Plan, root: Path | None, steps: int) -> tuple[float, ...]:
        asked.append(steps)
        return (1.0, 1.0, 6.0)

    monkeypatch.setattr(placing, "step_times", step_times)
    return asked


def test_a_long_run_is_placed_by_the_time_that_its_blocks_take(slow_last: list[int]) -> None:
    plan = plan_of(epochs=1000)
    placement, told = Placer(plan, None).placed(2, 0)
    assert placement.workers == (range(2), range(2, 3))
    assert told.measured
    assert [worker.blocks for worker in told.workers] == [(0, 1), (2,)]
    assert [worker.share for worker in told.workers] == [0.25, 0.75]
    assert len(slow_last) == 1
    assert slow_last[0] <= 0.01 * plan.total_steps


def test_a_run_that_is_taken_up_again_or_moved_is_not_timed_again(slow_last: list[int]) -> None:
    plan = plan_of(epochs=1000)
    placer = Placer(plan, None)
    told = [placer.placed(workers, step)[1] for workers, step in ((2, 0), (2, plan.total_steps - 1), (3, 10))]
    assert all(each.measured for each in told)
    assert [each.step for each in told] == [0, plan.total_steps - 1, 10]
    assert len(slow_last) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_is_timed_where_there_is_nothing_to_choose(workers: int, slow_last: list[int]) -> None:
    _, told = Placer(plan_of(epochs=1000), None).placed(workers, 0)
    assert not told.measured
    assert slow_last == []
    assert sum(worker.share for worker in told.workers) == pytest.approx(1.0)


def test_nothing_is_timed_for_the_few_steps_of_a_short_run(slow_last: list[int]) -> None:
    assert not Placer(plan_of(), None).placed(2, 0)[1].measured
    plan = plan_of(epochs=1000)
    assert not Placer(plan, None).placed(2, plan.total_steps - 100)[1].measured
    assert slow_last == []


def test_timing_steps_changes_no_bit_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(executor={"name": "threads", "num_workers": 2})

    def files(name: str) -> list[bytes]:
        events = list(Training(plan, tmp_path / name).events())
        (told,) = [event for event in events if isinstance(event, BlocksPlaced)]
        assert told.measured == (name == "measured")
        assert any(isinstance(event, CheckpointSaved) for event in events)
        return [file.read_bytes() for file in sorted((tmp_path / name).rglob("*.safetensors"))]

    expected = files("by_flops")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    monkeypatch.setattr(placing, "_LARGEST_SHARE", 1.0)
    assert files("measured") == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
