"""Costs told on the meta device against closed forms and against what a real training step keeps."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from bll.blocks import Block, build_block
from bll.config import TrainingConfig
from bll.costs import measure, step_times
from bll.partition import resolve
from bll.plain import from_dict


def test_costs_of_a_dense_layer_are_those_counted_by_hand() -> None:
    cost = measure(nn.Linear(5, 7, device="meta"), (5,))
    assert cost.output_shape == (7,)
    assert cost.parameters == 5 * 7 + 7
    assert cost.flops == 2 * 5 * 7
    assert cost.activation_bytes == 4 * 7  # the output; its input belongs to whoever made it


def test_a_tensor_saved_by_two_operations_is_counted_once() -> None:
    # ReLU keeps its output, which the second dense layer keeps as well.
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).to("meta")
    assert measure(layers, (5,)).activation_bytes == 4 * (6 + 3)


def test_a_layer_that_changes_its_input_in_place_keeps_nothing_more() -> None:
    assert measure(nn.ReLU(inplace=True), (5,)).activation_bytes == 0


class Ticking(nn.Module):
    """Takes a known time on a clock of the test's own: `first_s` more when it is run first."""

    now_s: ClassVar[float] = 0.0

    def __init__(self, forward_s: float, first_s: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.forward_s = forward_s
        self.first_s = first_s

    def forward(self, hidden: Tensor) -> Tensor:
        Ticking.now_s += self.forward_s + self.first_s
        self.first_s = 0.0
        return hidden * self.weight


def test_step_times_are_medians_without_the_first_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: Ticking.now_s)
    layers = [nn.Flatten(), Ticking(2.0, 100.0), Ticking(0.5, 0.0)]
    readouts = [Ticking(0.25, 7.0), None, Ticking(3.0, 0.0)]
    times = step_times(layers, readouts, (1, 2, 2), batch_size=2)
    assert times.layers_s == pytest.approx([0.0, 2.0, 0.5])
    assert times.readouts_s == pytest.approx([0.25, math.inf, 3.0])
    assert all(parameter.grad is not None for layer in layers for parameter in layer.parameters())


def kept_bytes(block: Block, inputs: Tensor) -> int:
    """Bytes of the storages that a training step's forward pass keeps, weights included."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = block.layers(inputs)
        kept += [hidden, block.readout(hidden)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}.values())


@pytest.mark.parametrize(
    "network",
    [
        {"architecture": "mlp", "widths": [32, 16, 8], "dropout": 0.2},
        {"widths": [4, 8]},
        {"architecture": "resnet18", "widths": [4, 4, 8, 8]},
        {"architecture": "resnet50", "widths": [2, 2, 4, 4], "dropout": 0.1},
    ],
    ids=str,
)
def test_activation_bytes_of_a_block_are_what_its_training_step_keeps_of_a_sample(network: dict[str, Any]) -> None:
    values = {"data": {"name": "digits"}, "network": network, "blocks": {"num_blocks": 3}}
    plan = resolve(from_dict(TrainingConfig, values))
    shape = plan.input_shape
    for index, block_plan in enumerate(plan.blocks):
        block = build_block(plan, index).train()
        eight, four = (kept_bytes(block, torch.rand(rows, *shape)) for rows in (8, 4))
        assert (eight - four) / 4 == block_plan.activation_bytes
        shape = block_plan.output_shape
