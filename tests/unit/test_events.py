"""Events on their way through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bll.events import (
    Alarm,
    AlarmSignature,
    BlockContinued,
    BlockDiagnostics,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    Event,
    Figure,
    PlacedWorker,
    RegressionEvaluation,
    RegressionScores,
    RolledBack,
    RunEnded,
    Scores,
    from_json,
    to_json,
)

numbers = st.floats(allow_nan=False)
counts = st.integers(0, 2**53)
scores = st.builds(Scores, numbers, numbers, numbers, numbers)
regression_scores = st.builds(RegressionScores, *[numbers] * 6)
some_counts = st.lists(counts, max_size=3).map(tuple)
placed_workers = st.builds(PlacedWorker, some_counts, numbers, some_counts)
events = st.one_of(
    st.builds(BlockProgress, counts, counts, counts, *[numbers] * 11, staleness_steps=counts),
    st.builds(BlocksPlaced, counts, st.booleans(), st.lists(placed_workers, max_size=3).map(tuple)),
    st.builds(BlockWaiting, counts, counts, st.booleans(), numbers, st.booleans()),
    st.builds(
        Evaluation, st.text(), counts, counts, counts, scores, scores, st.lists(scores, max_size=3).map(tuple), numbers
    ),
    st.builds(BlockDiagnostics, counts, counts, counts, *[numbers] * 20, counts, counts),
    st.builds(
        Alarm,
        st.sampled_from(AlarmSignature),
        st.none() | counts,
        counts,
        counts,
        st.text(),
        st.text(),
        st.lists(st.builds(Figure, st.text(), numbers), max_size=3).map(tuple),
    ),
    st.builds(
        RegressionEvaluation,
        st.text(),
        counts,
        counts,
        counts,
        regression_scores,
        st.lists(regression_scores, max_size=3).map(tuple),
        numbers,
    ),
    st.builds(CheckpointSaved, counts, counts, numbers),
    st.builds(CheckpointDamaged, counts, counts, st.text()),
    st.builds(RolledBack, counts, counts, st.text(), counts),
    st.builds(BlockContinued, counts, counts, counts, st.text(), counts),
    st.builds(RunEnded, counts, st.booleans()),
)


@given(event=events)
def test_event_survives_one_line_of_json(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event
    assert to_json(from_json(line)) == line


def test_an_event_of_a_version_that_told_less_has_the_defaults() -> None:
    line = '{"event": "CheckpointSaved", "step": 10, "epoch": 0}'
    assert from_json(line) == CheckpointSaved(10, 0)
    values = asdict(BlockProgress(1, 0, 5, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0, 0.25))
    older = {name: value for name, value in values.items() if name not in ("send_wait_s", "staleness_steps")}
    assert from_json(json.dumps({"event": "BlockProgress", **older})) == BlockProgress(**values)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[]",
        "1",
        '{"event": "Other"}',
        '{"event": ["RunEnded"], "step": 1}',
        '{"event": "RunEnded", "step": 1}',
        '{"event": "BlocksPlaced", "step": 0, "measured": false, "workers": 3}',
        '{"event": "BlocksPlaced", "step": 0, "measured": false, "workers": [{}]}',
        "[" * 100_000,
    ],
    ids=range(10),
)
def test_anything_else_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|not an event"):
        from_json(line)
