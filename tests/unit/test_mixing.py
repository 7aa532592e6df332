"""The mixing schedules at their ends and in between."""

from __future__ import annotations

import pytest

from bll.config import MixingConfig, MixingSchedule
from bll.mixing import mixing_at


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
    config = MixingConfig(schedule, start=0.2, end=1.0, ramp_epochs=4)
    assert [mixing_at(config, epoch) for epoch in (0, 1, 2, 4, 9)] == pytest.approx(expected)
