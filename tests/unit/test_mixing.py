"""The mixing schedules at their ends and in between."""

from __future__ import annotations

import pytest

from bll.choices import MixingSchedule
from bll.config import MixingConfig
from bll.mixing import Mixing


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (MixingSchedule.CONSTANT, [0.2, 0.2, 0.2, 0.2, 0.2]),
        (MixingSchedule.LINEAR, [0.2, 0.4, 0.6, 1.0, 1.0]),
        (MixingSchedule.COSINE, [0.2, 0.2 + 0.8 * 0.1464466, 0.6, 1.0, 1.0]),
        (MixingSchedule.STEP, [0.2, 0.2, 0.2, 1.0, 1.0]),
    ],
)
def test_schedule_goes_from_start_to_end_over_the_ramp(schedule: MixingSchedule, expected: list[float]) -> None:
    mixing = Mixing(MixingConfig(schedule, start=0.2, end=1.0, ramp_epochs=4))
    assert [mixing.at(epoch) for epoch in (0, 1, 2, 4, 9)] == pytest.approx(expected)


def test_auto_rises_only_after_epochs_in_which_the_agreement_grew() -> None:
    mixing = Mixing(MixingConfig(MixingSchedule.AUTO, start=0.0, end=1.0, ramp_epochs=2))
    found = []
    for epoch, agreements in enumerate([[0.1, 0.3], [0.3, 0.5], [0.4, 0.4], [0.2], [0.3], [0.9], [1.0]]):
        found.append(mixing.at(epoch))
        for agreement in agreements:
            mixing.observe(agreement)
        mixing.end_epoch()
    assert found == [0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_state_of_auto_goes_on_where_it_stopped() -> None:
    config = MixingConfig(MixingSchedule.AUTO, start=0.0, end=1.0, ramp_epochs=4)
    whole, first = Mixing(config), Mixing(config)
    for mixing in (whole, first):
        mixing.observe(0.1)
        mixing.end_epoch()
        mixing.observe(0.3)
    second = Mixing(config)
    second.restore(first.state())
    for mixing in (whole, second):
        mixing.observe(0.2)
        mixing.end_epoch()
    assert whole.at(2) == second.at(2) == 0.25
