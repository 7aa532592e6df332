"""How far a job is, and how long it will take, by what its runner tells."""

from __future__ import annotations

import random

import pytest

from bll.config import TrainingConfig
from bll.events import BlockProgress, RolledBack, to_json
from bll.plan import BlockPlan, Plan
from bll_server.jobs.records import Progress
from bll_server.jobs.report import Report

PLAN = Plan(TrainingConfig(epochs=10), (BlockPlan(0, (), 0, 0, (1,), 0),) * 2, (4,), ("a", "b"), 20, "")


def progress(block: int, step: int, samples_per_s: float = 100.0) -> str:
    return to_json(BlockProgress(block, 0, step, 1.0, 0.1, 0.5, 0.2, 0.7, 1.0, samples_per_s, 0.0))


class Run:
    """A run of two blocks by a clock of its own: a step takes a second, an evaluation after each epoch five."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int = 0) -> None:
        self.now = 1000.0
        self.step = step
        self.report = Report(PLAN)
        self._random = random.Random(0)
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def go_on(self, steps: int = 2) -> Progress:
        """To the next report of both blocks, whose own throughput is anything."""
        self.step += steps
        self.now += steps
        for block in range(2):
            self.report.hear(progress(block, self.step, self._random.uniform(0.2, 5) * PLAN.config.batch_size))
        found = self.report.progress()
        assert found is not None
        if self.step % PLAN.steps_per_epoch == 0:
            self.now += 5.0
        return found

    @property
    def left_s(self) -> float:
        """What the rest will truly take."""
        left = PLAN.total_steps - self.step
        return left + 5.0 * ((left - 1) // PLAN.steps_per_epoch)


def test_after_a_roll_back_a_job_is_as_far_as_its_blocks_are_again() -> None:
    report = Report(PLAN)
    for block in range(2):
        report.hear(progress(block, 18))
    before = report.progress()
    assert before is not None
    assert before.step == 18
    event = RolledBack(10, 1, "was killed", 1)
    assert report.hear(to_json(event)) == event
    assert report.progress() is None
    report.hear(progress(0, 14))
    assert report.progress() is None
    report.hear(progress(1, 12))
    after = report.progress()
    assert after is not None
    assert after.step == 12


@pytest.mark.parametrize("resumed_at", [0, 100])
def test_the_time_that_is_left_is_steady_and_right_whatever_blocks_say_of_themselves(
    monkeypatch: pytest.MonkeyPatch, resumed_at: int
) -> None:
    run = Run(monkeypatch, resumed_at)
    while run.step < resumed_at + 2 * PLAN.steps_per_epoch:
        run.go_on()
    while run.step < PLAN.total_steps - 2:
        found = run.go_on()
        assert found.remaining_s is not None
        assert found.remaining_s == pytest.approx(run.left_s, abs=10)  # of up to 200: one evaluation more or less
        assert found.steps_per_s == pytest.approx(20 / 25, rel=0.1)
        assert found.samples_per_s == pytest.approx(found.steps_per_s * PLAN.config.batch_size)


def test_a_run_that_becomes_slower_is_expected_to_take_longer_within_two_epochs_or_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(monkeypatch)
    for _ in range(30):
        run.go_on()
    fast = run.go_on().steps_per_s
    for _ in range(30):
        run.now += 8.0  # five times as long
        slow = run.go_on().steps_per_s
    assert slow == pytest.approx(2 / (2 + 8 + 0.5), rel=0.05)
    assert fast > 4 * slow


def test_at_first_what_the_slowest_block_says_of_itself_must_do() -> None:
    report = Report(PLAN)
    report.hear(progress(0, 2, 1000.0))
    assert report.progress() is None
    report.hear(progress(1, 2, 500.0))
    rows = PLAN.config.batch_size
    assert report.progress() == Progress(2, 0, 500.0, (200 - 2) * rows / 500.0, 500.0 / rows)
