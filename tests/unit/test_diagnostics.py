"""What is measured inside a block, against definitions and whole runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bll.blocks import build_block
from bll.config import TrainingConfig
from bll.diagnostics import (
    MAX_ROWS,
    Examiner,
    Standing,
    Step,
    agreement,
    agreement_auc,
    constant_features,
    effective_rank,
)
from bll.events import BlockDiagnostics, BlockProgress, Event
from bll.execution import DiagnosticsConfig
from bll.losses import Objective
from bll.optimizers import BlockOptimizer
from bll.partition import resolve
from bll.plain import from_dict
from bll.training import Training, _digest
from bll.twins import ClassTable


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [16, 16]},
        "blocks": {"num_blocks": 2},
        "executor": {"name": "sequential"},
        "epochs": 2,
        "batch_size": 128,
    }
    return from_dict(TrainingConfig, {**base, **values})


def run(run_config: TrainingConfig, run_dir: Path) -> tuple[list[Event], dict[str, torch.Tensor]]:
    training = Training(resolve(run_config), run_dir)
    events = list(training.events())
    return events, training.model().network.state_dict()


def examiner(steps_per_epoch: int, per_epoch: int) -> Examiner:
    run_config = replace(config(), diagnostics=DiagnosticsConfig(per_epoch))
    plan = replace(resolve(run_config), steps_per_epoch=steps_per_epoch)
    block = build_block(plan, 0)
    return Examiner(0, plan, block, Objective(block.readout.family, run_config.loss))


@pytest.mark.parametrize(
    ("steps", "times", "expected"),
    [
        (421, 2, [211, 421, 632, 842]),
        (10, 3, [4, 7, 10, 14, 17, 20]),
        (1, 2, [1, 2]),
        (2, 10, [1, 2, 3, 4]),
        (9, 0, []),
    ],
)
def test_a_block_is_examined_at_equal_distances_and_at_each_epochs_end(
    steps: int, times: int, expected: list[int]
) -> None:
    found = examiner(steps, times)
    assert [step for step in range(1, 2 * steps + 1) if found.is_due(step)] == expected


@given(rows=st.integers(1, 5), classes=st.integers(2, 4), seed=st.integers(0, 10_000))
def test_agreement_and_its_auc_are_what_pairs_of_cosines_say(rows: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.randn(rows, 2, 3, generator=generator, dtype=torch.float64)
    table = ClassTable(torch.randn(classes, 2, 3, generator=generator, dtype=torch.float64), torch.zeros(classes))
    targets = torch.randint(0, classes, (rows,), generator=generator)
    a, b = (alpha - alpha.mean(0)).flatten(1), (table.beta_CPD - table.beta_CPD.mean(0)).flatten(1)
    cosines = [[cosine(x, y) for y in b.tolist()] for x in a.tolist()]
    own = [row[target] for row, target in zip(cosines, targets.tolist(), strict=True)]
    assert agreement(alpha, table, targets).tolist() == pytest.approx(own, abs=1e-9)
    pairs = [
        0.5 * (own[row] >= cosines[row][c]) + 0.5 * (own[row] > cosines[row][c])
        for row, c in itertools.product(range(rows), range(classes))
        if c != int(targets[row])
    ]
    assert float(agreement_auc(alpha, table, targets)) == pytest.approx(sum(pairs) / len(pairs))


def cosine(x: list[float], y: list[float]) -> float:
    sizes = math.hypot(*x) * math.hypot(*y)
    return sum(p * q for p, q in zip(x, y, strict=True)) / sizes if sizes else 0.0


def test_messages_that_say_nothing_agree_by_chance() -> None:
    alpha = torch.randn(6, 1, 3)
    table = ClassTable(torch.ones(4, 1, 3), torch.zeros(4))
    assert float(agreement_auc(alpha, table, torch.tensor([0, 1, 2, 3, 0, 1]))) == 0.5


@given(rows=st.integers(1, 6), units=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_effective_rank_is_that_of_the_singular_values(rows: int, units: int, seed: int) -> None:
    alpha = torch.randn(rows, 2, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spectrum = torch.linalg.svdvals((alpha - alpha.mean(0)).flatten(1)) ** 2
    shares = [float(s / spectrum.sum()) for s in spectrum if rows > 1 and s > 1e-12 * spectrum.sum()]
    expected = math.exp(-sum(s * math.log(s) for s in shares))
    assert float(effective_rank(alpha)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    directions = torch.eye(rank, 12)
    assert float(effective_rank(torch.cat((directions, -directions)).unsqueeze(1))) == pytest.approx(rank)


def test_a_feature_is_dead_that_no_row_changes() -> None:
    values = torch.randn(4, 3, 2, 2)
    values[:, 1] = torch.randn(2, 2)  # differs from place to place, but not from row to row
    assert constant_features(values).tolist() == [False, True, False]
    assert constant_features(values[:, :, 0, 0]).tolist() == [False, True, False]


def test_a_step_is_measured_as_it_was_and_its_update_as_it_became() -> None:
    """One plain gradient step of a linear readout: the update is the learning rate times the gradient."""
    run_config = config(
        optimizer={"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"},
        latent={"family": "unit_gaussian", "units": 5},  # whose class table is a parameter itself
    )
    plan = resolve(run_config)
    block = build_block(plan, 0)
    objective = Objective(block.readout.family, run_config.loss)
    optimizer = BlockOptimizer(block, run_config.optimizer, plan.total_steps)
    targets = torch.arange(300) % 10
    hidden = block.layers(torch.randn(300, 1, 8, 8))
    alpha, table = block.readout(hidden), block.twin(None)
    local = objective.loss(alpha, table, targets, 1.0)
    torch.autograd.backward(local.loss_B.mean())
    loss_B, log_probs_BC = (values.detach() for values in local)
    seen: list[BlockDiagnostics] = []
    groups = {"theta": block.forward_parameters(), "phi": list(block.twin.parameters())}
    sizes = {name: norm(parameters) for name, parameters in groups.items()}
    gradients = {name: norm([p.grad for p in parameters if p.grad is not None]) for name, parameters in groups.items()}
    beta = table.beta_CPD.detach().clone()
    step = Step(7, hidden, alpha, table, targets, local, 1.0, local.loss_B.mean())
    with Examiner(1, plan, block, objective).around_step(step, Standing(3, 2), seen.append):
        optimizer.step(6)
    (found,) = seen
    assert (found.block, found.epoch, found.step, found.staleness_steps, found.queue_depth) == (1, 0, 7, 3, 2)
    first = slice(MAX_ROWS)
    assert found.loss_nats == pytest.approx(float(loss_B[first].mean()))
    assert found.exit_nll_nats == pytest.approx(float(-log_probs_BC[first].gather(1, targets[first, None]).mean()))
    assert found.beta_rms == pytest.approx(float((beta - beta.mean(0)).square().mean().sqrt()))
    assert found.alpha_entropy_nats == pytest.approx(math.log(2 * math.pi * math.e) / 2)
    assert found.theta_gradient == pytest.approx(gradients["theta"], rel=1e-4)
    assert found.phi_gradient == pytest.approx(gradients["phi"], rel=1e-4)
    rates = run_config.optimizer.learning_rate, run_config.optimizer.backward_learning_rate
    assert found.theta_update == pytest.approx(rates[0] * gradients["theta"] / sizes["theta"], rel=1e-3)
    assert found.phi_update == pytest.approx(rates[1] * gradients["phi"] / sizes["phi"], rel=1e-3)


def norm(tensors: Sequence[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("twin", ["direct", "chain"])
def test_diagnostics_change_no_bit_and_are_not_part_of_a_checkpoints_name(twin: str, tmp_path: Path) -> None:
    values = {"backward": {"twin": twin, "delay_steps": 3}, "latent": {"family": "gaussian"}}
    without, expected = run(config(**values, diagnostics={"per_epoch": 0}), tmp_path / "without")
    often = config(**values, diagnostics={"per_epoch": 10})
    events, found = run(often, tmp_path / "with")
    assert _digest(resolve(often)) == _digest(resolve(config(**values)))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert not any(isinstance(event, BlockDiagnostics) for event in without)
    told = [event for event in events if isinstance(event, BlockDiagnostics)]
    assert [event.step for event in told if event.block == 0] == list(range(1, 21))
    stale = {event.staleness_steps for event in told if event.block == 0 and event.step > 3}
    assert stale == ({3} if twin == "chain" else {0})


def test_the_last_step_of_an_epoch_tells_the_same_in_diagnostics_and_progress(tmp_path: Path) -> None:
    events, _ = run(config(), tmp_path)
    progress = {(e.block, e.step): e for e in events if isinstance(e, BlockProgress)}
    told = [e for e in events if isinstance(e, BlockDiagnostics) and (e.block, e.step) in progress]
    assert len(told) == 8
    for found in told:
        report = progress[found.block, found.step]
        assert (found.epoch, found.agreement, found.kl_nats) == (report.epoch, report.agreement, report.kl_nats)
        assert found.posterior_variance == pytest.approx(report.posterior_variance, rel=1e-6)


@pytest.mark.parametrize(
    "family", ["bernoulli", "categorical", "gaussian", "unit_gaussian", "laplace", "laplace_scale"]
)
@pytest.mark.parametrize("loss", ["evidence", "discriminative", "divergence"])
def test_every_number_is_finite_in_batches_of_two(family: str, loss: str, tmp_path: Path) -> None:
    tiny = config(
        data={"name": "digits", "train_rows": 8},
        latent={"family": family, "units": 4},
        loss={"name": loss},
        batch_size=2,
        diagnostics={"per_epoch": 10},
        epochs=1,
    )
    events, _ = run(tiny, tmp_path)
    told = [event for event in events if isinstance(event, BlockDiagnostics)]
    assert len(told) == 2 * 4
    assert all(math.isfinite(value) for event in told for value in vars(event).values())
    assert all(1 - 1e-9 <= event.effective_rank <= 1 + 1e-9 for event in told)  # two rows span one direction
