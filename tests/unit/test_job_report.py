"""How far a job is, by what its runner tells."""

from __future__ import annotations

from bll.config import TrainingConfig
from bll.events import BlockProgress, RolledBack, to_json
from bll.plan import BlockPlan, Plan
from bll_server.jobs.report import Report

PLAN = Plan(TrainingConfig(epochs=2), (BlockPlan(0, (), 0, 0, (1,), 0),) * 2, (4,), ("a", "b"), 20, "")


def progress(block: int, step: int) -> str:
    return to_json(BlockProgress(block, 0, step, 1.0, 0.1, 0.5, 0.2, 0.7, 1.0, 100.0, 0.0, 0.0, 0.0))


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
