"""A block's versions on their way left, when another worker takes its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bll.choices import TwinName
from bll.config import BackwardConfig, TrainingConfig
from bll.lines import Inlet, Outlet
from bll.messages import DequeChannel
from bll.transfers import make_lane
from bll.versions import OwnVersions, RightVersions

LANE = make_lane(torch.device("cpu"), own_stream=False)


def config(delay_steps: int) -> TrainingConfig:
    return TrainingConfig(backward=BackwardConfig(TwinName.CHAIN, delay_steps))


def versions(delay_steps: int, channel: DequeChannel) -> OwnVersions:
    """Each holds the number that it was made with."""
    makers = {"table": lambda number: torch.tensor(float(number))}
    return OwnVersions(config(delay_steps), Outlet(channel, lambda *_: None), makers, LANE)


@given(delay_steps=st.integers(1, 5), saved=st.none() | st.integers(0, 12), ahead=st.integers(0, 12))
def test_a_successor_has_all_that_its_neighbour_may_ask_for(delay_steps: int, saved: int | None, ahead: int) -> None:
    """Which goes for the neighbour in its own worker now, and for one that a later checkpoint is taken up with."""
    state: dict[str, torch.Tensor] = {}
    if saved is not None:
        lost = versions(delay_steps, DequeChannel())
        lost.start(0)
        for number in range(1, saved + 1):
            lost.send(number)
        state = lost.state()
    step = (saved or 0) + ahead
    line = DequeChannel()
    successor = versions(delay_steps, line)
    if state:
        successor.restore(state)
    successor.come_in(step)
    neighbour = RightVersions(config(delay_steps), Inlet(line, lambda *_: None), LANE)
    found = [neighbour.at(step).table]
    for number in range(step + 1, step + 4):
        successor.send(number)
        found.append(neighbour.at(number).table)
    made_at = [float(table) for table in found if table is not None]
    assert len(made_at) == 4
    assert made_at == sorted(made_at)
    assert max(made_at) <= step + 3
    later = successor.state()["sent_tables"]
    assert len(later) == min(delay_steps, step + 3) + 1
    assert later[-1] == step + 3


def test_versions_of_an_exact_run_are_those_of_their_number() -> None:
    line = DequeChannel()
    own = versions(2, line)
    right = RightVersions(config(2), Inlet(line, lambda *_: None), LANE)
    own.start(0)
    for step in range(5):
        table = right.at(step).table
        assert table is not None
        assert float(table) == max(0, step - 2)
        own.send(step + 1)
    with pytest.raises(IndexError):
        right.at(8)
