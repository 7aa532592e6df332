"""Networks of the user's own: the same bits everywhere, and whatever is no chain of layers refused by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bll import KeyedDropout, Layers, TrainingConfig, fit, resolve
from bll.architectures.modules import user_network
from bll.choices import ExecutorName
from bll.errors import CheckpointError, InvalidConfig
from bll.export import TOLERANCE, export
from bll.plain import from_dict

SHAPE = (1, 8, 8)


def config(**values: Any) -> TrainingConfig:
    base = {"data": {"name": "digits"}, "blocks": {"num_blocks": 2}, "epochs": 1, "batch_size": 128}
    return from_dict(TrainingConfig, {**base, **values})


def sequential() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True)),
        KeyedDropout(0.2),
        nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True)),
    )


class Chain(nn.Module):
    """Three children in a row, and ways to be more than that."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.zeros(()))
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        if self._forward:
            return self._forward(self, inputs)
        hidden: Tensor = self.last(self.middle(self.stem(inputs)))
        return hidden


NAMES = ["stem", "middle", "last"]


def test_a_sequential_trains_to_the_same_bits_in_the_loop_and_in_threads() -> None:
    network = sequential()
    before = copy.deepcopy(network.state_dict())
    models = [fit(config(executor={"name": name}), network=network) for name in ("sequential", "threads")]
    first, second = (model.network.state_dict() for model in models)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(first["blocks.0.1.1.weight"], before["0.1.weight"])
    assert models[0].plan.blocks[1].layers[-1] == "2 Sequential"


def test_a_module_with_named_children_trains_like_the_sequential_of_them(tmp_path: Path) -> None:
    module = Chain()
    named = fit(config(), network=Layers(module, NAMES))
    plain = fit(config(), network=nn.Sequential(module.stem, module.middle, module.last))
    pairs = zip(named.network.state_dict().values(), plain.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert export(named, tmp_path).parity <= TOLERANCE


def test_training_starts_from_the_weights_given() -> None:
    network = sequential()
    rate = {"learning_rate": 1e-8, "schedule": "constant"}
    model = fit(config(optimizer=rate), network=network)
    np.testing.assert_allclose(
        model.network.state_dict()["blocks.0.1.1.weight"].numpy(), network.state_dict()["0.1.weight"].numpy(), atol=1e-6
    )


def test_a_module_used_twice_becomes_two_layers() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), relu, nn.Linear(8, 8), relu)
    assert user_network(network, SHAPE).names == ("0", "1", "2", "3", "4")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(config(), network=sequential(), run_dir=tmp_path)
    fit(config(), network=sequential(), run_dir=tmp_path)
    other = sequential()
    with torch.no_grad():
        other.get_parameter("0.1.bias").add_(1)
    with pytest.raises(CheckpointError, match="another config"):
        fit(config(), network=other, run_dir=tmp_path)


def test_a_resolved_plan_of_ones_own_network_resolves_to_itself() -> None:
    plan = resolve(config(), network=sequential())
    assert plan.config.executor.name is ExecutorName.THREADS
    assert plan.config.network.architecture.startswith("module-")
    assert resolve(plan.config, network=sequential()) == plan
    with pytest.raises(InvalidConfig, match="must be one of"):
        resolve(plan.config)


def skip(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.stem(inputs)
    return network.last(network.middle(hidden) + hidden)  # type: ignore[no-any-return]


def skip_that_starts_closed(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.stem(inputs)
    return network.last(network.middle(hidden) + network.gate * hidden)  # type: ignore[no-any-return]


def between(network: Any, inputs: Tensor) -> Tensor:
    return network.last(F.relu(network.middle(network.stem(inputs))))  # type: ignore[no-any-return]


def after(network: Any, inputs: Tensor) -> Tensor:
    hidden = network.stem(inputs)
    return network.last(network.middle(hidden)) + hidden  # type: ignore[no-any-return]


def twice(network: Any, inputs: Tensor) -> Tensor:
    return network.last(network.middle(network.middle(network.stem(inputs))))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """Draws without a module that could be told by its type."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, 0.5, self.training)


def tied() -> nn.Sequential:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    network[2].weight = network[1].weight
    return network


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Layers(Chain(skip), NAMES), "'last' must take the output of 'middle' and nothing else: no skip"),
        (Layers(Chain(skip_that_starts_closed), NAMES), "'last' must take the output of 'middle'"),
        (Layers(Chain(between), NAMES), "'last' must take the output of 'middle'"),
        (Layers(Chain(after), NAMES), "its forward must end with the output of 'last'"),
        (Layers(Chain(twice), NAMES), "it runs ['stem', 'middle', 'middle', 'last']"),
        (Layers(Chain(), ["middle", "stem", "last"]), "it runs ['stem', 'middle', 'last']"),
        (Layers(Chain(), ["stem", "last"]), "'last' must take the output of 'stem'"),
        (Layers(Chain(), ["stem", "end"]), "no such child"),
        (Layers(Chain(), []), "at least one layer"),
        (nn.Sequential(), "at least one layer"),
        (nn.Sequential(nn.Linear(5, 5)), "cannot run on samples of shape [1, 8, 8]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5)), "'2' draws from torch's global generator"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(inplace=True)),
            "'2' must not change its input in place",
        ),
        (nn.Sequential(nn.Flatten(), nn.RReLU()), "'1' draws from torch's global generator"),
        (nn.Sequential(nn.Flatten(), Functional()), "use bll.KeyedDropout"),
        (nn.Sequential(nn.Flatten(0)), "a row for each sample"),
        (nn.Sequential(nn.LSTM(8, 8)), "cannot run"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), "has no shape yet"),
        (tied(), "'1.weight' and '2.weight' share memory"),
    ],
)
def test_what_is_no_chain_of_layers_is_refused_with_the_reason(network: nn.Sequential | Layers, words: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)) as caught:
        user_network(network, SHAPE)
    assert [violation.field for violation in caught.value.violations] == ["network"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"executor": {"name": "processes"}}, "executor.name: must be 'sequential' or 'threads'"),
        ({"network": {"dropout": 0.1}}, "network: says nothing"),
        ({"blocks": {"num_blocks": 4}}, "blocks.num_blocks: must be between 1 and 3"),
    ],
)
def test_a_config_that_does_not_fit_ones_own_network_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)):
        resolve(config(**values), network=sequential())


def test_a_layer_that_needs_data_to_be_measured_is_refused() -> None:
    class Peeks(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden * float(hidden.mean())

    with pytest.raises(InvalidConfig, match="meta device"):
        resolve(config(), network=nn.Sequential(nn.Flatten(), Peeks()))
