"""What block-local learning promises of its gradients, shown by poison: a parameter that is NaN and changes nothing
was not read.

Poison goes into `.data`, past autograd's version counter: a gradient that did read it would be NaN, not an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bll import data
from bll.blocks import build_block
from bll.config import TrainingConfig
from bll.executors.sequential import SequentialExecutor
from bll.losses import Objective
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import _digest
from bll.worker import BlockUnit, Run

every_twin = pytest.mark.parametrize("twin", ["direct", "chain"])


def plan_of(twin: str, **values: Any) -> Plan:
    base = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [12, 12, 12]},
        "blocks": {"num_blocks": 3},
        "latent": {"units": 8, "readout_units": 8},
        "backward": {"twin": twin, "delay_steps": 1},
        "executor": {"name": "sequential"},
        "batch_size": 64,
        **values,
    }
    return resolve(from_dict(TrainingConfig, base))


def started(plan: Plan, run_dir: Path) -> list[BlockUnit]:
    """The run's own workers, each before its first step."""
    executor = SequentialExecutor()
    executor.launch(Run(plan, _digest(plan), run_dir, None, 0, Placement((range(plan.num_blocks),))))
    assert executor._worker is not None
    workers = [unit for unit in executor._worker.units if isinstance(unit, BlockUnit)]
    assert len(workers) == plan.num_blocks
    for worker in reversed(workers):
        worker.start()
    return workers


def poison(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.data.fill_(torch.nan)


def state(worker: BlockUnit) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in worker.block.state_dict().items()}


def taken(worker: BlockUnit, step: int) -> dict[str, Tensor]:
    worker.train_step(step)
    return state(worker)


def assert_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
        assert torch.isfinite(tensor).all()


@every_twin
def test_once_its_message_is_made_no_parameter_of_a_block_is_read_by_the_blocks_after_it(
    twin: str, tmp_path: Path
) -> None:
    plan = plan_of(twin)
    whole, poisoned = started(plan, tmp_path / "a"), started(plan, tmp_path / "b")
    for index in range(plan.num_blocks):
        assert_bits(taken(poisoned[index], 0), taken(whole[index], 0))
        poison(poisoned[index].block.parameters())


@every_twin
def test_once_its_class_table_is_sent_no_parameter_of_a_block_is_read_by_the_blocks_before_it(
    twin: str, tmp_path: Path
) -> None:
    plan = plan_of(twin)
    whole, poisoned = started(plan, tmp_path / "a"), started(plan, tmp_path / "b")
    for worker in poisoned[1:]:
        poison(worker.block.parameters())
    for step in range(2):  # both read version 0 of the table to the right: it is one step late
        assert_bits(taken(poisoned[0], step), taken(whole[0], step))


def parts(twin: str) -> Iterator[tuple[Any, Tensor, Tensor, Tensor | None, Objective]]:
    """Blocks with one batch: (block, what it receives, targets, the table to its right, objective)."""
    plan = plan_of(twin)
    rows = data.load(plan.config.data, 0).train
    blocks = [build_block(plan, i, data.statistics(rows) if i == 0 else None) for i in range(plan.num_blocks)]
    rights: list[Tensor | None] = [None]
    for block in reversed(blocks[1:]):
        sent = block.twin(rights[0]).beta_CPD.detach()
        rights.insert(0, sent if twin == "chain" else None)
    hidden = torch.from_numpy(data.as_float(rows.inputs[:32]))
    targets_B = torch.from_numpy(rows.targets[:32])
    for block, right in zip(blocks, rights, strict=True):
        yield block, hidden, targets_B, right, Objective(block.readout.family, plan.config.loss)
        hidden = block.layers(hidden).detach()


@every_twin
def test_neither_net_reads_a_parameter_of_the_other_for_its_messages_or_its_gradients(twin: str) -> None:
    """They meet in alpha and the class table alone: theta learns from dL/d(alpha), phi from dL/d(table)."""
    for block, hidden, targets_B, right, objective in parts(twin):
        theta, phi = block.forward_parameters(), list(block.backward_parameters().values())
        kept = [parameter.detach().clone() for parameter in theta]
        alpha_BPD, table = block.readout(block.layers(hidden)), block.twin(right)
        loss = objective.loss(alpha_BPD, table, targets_B, 1.0).loss_B.mean()
        true = torch.autograd.grad(loss, [*theta, *phi], retain_graph=True)
        to_alpha, *to_table = torch.autograd.grad(loss, [alpha_BPD, *table], retain_graph=True)

        poison(theta)
        for found, expected in zip(block.twin(right), table, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        found_phi = torch.autograd.grad(table, phi, to_table, retain_graph=True)
        for parameter, before in zip(theta, kept, strict=True):
            parameter.data.copy_(before)

        poison(phi)
        found_theta = torch.autograd.grad(alpha_BPD, theta, to_alpha)
        again_BPD = block.readout(block.layers(hidden))  # batch statistics: the same rows give the same message
        torch.testing.assert_close(again_BPD, alpha_BPD, rtol=0, atol=0)
        for found, expected in zip((*found_theta, *found_phi), true, strict=True):
            torch.testing.assert_close(found, expected)
            assert torch.isfinite(found).all()


@every_twin
def test_poison_before_the_message_is_made_does_show(twin: str, tmp_path: Path) -> None:
    """The tests above can fail."""
    workers = started(plan_of(twin), tmp_path)
    poison(workers[0].block.layers.parameters())
    workers[0].train_step(0)
    workers[1].train_step(0)
    assert all(parameter.isnan().any() for parameter in workers[1].block.layers.parameters())
