"""What blocks do in which turn."""

from __future__ import annotations

from bll.config import DataConfig, TrainingConfig
from bll.execution import ExecutorConfig
from bll.plan import Plan
from bll.schedule import Action, ActionKind, schedule, step_of_turn

TRAIN, EVALUATE, SAVE = ActionKind
CONFIG = TrainingConfig(
    data=DataConfig(validation_rows=5), batch_size=4, epochs=2, executor=ExecutorConfig(checkpoint_steps=2)
)
PLAN = Plan(CONFIG, (), (1,), ("a", "b"), 3, "")
"""Two epochs of three steps, two validation batches, a checkpoint every other step."""
WHOLE = [
    Action(TRAIN, 0),
    Action(TRAIN, 1), Action(SAVE, 2),
    Action(TRAIN, 2), Action(EVALUATE, 3, 0), Action(EVALUATE, 3, 1),
    Action(TRAIN, 3), Action(SAVE, 4),
    Action(TRAIN, 4),
    Action(TRAIN, 5), Action(EVALUATE, 6, 0), Action(EVALUATE, 6, 1), Action(SAVE, 6),
]  # fmt: skip


def test_steps_are_followed_by_evaluation_and_then_by_saving() -> None:
    assert list(schedule(PLAN, 0)) == WHOLE


def test_a_run_that_goes_on_has_the_rest_of_the_actions() -> None:
    for start in (2, 4):
        rest = WHOLE[WHOLE.index(Action(SAVE, start)) + 1 :]
        assert list(schedule(PLAN, start)) == rest
    assert list(schedule(PLAN, 6)) == []


def test_the_last_step_is_saved_wherever_it_falls() -> None:
    plan = Plan(CONFIG, (), (1,), ("a", "b"), 1, "")
    assert list(schedule(plan, 1))[-1] == Action(SAVE, 2)


def test_the_step_of_a_turn_is_that_of_its_action() -> None:
    assert [step_of_turn(PLAN, 0, turns) for turns in range(len(WHOLE) + 2)] == [0, *(a.step for a in WHOLE), 6]
    assert [step_of_turn(PLAN, 2, turns) for turns in range(4)] == [2, 2, 3, 3]
