"""What every block of a run does, one action after the other: it follows from the plan alone. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from itertools import islice
from typing import NamedTuple

from bll.plan import Plan


class ActionKind(Enum):
    """What an action is."""

    TRAIN = auto()
    EVALUATE = auto()
    SAVE = auto()


class Action(NamedTuple):
    """What a block does in one turn."""

    kind: ActionKind
    step: int
    """Steps done before it."""
    batch: int = 0
    """Of EVALUATE: the number of the validation batch."""


def schedule(plan: Plan, start_step: int) -> Iterator[Action]:
    """The actions of every block after its start, from `start_step` steps done to the end of the plan."""
    for step in range(start_step + 1, plan.total_steps + 1):
        yield Action(ActionKind.TRAIN, step - 1)
        if step % plan.steps_per_epoch == 0:
            for batch in range(plan.validation_batches):
                yield Action(ActionKind.EVALUATE, step, batch)
        if step % plan.config.executor.checkpoint_steps == 0 or step == plan.total_steps:
            yield Action(ActionKind.SAVE, step)


def step_of_turn(plan: Plan, start_step: int, turns: int) -> int:
    """Steps done when a block has done `turns` turns: its start, and then an action in each."""
    if turns == 0:
        return start_step
    following = next(islice(schedule(plan, start_step), turns - 1, None), None)
    return following.step if following else plan.total_steps
