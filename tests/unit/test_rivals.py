"""What every rule that needs the error at the output shows on a real run: it learns, and in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bll import TrainedModel, TrainingConfig, data, fit
from bll.blocks import Block, build_block
from bll.checkpoint import below, load_block
from bll.credit import Credit
from bll.credit.feedback import FeedbackMap
from bll.events import BlockProgress
from bll.losses import Objective
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training, _digest

ACCURACY = {
    "feedback_alignment": 0.8,
    "direct_feedback_alignment": 0.8,
    "sign_symmetry": 0.85,
    "target_propagation": 0.8,
    "synthetic_gradients": 0.75,
}
"""On the test digits, after five epochs of a perceptron of three layers; chance is 0.1."""


class Trained(NamedTuple):
    plan: Plan
    block: Block
    model: TrainedModel
    losses_nats: list[float]


def config(rule: str, **values: Any) -> TrainingConfig:
    base = {
        "rule": rule,
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [48, 48, 48]},
        "epochs": 5,
        "batch_size": 32,
        "executor": {"name": "sequential"},
        "diagnostics": {"per_epoch": 0},
    }
    return from_dict(TrainingConfig, {**base, **values})


@pytest.fixture(scope="module", params=ACCURACY)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    plan, run_dir = resolve(config(request.param)), tmp_path_factory.mktemp(request.param)
    training = Training(plan, run_dir)
    losses = [event.loss_nats for event in training.events() if isinstance(event, BlockProgress)]
    block = build_block(plan, 0)
    block.load_state_dict(below("block.", load_block(run_dir, plan.total_steps, 0, _digest(plan))))
    return Trained(plan, block, training.model(), losses)


def test_it_lowers_the_loss_and_reaches_its_accuracy(trained: Trained) -> None:
    assert trained.losses_nats[-1] < trained.losses_nats[0] / 3
    assert trained.model.evaluate("test").mixture.accuracy > ACCURACY[trained.plan.config.rule]


def test_feedback_weights_are_those_of_the_start(trained: Trained) -> None:
    at_first = build_block(trained.plan, 0)
    fixed = [
        name
        for name, tensor in at_first.named_buffers()
        if name.startswith("credit.") or (name.startswith("layers.") and name.endswith(".weight"))
    ]
    assert len(fixed) == {"feedback_alignment": 3, "direct_feedback_alignment": 2}.get(trained.plan.config.rule, 0)
    for name in fixed:
        torch.testing.assert_close(trained.block.get_buffer(name), at_first.get_buffer(name), rtol=0, atol=0)


def layer_gradients(trained: Trained, credit: Credit) -> list[Tensor]:
    """Of each layer's weight matrix, on one batch of training rows."""
    block, plan = trained.block, trained.plan
    rows = data.load(plan.config.data, plan.config.seed).train
    targets_B = torch.from_numpy(rows.targets[:256])
    block.zero_grad()
    block.seed_dropout(0)
    output = credit(block.layers, torch.from_numpy(data.as_float(rows.inputs[:256])))
    objective = Objective(block.readout.family, plan.config.loss)
    local = objective.loss(block.readout(output), block.twin(None), targets_B, 1.0)
    credit.backward(local.loss_B.mean(), local.log_probs_BC, targets_B)
    return [p.grad.flatten().clone() for p in block.layers.parameters() if p.ndim > 1 and p.grad is not None]


def test_its_gradients_come_to_point_where_the_true_ones_do_and_are_not_these(trained: Trained) -> None:
    """Within 90 degrees: the condition for descent (Lillicrap et al. 2016), in layers that no true gradient reaches.

    Synthetic gradients get there from the top: two layers below it, they have not yet after five epochs.
    """
    block = trained.block.train()
    found = layer_gradients(trained, block.credit)
    for module in block.layers.modules():
        if isinstance(module, FeedbackMap):
            module.training = False  # itself alone: its errors go back through the plain map
    true = layer_gradients(trained, Credit())
    block.train()
    lowest, middle, last = (float(F.cosine_similarity(a, b, dim=0)) for a, b in zip(found, true, strict=True))
    assert last == pytest.approx(1, abs=1e-4)
    assert 0.05 < middle < 0.99
    assert lowest < 0.99
    if trained.plan.config.rule != "synthetic_gradients":
        assert lowest > 0.05


@pytest.mark.parametrize("rule", ACCURACY)
def test_a_network_of_the_users_own_is_trained(rule: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 24), nn.BatchNorm1d(24), nn.Tanh()
    )
    own = config(rule, epochs=1, network={})
    before = [p.detach().clone() for p in network.parameters()]
    model = fit(own, network=network)
    assert model.evaluate("test").mixture.accuracy > 0.3
    for parameter, same in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, same, rtol=0, atol=0)


def test_an_exported_model_has_ordinary_layers(tmp_path: Path) -> None:
    model = fit(config("feedback_alignment", epochs=1, batch_size=128, network={"widths": [4]}))
    assert model.export(tmp_path).parity < 1e-4
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [node.op_type for node in graph.node].count("Conv") == 3
    shapes = [tuple(tensor.dims) for tensor in graph.initializer]
    assert [shapes.count((4, channels, 3, 3)) for channels in (1, 4)] == [1, 2]  # no feedback weight is left in it
