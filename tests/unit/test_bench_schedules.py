"""The simulated pipelines against their closed forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.engine.schedules import (
    BlockStep,
    Order,
    StageStep,
    block_local,
    gpipe,
    one_forward_one_backward,
    period_s,
    pipelined,
)

times = st.floats(0.001, 1.0)


@given(times, times, st.integers(1, 8), st.integers(1, 4))
def test_equal_blocks_never_wait_once_the_pipeline_is_full(send: float, learn: float, blocks: int, slots: int) -> None:
    ended = block_local([[BlockStep(send, learn)] * blocks] * 20, slots)
    assert ended[0] == pytest.approx(blocks * send + learn)
    assert period_s(ended) == pytest.approx(send + learn)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=6), st.integers(1, 4))
def test_steady_blocks_are_as_fast_as_the_slowest(blocks: list[tuple[float, float]], slots: int) -> None:
    ended = block_local([[BlockStep(*block) for block in blocks]] * 60, slots)
    assert period_s(ended) == pytest.approx(max(send + learn for send, learn in blocks))


def test_a_line_of_one_slot_holds_a_block_back_where_two_do_not() -> None:
    """Two blocks that are slow in turns: with slots between them, neither waits for the other's slow steps."""
    steps = [
        [BlockStep(0.0, slow if number % 4 < 2 else 1.0), BlockStep(0.0, 1.0 if number % 4 < 2 else slow)]
        for slow in [3.0]
        for number in range(80)
    ]
    assert period_s(block_local(steps, slots=4)) == pytest.approx(2.0, rel=0.03)
    assert period_s(block_local(steps, slots=1)) > 2.2


@pytest.mark.parametrize("order", [gpipe, one_forward_one_backward])
@given(forward=times, backward=times, stages=st.integers(1, 6), microbatches=st.integers(1, 9))
def test_the_bubble_of_equal_stages_is_that_of_the_textbook(
    order: Order, forward: float, backward: float, stages: int, microbatches: int
) -> None:
    ended = pipelined([[StageStep(forward, backward, 0.0)] * stages] * 4, microbatches, order)
    work = microbatches * (forward + backward)
    # Efficiency m / (m + N - 1): the time of N - 1 microbatches is idle at every stage, in every step.
    assert work / period_s(ended) == pytest.approx(microbatches / (microbatches + stages - 1))


def test_one_forward_one_backward_holds_no_more_microbatches_than_stages_are_left() -> None:
    for stage in range(4):
        held = most = 0
        for way, _ in one_forward_one_backward(stage, 4, 8):
            held += 1 if way == "forward" else -1
            most = max(most, held)
        assert most == 4 - stage
        assert sorted(one_forward_one_backward(stage, 4, 8)) == sorted(gpipe(stage, 4, 8))


def test_updates_lengthen_a_pipelined_step() -> None:
    ended = pipelined([[StageStep(1.0, 2.0, 0.5)] * 2] * 6, 4, one_forward_one_backward)
    assert period_s(ended) == pytest.approx(3.0 * 5 + 0.5)
