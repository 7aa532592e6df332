"""The signatures of failure: provoked in real runs and in made histories, and absent from healthy ones."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bll.alarms import REPEAT, WINDOW, Watch
from bll.choices import TargetName
from bll.config import TrainingConfig
from bll.events import (
    Alarm,
    AlarmSignature,
    BlockDiagnostics,
    BlockProgress,
    Evaluation,
    Event,
    RunEnded,
    Scores,
)
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import BlockPlan, Plan
from bll.training import Training

# Real runs ---------------------------------------------------------------------------------------------------------


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [32, 32, 32, 32]},
        "executor": {"name": "sequential"},
        "batch_size": 64,
    }
    return from_dict(TrainingConfig, {**base, **values})


def train(run_config: TrainingConfig, run_dir: Path, stop_after: int | None = None) -> list[Event]:
    training = Training(resolve(run_config), run_dir)
    events = []
    for event in training.events():
        events.append(event)
        if stop_after is not None and isinstance(event, BlockProgress) and event.step >= stop_after:
            training.pause()
    return events


def raised(events: list[Event]) -> list[Alarm]:
    return [event for event in events if isinstance(event, Alarm)]


HEALTHY: dict[str, dict[str, Any]] = {
    "bernoulli": {"epochs": 5},
    "gaussian": {"latent": {"family": "gaussian"}, "epochs": 5},
    "chain": {"backward": {"twin": "chain"}, "epochs": 6},
    "local_classifiers": {"rule": "local_classifiers", "epochs": 5},
    "backprop": {"rule": "backprop", "epochs": 5},
    "residual_cnn": {"network": {"architecture": "residual_cnn", "widths": [8, 8, 16, 16]}, "epochs": 5},
    "warm_up": {"optimizer": {"warmup_steps": 40}, "epochs": 5},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_none(name: str, tmp_path: Path) -> None:
    events = train(config(**HEALTHY[name]), tmp_path)
    assert raised(events) == []
    last = [event for event in events if isinstance(event, Evaluation)][-1]
    assert last.mixture.accuracy > 0.9


def test_a_healthy_run_that_was_stopped_raises_none(tmp_path: Path) -> None:
    run_config = config(epochs=5)
    first = train(run_config, tmp_path, stop_after=40)
    assert isinstance(first[-1], RunEnded)
    assert not first[-1].finished
    assert raised(first + train(run_config, tmp_path)) == []


SATURATING = {
    "optimizer": {"learning_rate": 0.3, "schedule": "constant"},
    "mixing": {"start": 2.0},
    "epochs": 4,
}
FAILING: dict[str, tuple[dict[str, Any], AlarmSignature, str, str]] = {
    "a forward net that stands still": (
        {"optimizer": {"learning_rate": 1e-6}, "epochs": 6},
        AlarmSignature.LOSS_PLATEAU,
        r"the exit's NLL is 2\.\d\d nats \(2\.30 by chance\); forward and backward messages agree by",
        "a higher learning rate, above all the backward one, blocks.normalize_messages",
    ),
    "the divergence alone": (
        {"loss": {"name": "divergence"}, "epochs": 9},
        AlarmSignature.LOSS_PLATEAU,
        r"the local loss of 0\.\d+ nats has fallen by",
        "loss.name 'evidence', ",
    ),
    "logits at their clamp": (
        SATURATING,
        AlarmSignature.UNSTABLE_UNCERTAINTY,
        r"\d+% of the latent's units have been at their bounds for 3 epochs",
        "a smaller mixing, ",
    ),
    "backward messages without measure": (
        {"optimizer": {"backward_learning_rate": 10.0}, "epochs": 6},
        AlarmSignature.UNSTABLE_UNCERTAINTY,
        r"the mean posterior variance went up and down: ",
        "a slower rise of mixing, ",
    ),
    "many narrow blocks": (
        {
            "network": {"architecture": "mlp", "widths": [32, 2, 2, 2, 2, 2, 2, 2]},
            "blocks": {"num_blocks": 8},
            "latent": {"readout": "linear", "units": 4},
            "epochs": 5,
        },
        AlarmSignature.END_TO_END_GAP,
        r"has been no better than that of earlier ones, now 0\.\d+, .*; the mixture gap is",
        "fewer blocks, ",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_run_that_fails_raises_its_alarm_with_cause_and_remedy(name: str, tmp_path: Path) -> None:
    values, signature, cause, remedy = FAILING[name]
    events = train(config(**values), tmp_path)
    found = [alarm for alarm in raised(events) if alarm.signature is signature]
    assert found, raised(events)
    matching = [alarm for alarm in found if re.search(cause, alarm.cause)]
    assert matching, found
    assert matching[0].remedy.startswith(remedy)
    assert all(math.isfinite(figure.value) for alarm in found for figure in alarm.values)
    assert len({(alarm.signature, alarm.block) for alarm in found}) == len(found), "raised twice"


def test_without_diagnostics_there_is_no_alarm(tmp_path: Path) -> None:
    assert raised(train(config(**SATURATING, diagnostics={"per_epoch": 0}), tmp_path)) == []


# Made histories ----------------------------------------------------------------------------------------------------

STEPS = 10
PLAN = Plan(
    config=TrainingConfig(),
    blocks=(BlockPlan(0, (), 0, 0, (1,), 0),) * 3,
    input_shape=(4,),
    class_names=tuple("abcdefghij"),
    steps_per_epoch=STEPS,
    dataset_digest="",
)


def scores(accuracy: float, nll_nats: float = 0.3) -> Scores:
    return Scores(accuracy=accuracy, nll_nats=nll_nats, ece=0.0, brier=0.0)


def diagnostics(block: int, epoch: int, **values: Any) -> BlockDiagnostics:
    healthy = BlockDiagnostics(
        block=block, epoch=epoch, step=(epoch + 1) * STEPS, loss_nats=0.3, kl_nats=1.0, exit_nll_nats=0.3,
        alpha_entropy_nats=0.5, rho_entropy_nats=0.4, agreement=0.7, agreement_auc=0.99, posterior_variance=0.2,
        posterior_variance_cv=0.2, alpha_rms=1.0, beta_rms=0.5, theta_gradient=1.0, phi_gradient=1.0,
        theta_update=0.01, phi_update=0.01, dead_units=0.0, dead_features=0.0, saturated_units=0.0,
        effective_rank=8.0, mixing=1.0, staleness_steps=0, queue_depth=0,
    )  # fmt: skip
    return replace(healthy, **values)


def report(block: int, epoch: int, step: int, loss_nats: float, posterior_variance: float) -> BlockProgress:
    return BlockProgress(block, epoch, step, loss_nats, 1.0, 0.9, posterior_variance, 0.7, 1.0, 100.0, 0.0)


def epoch_of(
    epoch: int,
    *,
    exits: tuple[float, ...] = (0.9, 0.9, 0.9),
    gap_nats: float = 0.02,
    loss_nats: float = 0.3,
    variance: float = 0.2,
    **values: Any,
) -> list[Event]:
    """Everything that is told of one epoch; block 1 is as `values` say, the others are well."""
    events: list[Event] = []
    for block in range(3):
        own = (loss_nats, variance) if block == 1 else (0.3, 0.2)
        events += [report(block, epoch, epoch * STEPS + step, *own) for step in (5, 10)]
        events.append(diagnostics(block, epoch, **(values if block == 1 else {})))
    accuracies = tuple(map(scores, exits))
    step = (epoch + 1) * STEPS
    events.append(Evaluation("validation", epoch, step, 10_000, scores(0.9), scores(0.9), accuracies, gap_nats))
    return events


def judged(epochs: list[list[Event]], plan: Plan = PLAN) -> list[Alarm]:
    watch = Watch(plan)
    return [alarm for epoch in epochs for event in epoch for alarm in watch.observe(event)]


STUCK: dict[str, Any] = {"loss_nats": 2.2, "exit_nll_nats": 2.2}
MADE: dict[str, tuple[dict[str, Any], AlarmSignature, int | None, str]] = {
    "agreement": ({**STUCK, "agreement": 0.05}, AlarmSignature.LOSS_PLATEAU, 1, "agree by 0.05 only"),
    "collapsed": ({**STUCK, "beta_rms": 0.01}, AlarmSignature.LOSS_PLATEAU, 1, "collapsed to 0.01"),
    "exploded": ({**STUCK, "beta_rms": 40.0}, AlarmSignature.LOSS_PLATEAU, 1, "grown to 40"),
    "rank": ({**STUCK, "effective_rank": 1.5}, AlarmSignature.LOSS_PLATEAU, 1, "effective rank is 1.5"),
    "behind the other exits": (
        {"agreement": 0.0, "exits": (0.9, 0.7, 0.9)}, AlarmSignature.LOSS_PLATEAU, 1, "agree by 0.00 only",
    ),
    "saturated": ({"saturated_units": 0.8}, AlarmSignature.UNSTABLE_UNCERTAINTY, 1, "80% of the latent's units"),
    "falling exits": ({"exits": (0.9, 0.88, 0.8)}, AlarmSignature.END_TO_END_GAP, None, "now 0.900, 0.880, 0.800"),
    "gaping mixture": ({"gap_nats": 0.5}, AlarmSignature.END_TO_END_GAP, None, "mixture gap is 0.50 nats"),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_a_signature_that_lasts_is_told_once_and_names_its_block(name: str) -> None:
    values, signature, block, cause = MADE[name]
    last = WINDOW + REPEAT - 2
    (alarm,) = judged([epoch_of(epoch, **values) for epoch in range(last + 1)])
    assert (alarm.signature, alarm.block, alarm.epoch, alarm.step) == (signature, block, WINDOW - 1, WINDOW * STEPS)
    assert cause in alarm.cause
    again = judged([epoch_of(epoch, **values) for epoch in range(last + 2)])
    assert [alarm.epoch for alarm in again] == [WINDOW - 1, WINDOW - 1 + REPEAT]


@pytest.mark.parametrize("name", MADE)
def test_a_signature_that_does_not_last_is_none(name: str) -> None:
    values = {"loss_nats": 2.2, **MADE[name][0]}  # a loss that comes down from there is no plateau
    assert judged([epoch_of(epoch, **values) for epoch in range(WINDOW - 1)]) == []
    assert judged([*(epoch_of(epoch, **values) for epoch in range(WINDOW - 1)), epoch_of(WINDOW - 1)]) == []


def test_a_variance_that_goes_up_and_down_is_told_and_one_that_falls_is_not() -> None:
    def of(variances: list[float]) -> list[Alarm]:
        return judged([epoch_of(epoch, variance=variance) for epoch, variance in enumerate(variances)])

    (alarm,) = of([0.2, 0.05, 0.2])
    assert (alarm.signature, alarm.block) == (AlarmSignature.UNSTABLE_UNCERTAINTY, 1)
    assert "0.2, 0.05, 0.2 in the last 3 epochs" in alarm.cause
    assert {figure.name: figure.value for figure in alarm.values}["swing_nats"] == pytest.approx(math.log(4))
    assert of([1.0, 0.5, 0.2, 0.05, 0.01, 0.001, 0.0001]) == []
    assert of([0.0001, 0.01, 1.0, 10.0]) == []


def test_a_loss_that_still_falls_or_messages_that_agree_are_no_plateau() -> None:
    falling = [epoch_of(epoch, loss_nats=2.2 - 0.05 * epoch, exit_nll_nats=2.0, agreement=0.0) for epoch in range(6)]
    assert judged(falling) == []
    assert judged([epoch_of(epoch, **STUCK) for epoch in range(6)]) == []


def test_a_last_exit_that_catches_up_or_lies_within_chance_is_no_gap() -> None:
    assert judged([epoch_of(epoch, exits=(0.9, 0.9, min(0.9, 0.3 + 0.25 * epoch))) for epoch in range(6)]) == []
    assert judged([epoch_of(epoch, exits=(0.9, 0.89, 0.88)) for epoch in range(6)]) == []


def test_alarms_do_not_depend_on_the_order_in_which_blocks_are_heard() -> None:
    """Each block's own events come in order; those of other blocks, and the evaluation, may come late."""
    histories = [epoch_of(epoch, **STUCK, agreement=0.0, exits=(0.9, 0.5, 0.4)) for epoch in range(6)]
    expected = judged(histories)
    assert {alarm.signature for alarm in expected} == {AlarmSignature.LOSS_PLATEAU, AlarmSignature.END_TO_END_GAP}
    lines: dict[object, list[Event]] = {}
    for event in (event for epoch in histories for event in epoch):
        lines.setdefault(getattr(event, "block", "evaluations"), []).append(event)
    for seed in range(20):
        draw = random.Random(seed)
        queues = [list(line) for line in lines.values()]
        mixed = []
        while queues := [queue for queue in queues if queue]:
            mixed.append(draw.choice(queues).pop(0))
        assert judged([mixed]) == expected


def test_the_first_epochs_of_a_resumed_run_are_not_judged_alone() -> None:
    """What is left of the epoch of the stop counts as one; those before are not known any more."""
    values: dict[str, Any] = {**STUCK, "agreement": 0.0}
    rest = [event for event in epoch_of(4, **values) if getattr(event, "step", 0) == 5 * STEPS]
    resumed = [rest, *(epoch_of(epoch, **values) for epoch in range(5, 8))]
    assert [alarm.epoch for alarm in judged(resumed)] == [4 + WINDOW - 1]
    assert judged(resumed[: WINDOW - 1]) == []


def test_epochs_of_a_learning_rate_that_still_rises_are_left_out() -> None:
    warm = replace(PLAN.config, optimizer=replace(PLAN.config.optimizer, warmup_steps=35))
    histories = [epoch_of(epoch, **STUCK, agreement=0.0) for epoch in range(8)]
    assert [alarm.epoch for alarm in judged(histories, replace(PLAN, config=warm))] == [4 + WINDOW - 1]


def test_a_run_without_classes_is_not_judged() -> None:
    values: dict[str, Any] = {**STUCK, "agreement": 0.0}
    inputs = replace(PLAN.config, data=replace(PLAN.config.data, target=TargetName.INPUTS))
    assert judged([epoch_of(epoch, **values) for epoch in range(6)], replace(PLAN, config=inputs)) == []
