"""Readout `next_layer`: whose weights the copy holds, which version of them, and what trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from bll import TrainingConfig, fit
from bll import data as datasets
from bll.blocks import build_block
from bll.checkpoint import below, load_block
from bll.errors import InvalidConfig
from bll.manifest import MODEL_FILE
from bll.messages import DequeChannel
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.readouts import LayeredReadout, NextLayerReadout, flat_parameters
from bll.training import _digest
from bll.wiring import wire
from bll.worker import BlockUnit, Run

MLP = {"architecture": "mlp", "widths": [16, 12]}


def config(**values: Any) -> TrainingConfig:
    base = {
        "data": {"name": "digits"},
        "network": MLP,
        "blocks": {"num_blocks": 2},
        "latent": {"readout": "next_layer", "units": 8},
        "executor": {"name": "sequential"},
        "epochs": 1,
        "batch_size": 128,
    }
    return from_dict(TrainingConfig, {**base, **values})


def workers_of(plan: Plan, run_dir: Path) -> list[BlockUnit]:
    dataset = datasets.load(plan.config.data, plan.config.seed)
    lines = wire(plan, plan.units, lambda _slots, _size: DequeChannel(), lambda _: None, lambda: False)
    run = Run(plan, _digest(plan), run_dir, None, 0, Placement(plan.units))
    return [BlockUnit(run, index, dataset, line) for index, line in enumerate(lines)]


@pytest.mark.parametrize(("decay", "delay_steps"), [(0.0, 1), (0.0, 3), (0.6, 2), (1.0, 1), (0.0, 1000)])
def test_the_copy_is_the_running_mean_of_the_neighbours_versions(
    decay: float, delay_steps: int, tmp_path: Path
) -> None:
    """Decay 0: version t - D itself, bit for bit; decay 1: the first version for ever."""
    latent = {"readout": "next_layer", "units": 8, "ema_decay": decay}
    plan = resolve(config(latent=latent, backward={"delay_steps": delay_steps}))
    left, right = workers_of(plan, tmp_path)
    right.start()
    left.start()
    readout = left.block.readout
    assert isinstance(readout, NextLayerReadout)
    versions = [flat_parameters(right.block.layers[0])]
    expected = versions[0]
    for step in range(plan.steps_per_epoch):
        left.train_step(step)
        due = versions[max(0, step - delay_steps)]
        expected = due if decay == 0.0 else decay * expected + (1 - decay) * due
        rounding = {0.0: 0.0, 1.0: 0.0}.get(decay, 1e-6)
        torch.testing.assert_close(flat_parameters(readout.copy), expected, rtol=rounding, atol=rounding)
        right.train_step(step)
        versions.append(flat_parameters(right.block.layers[0]))
    assert not torch.equal(versions[-1], versions[0])


def test_gradients_pass_through_the_copy_and_do_not_train_it(tmp_path: Path) -> None:
    left, right = workers_of(resolve(config()), tmp_path)
    right.start()
    taken = left.forward_step(0)
    torch.autograd.backward(taken.local.loss_B.mean())
    readout = left.block.readout
    assert isinstance(readout, NextLayerReadout)
    assert all(p.grad is None and not p.requires_grad for p in readout.copy.parameters())
    weight = left.block.layers[1].get_parameter("1.weight")
    assert weight.grad is not None
    assert weight.grad.any()
    stepped = [p for group in left.optimizer.forward.param_groups for p in group["params"]]
    assert not {id(p) for p in readout.copy.parameters()} & {id(p) for p in stepped}


def test_batch_statistics_of_the_copy_are_its_own(tmp_path: Path) -> None:
    plan = resolve(config(latent={"readout": "next_layer", "ema_decay": 0.0, "units": 8}))
    left, right = workers_of(plan, tmp_path)
    right.start()
    for step in range(3):
        left.train_step(step)
        right.train_step(step)
    readout = left.block.readout
    assert isinstance(readout, NextLayerReadout)
    assert int(readout.copy.get_buffer("2.num_batches_tracked")) == 3
    # It ran on the same messages, but with weights two versions old.
    assert not torch.equal(
        readout.copy.get_buffer("2.running_mean"), right.block.layers[0].get_buffer("2.running_mean")
    )


def test_the_last_block_has_the_linear_readout_alone() -> None:
    plan = resolve(config())
    assert isinstance(build_block(plan, 0).readout, NextLayerReadout)
    assert isinstance(build_block(plan, 1).readout, LayeredReadout)
    one = resolve(config(blocks={"num_blocks": 1}))
    linear = resolve(config(blocks={"num_blocks": 1}, latent={"readout": "linear", "units": 8}))
    assert one.blocks == linear.blocks


def test_the_plan_counts_the_copys_work_and_none_of_its_parameters() -> None:
    found = resolve(config()).blocks[0]
    linear = resolve(config(latent={"readout": "linear", "units": 8})).blocks[0]
    assert found.flops - linear.flops == 2 * (16 * 12 + 12 * 8 - 16 * 8)
    assert found.parameters - linear.parameters == 12 * 8 - 16 * 8


def test_the_copy_is_in_checkpoint_model_and_exported_graph(tmp_path: Path) -> None:
    run_config = config(network={"widths": [4, 8]}, epochs=2)
    model = fit(run_config, run_dir=tmp_path / "run")
    kept = below("block.", load_block(tmp_path / "run", model.plan.total_steps, 0, _digest(model.plan)))
    readout = model.network.readouts[0]
    assert isinstance(readout, NextLayerReadout)
    for name, tensor in readout.copy.state_dict().items():
        torch.testing.assert_close(kept[f"readout.copy.{name}"], tensor, rtol=0, atol=0)
    manifest = model.export(tmp_path / "model")
    assert manifest.parity < 1e-4
    inputs = model.validation_inputs(3)
    session = onnxruntime.InferenceSession(tmp_path / "model" / MODEL_FILE, providers=["CPUExecutionProvider"])
    (found,) = session.run(["exit_probabilities"], {"input": inputs})
    np.testing.assert_allclose(found, model.predict(inputs)["exit_probabilities"], atol=1e-4)


def test_messages_that_are_normalised_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"blocks\.normalize_messages: must be false with readout 'next_layer'"):
        resolve(config(blocks={"num_blocks": 2, "normalize_messages": True}))
