"""Recorded times of a network's parts, and what is simulated from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.engine.recordings import MICROBATCHES, Recording, read, record, write_recordings
from benchmarks.engine.schedules import BlockStep, StageStep, one_forward_one_backward
from benchmarks.engine.simulation import simulated, simulated_pipeline
from bll.config import TrainingConfig
from bll.partition import resolve
from bll.plain import from_dict

SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "batch_size": 16,
}


def test_every_part_of_every_step_is_timed_and_kept(tmp_path: Path) -> None:
    recording = record(resolve(from_dict(TrainingConfig, SPEC)), steps=3)
    assert recording.batch_size == 16
    assert len(recording.blocks) == 3
    for first, last in recording.blocks:
        assert first.send_s > 0  # the last block sends nothing
        assert last.send_s == 0
        assert min(first.learn_s, last.learn_s) > 0
    assert tuple(recording.stages) == MICROBATCHES
    for steps in recording.stages.values():
        assert len(steps) == 3
        assert all(min(stage) > 0 for step in steps for stage in step)
    write_recordings("digits", {2: recording}, tmp_path)
    (kept,) = read("digits", tmp_path).values()
    assert kept.blocks[-1][-1].learn_s == pytest.approx(recording.blocks[-1][-1].learn_s, abs=1e-6)
    assert kept.stages[8][0][1].backward_s == pytest.approx(recording.stages[8][0][1].backward_s, abs=1e-6)


def test_efficiency_of_equal_parts_is_that_of_the_textbook() -> None:
    recording = Recording(
        batch_size=16,
        blocks=[[BlockStep(1.0, 2.0)] * 3],
        stages={4: [[StageStep(1.0, 2.0, 0.0)] * 3]},
    )
    assert simulated(recording).efficiency == pytest.approx(1.0)
    assert simulated(recording).step_s == pytest.approx(3.0)
    assert simulated_pipeline(recording, 4, one_forward_one_backward).efficiency == pytest.approx(4 / 6)
