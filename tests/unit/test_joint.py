"""Local losses that reach over boundaries, against plain autograd and against ordinary blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bll import TrainingConfig
from bll import data as datasets
from bll.blocks import Block, build_block
from bll.checkpoint import below, load_block
from bll.errors import InvalidConfig
from bll.events import BlockProgress, Event
from bll.intra_op import intra_op_threads
from bll.joint import JointUnit
from bll.losses import Objective
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training, _digest
from bll.wiring import Links
from bll.worker import Run, run_block

NUM_BLOCKS = 3
RATES = {"learning_rate": 0.1, "backward_learning_rate": 0.05}
SGD = {"name": "sgd", **RATES, "schedule": "constant", "weight_decay": 0.0, "momentum": 0.0}


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "blocks": {"num_blocks": NUM_BLOCKS},
        "latent": {"readout": "linear"},
        "optimizer": SGD,
        "executor": {"name": "sequential"},
        "epochs": 1,
        "batch_size": 128,
    }
    return from_dict(TrainingConfig, {**base, **values})


def plan_of(**values: Any) -> Plan:
    """Three dense layers without batch normalisation, so that a block can be run forward as often as one likes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dense = [nn.Sequential(nn.Flatten(), nn.Linear(i, o), nn.Tanh()) for i, o in ((64, 12), (12, 10), (10, 8))]
    return resolve(config(**values), network=nn.Sequential(*dense))


def joint_worker(plan: Plan, run_dir: Path, emit: Callable[[Any], None] = lambda _: None) -> JointUnit:
    dataset = datasets.load(plan.config.data, plan.config.seed)
    return JointUnit(
        Run(plan, _digest(plan), run_dir, None, 0, Placement((range(plan.num_blocks),))),
        dataset,
        Links(None, None, None, None, emit, lambda: False),
    )


def exits_of_spans(blocks: list[Block], inputs: Tensor, targets_B: Tensor, plan: Plan) -> list[Tensor]:
    """L_k of each block, computed afresh from what the first block of its span receives, detached."""
    span = plan.config.loss.span
    objective = Objective(blocks[0].readout.family, plan.config.loss)
    losses = []
    for last, block in enumerate(blocks):
        hidden = inputs
        for index, earlier in enumerate(blocks[: last + 1]):
            if index == last - span + 1:
                hidden = hidden.detach()
            hidden = earlier.layers(hidden)
        losses.append(objective.loss(block.readout(hidden), block.twin(None), targets_B, 1.0).loss_B.mean())
    return losses


def trained_by_hand(plan: Plan) -> list[Block]:
    dataset = datasets.load(plan.config.data, 0)
    statistics = datasets.statistics(dataset.train)
    blocks = [build_block(plan, index, None if index else statistics) for index in range(plan.num_blocks)]
    groups = [
        {"params": [p for block in blocks for p in block.forward_parameters()], "lr": RATES["learning_rate"]},
        {"params": [p for block in blocks for p in block.twin.parameters()], "lr": RATES["backward_learning_rate"]},
    ]
    optimizer = torch.optim.SGD(groups)
    order = datasets.epoch_order(len(dataset.train), 0, 0)
    for step in range(plan.steps_per_epoch):
        rows = order[step * 128 : (step + 1) * 128]
        inputs = torch.from_numpy(datasets.as_float(dataset.train.inputs[rows]))
        losses = exits_of_spans(blocks, inputs, torch.from_numpy(dataset.train.targets[rows]), plan)
        optimizer.zero_grad()
        torch.autograd.backward(torch.stack(losses).sum())
        optimizer.step()
    return blocks


@pytest.mark.parametrize("span", [1, 2, NUM_BLOCKS])
def test_each_local_loss_trains_the_blocks_of_its_span_and_no_others(span: int, tmp_path: Path) -> None:
    """Span `num_blocks` is plain autograd on the sum of all exits: nothing is detached in the reference."""
    plan = plan_of(loss={"span": span})
    events: list[Event] = list(Training(plan, tmp_path).events())
    for index, block in enumerate(trained_by_hand(plan)):
        found = below("block.", load_block(tmp_path, plan.total_steps, index, _digest(plan)))
        assert found.keys() == block.state_dict().keys()
        for name, tensor in block.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    reporting = {event.block for event in events if isinstance(event, BlockProgress)}
    assert reporting == set(range(NUM_BLOCKS))


def test_spans_differ(tmp_path: Path) -> None:
    """What the comparison with the reference above would not notice if the two spans were one."""
    first = {}
    for span in (1, 2, NUM_BLOCKS):
        plan = plan_of(loss={"span": span})
        list(Training(plan, tmp_path / str(span)).events())
        first[span] = load_block(tmp_path / str(span), plan.total_steps, 0, _digest(plan))["block.layers.1.1.weight"]
    assert (first[1] - first[2]).abs().max() > 1e-3
    assert (first[2] - first[NUM_BLOCKS]).abs().max() > 1e-3


def test_gradients_stop_at_the_first_block_of_the_span(tmp_path: Path) -> None:
    worker = joint_worker(plan_of(loss={"span": 2}), tmp_path)
    losses = [block.forward_step(0).local.loss_B.mean() for block in worker.blocks]
    worker._backward([0 * losses[0], 0 * losses[1], losses[2]])
    far, near, own = (worker_block.block for worker_block in worker.blocks)

    def moved(module: nn.Module) -> list[bool]:
        return [p.grad is not None and bool(p.grad.any()) for p in module.parameters()]

    assert not any(moved(far))
    assert all(moved(near.layers))
    assert not any([*moved(near.readout), *moved(near.twin)])
    assert all(moved(own))


@pytest.mark.parametrize("twin", ["direct", "chain"])
def test_span_1_through_the_joint_worker_is_ordinary_block_local_learning(twin: str, tmp_path: Path) -> None:
    network = {"widths": [4, 4, 8], "dropout": 0.2}
    plan = resolve(config(network=network, backward={"twin": twin, "delay_steps": 2}, latent={"units": 8}, epochs=2))
    list(Training(plan, tmp_path / "blocks").events())
    with intra_op_threads(plan.config.executor.threads_per_block):
        for _ in run_block(joint_worker(plan, tmp_path / "joint")):
            pass
    step = f"checkpoints/step-{plan.total_steps:09d}"
    for index in range(plan.num_blocks):
        name = f"{step}/block-{index}.safetensors"
        assert (tmp_path / "joint" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()


def test_one_worker_runs_blocks_that_share_losses_and_the_plan_says_so() -> None:
    plan = plan_of(loss={"span": 2})
    assert plan.units == (range(NUM_BLOCKS),)
    assert any("one worker" in warning for warning in plan.warnings)
    assert plan_of().units == (range(1), range(1, 2), range(2, 3))


def test_a_span_of_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"loss\.span: must be at most blocks\.num_blocks = 3, got 4"):
        plan_of(loss={"span": 4})
