"""Plans against built networks, and what is refused."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from bll.architectures.layers import KeyedDropout
from bll.blocks import build_block
from bll.choices import Balance, ExecutorName, Rule
from bll.combinations import LOCAL_RULES
from bll.config import TrainingConfig
from bll.errors import InvalidConfig
from bll.partition import resolve
from bll.plain import from_dict


def config(**values: Any) -> TrainingConfig:
    return from_dict(TrainingConfig, {"data": {"name": "digits"}, "batch_size": 64, **values})


@pytest.mark.parametrize("network", [{"architecture": "mlp", "widths": [32, 16, 8]}, {"widths": [4, 8]}])
@pytest.mark.parametrize("twin", ["direct", "chain"])
@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_plan_tells_the_shapes_and_parameters_of_the_blocks_built(
    network: dict[str, Any], twin: str, num_blocks: int
) -> None:
    plan = resolve(config(network=network, blocks={"num_blocks": num_blocks}, backward={"twin": twin}))
    hidden = torch.zeros(2, *plan.input_shape)
    for index, block_plan in enumerate(plan.blocks):
        block = build_block(plan, index).eval()
        hidden = block.layers(hidden)
        assert tuple(hidden.shape[1:]) == block_plan.output_shape
        assert sum(p.numel() for p in block.parameters()) == block_plan.parameters
        assert block_plan.flops > 0


@pytest.mark.parametrize("network", [{"architecture": "mlp", "widths": [32, 16, 8]}, {"widths": [4, 8]}])
@pytest.mark.parametrize("rule", [rule for rule in Rule if rule not in LOCAL_RULES])
def test_plan_counts_what_a_rule_learns_to_bring_errors_to_layers_with(network: dict[str, Any], rule: str) -> None:
    plan = resolve(config(network=network, rule=rule))
    (block_plan,) = plan.blocks
    block = build_block(plan, 0)
    own = sum(p.numel() for p in block.credit.parameters())
    assert sum(p.numel() for p in block.parameters()) == block_plan.parameters
    assert (own > 0) == (rule in ("target_propagation", "synthetic_gradients"))


def test_initial_weights_of_a_layer_do_not_depend_on_the_cuts() -> None:
    whole, halves = (resolve(config(network={"widths": [4, 4]}, blocks={"num_blocks": n})) for n in (1, 2))
    one = build_block(whole, 0).layers.state_dict()
    two = [build_block(halves, index).layers.state_dict() for index in range(2)]
    cut = halves.config.blocks.cuts[0]
    for name, tensor in one.items():
        layer, rest = name.split(".", 1)  # layer 0 is the normalisation
        part = two[0] if int(layer) <= cut else two[1]
        own = layer if int(layer) <= cut else str(int(layer) - cut - 1)
        torch.testing.assert_close(part[f"{own}.{rest}"], tensor, rtol=0, atol=0)


def test_each_balance_makes_the_largest_of_its_own_costs_smallest() -> None:
    def largest(balance: str) -> dict[str, int]:
        plan = resolve(config(network={"widths": [4, 4, 8, 8, 16, 16]}, blocks={"num_blocks": 3, "balance": balance}))
        return {
            "layers": max(len(block.layers) for block in plan.blocks),
            "parameters": max(block.parameters for block in plan.blocks),
            "flops": max(block.flops for block in plan.blocks),
            "activation_bytes": max(block.activation_bytes for block in plan.blocks),
        }

    found = {balance: largest(balance) for balance in Balance if balance is not Balance.MEASURED_TIME}
    for balance in found:
        assert found[balance][balance] == min(costs[balance] for costs in found.values())
    assert found[Balance.PARAMETERS] != found[Balance.ACTIVATION_BYTES]


def test_blocks_can_be_balanced_by_time_measured_once() -> None:
    plan = resolve(config(network={"widths": [4, 4, 8, 8]}, blocks={"num_blocks": 2, "balance": "measured_time"}))
    assert [len(block.layers) for block in plan.blocks] in ([1, 4], [2, 3], [3, 2], [4, 1])
    assert resolve(plan.config) == plan


class Recorder(nn.Linear):
    """A layer that notes how it is run on the batches of a measurement."""

    threads: ClassVar[list[int]] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type == "cpu" and len(hidden) == 64:
            self.threads.append(torch.get_num_threads())
        return super().forward(hidden)


def test_time_is_measured_with_the_threads_of_a_block_and_draws_of_its_own() -> None:
    Recorder.threads.clear()
    network = nn.Sequential(nn.Flatten(), Recorder(64, 8), KeyedDropout(0.5), Recorder(8, 8))
    before, state = torch.get_num_threads(), torch.get_rng_state()
    blocks = {"num_blocks": 2, "balance": "measured_time"}
    resolve(config(blocks=blocks, executor={"threads_per_block": before + 1}), network=network)
    assert Recorder.threads
    assert set(Recorder.threads) == {before + 1}
    assert torch.get_num_threads() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_measured_time_does_not_end_a_block_where_its_readout_cannot_be() -> None:
    images = [nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)]
    network = nn.Sequential(images[0], nn.Flatten(), nn.Unflatten(1, (2, 8, 8)), images[1])
    values = {"blocks": {"num_blocks": 3, "balance": "measured_time"}, "latent": {"readout": "conv"}}
    assert resolve(config(**values), network=network).config.blocks.cuts == (1, 3)


@pytest.mark.parametrize("readout", ["identity", "next_layer"])
def test_time_is_measured_with_readouts_that_depend_on_the_layers(readout: str) -> None:
    values = {"blocks": {"num_blocks": 2, "balance": "measured_time"}, "latent": {"readout": readout}}
    assert resolve(config(network={"widths": [4, 8]}, **values)).num_blocks == 2


def test_a_resolved_plan_leaves_nothing_open() -> None:
    plan = resolve(config())
    assert plan.config.data.train_rows > 0
    assert plan.config.data.validation_rows > 0
    assert plan.config.network.widths == (16, 16, 32, 32, 64, 64)
    assert len(plan.config.blocks.cuts) == 3
    assert plan.config.executor.name is ExecutorName.PROCESSES
    assert plan.config.executor.checkpoint_steps == plan.steps_per_epoch
    assert resolve(plan.config) == plan


def test_backprop_is_one_block() -> None:
    plan = resolve(config(rule="backprop", blocks={"num_blocks": 3}, mixing={"start": 0.5}))
    assert plan.num_blocks == 1
    assert plan.config.mixing.start == 1.0


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"network": {"architecture": "vgg"}}, "network.architecture", "resnet50, transformer, got 'vgg'"),
        ({"network": {"widths": [2, 4, 8, 16, 32]}}, "network.architecture", "8x8"),
        ({"network": {"widths": [2]}, "blocks": {"num_blocks": 3}}, "blocks.num_blocks", "between 1 and 2"),
        ({"network": {"widths": [2]}, "blocks": {"num_blocks": 2, "cuts": [2]}}, "blocks.cuts", "below 2"),
        ({"batch_size": 5000}, "batch_size", "got 5000"),
        ({"data": {"name": "cifar-9"}}, "data.name", "cifar-9"),
        ({"rule": "synthetic_gradients", "data": {"name": "digits", "target": "inputs"}}, "data.target", "'labels'"),
        ({"executor": {"num_workers": 5}}, "executor.num_workers", "at most 4: a block is never divided, got 5"),
        ({"executor": {"name": "sequential", "num_workers": 2}}, "executor.num_workers", "at most 1: executor 'seq"),
        ({"executor": {"num_workers": 2}, "loss": {"span": 2}}, "executor.num_workers", "at most 1: loss.span 2"),
        ({"executor": {"num_workers": 2}, "rule": "backprop"}, "executor.num_workers", "at most 1"),
        (
            {"executor": {"name": "threads", "recovery": "continue"}},
            "executor.recovery",
            "'exact' for executor 'threads'",
        ),
        (
            {"executor": {"name": "sequential", "recovery": "continue"}},
            "executor.recovery",
            "cannot be lost one by one",
        ),
        (
            {"executor": {"name": "threads", "pin_cpus": True}},
            "executor.pin_cpus",
            "executor 'threads', which has no processes",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(words)) as caught:
        resolve(config(**values))
    assert field in [violation.field for violation in caught.value.violations]


def test_vectors_are_no_images(tmp_path: Any) -> None:
    import numpy as np

    np.savez(tmp_path / "v.npz", x=np.random.default_rng(0).normal(size=(50, 5)).astype("f4"), y=np.arange(50) % 2)
    spec = {"name": "npz", "path": "v.npz"}
    with pytest.raises(InvalidConfig, match="residual_cnn"):
        resolve(config(data=spec, batch_size=8), tmp_path)
    with pytest.raises(InvalidConfig, match="augmentation"):
        resolve(
            config(data={**spec, "augmentation": "shift"}, network={"architecture": "mlp", "widths": [4]}), tmp_path
        )


def test_more_workers_than_cores_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(**executor: Any) -> bool:
        return any("share 2 cores; num_workers" in warning for warning in resolve(config(executor=executor)).warnings)

    monkeypatch.setattr("bll.partition.usable_cores", lambda: 2)
    assert warned()
    assert warned(num_workers=2, threads_per_block=2)
    assert not warned(num_workers=2)
    assert not warned(name="sequential", threads_per_block=2)


def test_probable_mistakes_are_warned_of() -> None:
    plan = resolve(
        config(latent={"family": "unit_gaussian"}, blocks={"num_blocks": 5}, executor={"threads_per_block": 256})
    )
    text = " ".join(plan.warnings)
    assert all(word in text for word in ("unit_gaussian", "num_blocks 5", "threads_per_block 256", "left out"))
