"""When a block reports, and what it refuses to go on with."""

from __future__ import annotations

import math

import pytest
import torch

from bll.config import LossConfig, TrainingConfig
from bll.diagnostics import Step
from bll.errors import Diverged
from bll.families import Bernoulli
from bll.losses import LocalLoss, Objective
from bll.plan import Plan
from bll.progress import ProgressMeter
from bll.twins import ClassTable
from bll.wiring import Lines, Links, WorkerEvent


def meter(steps_per_epoch: int, target_shape: tuple[int, ...] = ()) -> ProgressMeter:
    plan = Plan(TrainingConfig(), (), (1, 8, 8), ("a", "b"), steps_per_epoch, "", target_shape=target_shape)
    lines = Lines(2, Links(None, None, None, None, list[WorkerEvent]().append, lambda: False))
    return ProgressMeter(2, plan, lines, torch.device("cpu"))


@pytest.mark.parametrize(
    ("steps_per_epoch", "expected"),
    [
        (421, [42, 84, 126, 168, 210, 252, 294, 336, 378, 421, 463]),
        (20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        (3, [1, 2, 3, 4, 5, 6]),
        (1, [1, 2, 3]),
    ],
)
def test_a_block_reports_ten_times_an_epoch_and_at_its_end(steps_per_epoch: int, expected: list[int]) -> None:
    found = meter(steps_per_epoch)
    assert [step for step in range(1, expected[-1] + 1) if found.is_due(step)] == expected


@pytest.mark.parametrize("target_shape", [(), (3,)])
def test_throughput_counts_rows_and_accuracy_counts_sites(
    target_shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", iter([0.0, 2.0, 2.0]).__next__)
    found = meter(10, target_shape)
    sites = 4 * math.prod(target_shape)
    targets = torch.arange(sites) % 2
    alpha, table = torch.zeros(sites, 1, 5), ClassTable(torch.zeros(2, 1, 5), torch.tensor([1.0, 0.0]))
    objective = Objective(Bernoulli(), LossConfig())
    local = objective.loss(alpha, table, targets, 1.0)
    found.add(local, targets)
    taken = Step(1, alpha, alpha, table, targets, local, 1.0, local.loss_B.mean())
    report = found.report(taken, objective, 3)
    assert report.samples_per_s == 4 / 2.0
    assert (report.accuracy, report.staleness_steps) == (0.5, 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_noticed_however_many_good_ones_follow(value: float) -> None:
    found = meter(10)
    for loss in (1.0, value, 1.0):
        found.add(LocalLoss(torch.tensor([loss]), torch.zeros(1, 2)), torch.tensor([0]))
    with pytest.raises(Diverged, match=r"block 2: the local loss is (nan|inf) at step 3"):
        found.check_finite(3)
