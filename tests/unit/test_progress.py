"""When a block reports, and what it refuses to go on with."""

from __future__ import annotations

import pytest
import torch

from bll.config import TrainingConfig
from bll.errors import Diverged
from bll.losses import LocalLoss
from bll.plan import Plan
from bll.progress import ProgressMeter


def meter(steps_per_epoch: int) -> ProgressMeter:
    plan = Plan(TrainingConfig(), (), (1, 8, 8), ("a", "b"), steps_per_epoch, "")
    return ProgressMeter(2, plan)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_noticed_however_many_good_ones_follow(value: float) -> None:
    found = meter(10)
    for loss in (1.0, value, 1.0):
        found.add(LocalLoss(torch.tensor([loss]), torch.zeros(1, 2)), torch.tensor([0]))
    with pytest.raises(Diverged, match=r"block 2: the local loss is (nan|inf) at step 3"):
        found.check_finite(3)
