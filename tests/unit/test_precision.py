"""What bfloat16 changes, and what it leaves in float32."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bll import data
from bll.choices import ExecutorName, PrecisionName
from bll.config import TrainingConfig
from bll.diagnostics import Step
from bll.events import Evaluation, RegressionEvaluation, RunEnded
from bll.joint import JointUnit, make_unit
from bll.messages import Channel, DequeChannel, Kind, Packet
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.precision import in_float32
from bll.training import Training, fit
from bll.wiring import wire
from bll.worker import BlockUnit, Run

CHAIN: dict[str, Any] = {
    "network": {"architecture": "mlp", "widths": [32, 32]},
    "blocks": {"num_blocks": 2},
    "backward": {"twin": "chain", "delay_steps": 2},
}
SPECS: dict[str, dict[str, Any]] = {
    "cnn_dropout": {"network": {"widths": [8, 8], "dropout": 0.2}, "blocks": {"num_blocks": 3}},
    "natural_normalised": {
        **CHAIN,
        "blocks": {"num_blocks": 2, "normalize_messages": True},
        "latent": {"readout": "identity", "message": "natural"},
    },
    "next_layer_pairs": {**CHAIN, "latent": {"readout": "next_layer", "units": 8}, "loss": {"span": 2}},
    "auxiliary": {**CHAIN, "loss": {"name": "discriminative", "similarity": 0.5, "reconstruction": 0.5}},
    "prototype": {**CHAIN, "rule": "prototype"},
    "autoencoder": {
        "data": {"name": "digits", "target": "inputs"},
        "network": {"architecture": "conv_autoencoder", "widths": [4, 8]},
        "blocks": {"num_blocks": 2},
        "loss": {"name": "decoder"},
    },
    "transformer": {
        "data": {"name": "reversal", "train_rows": 300, "validation_rows": 40},
        "network": {"architecture": "transformer", "widths": [16] * 2, "heads": 2},
        "blocks": {"num_blocks": 2},
    },
    "backprop": {"rule": "backprop", "network": {"widths": [8]}},
}


def plan_of(values: dict[str, Any], precision: str = "bfloat16", **more: Any) -> Plan:
    base = {"data": {"name": "digits"}, "batch_size": 128, "epochs": 1, **values, **more}
    executor = {"name": "sequential", "precision": precision}
    return resolve(from_dict(TrainingConfig, {**base, "executor": executor}))


class Listening(DequeChannel):
    """A line that keeps what has gone over it."""

    heard: list[Packet]

    def __init__(self) -> None:
        super().__init__()
        self.heard = []

    def send(self, packet: Packet, timeout_s: float) -> bool:
        self.heard.append(packet)
        return super().send(packet, timeout_s)


def first_steps(plan: Plan, channels: list[Listening] | None = None) -> list[Step]:
    """Every block's first step, before its gradient."""
    dataset = data.load(plan.config.data, plan.config.seed, None)
    kept = channels if channels is not None else []

    def make_channel(_slots: int, _size: int) -> Listening:
        kept.append(Listening())
        return kept[-1]

    links = wire(plan, plan.units, make_channel, lambda _event: None, lambda: False)
    run = Run(plan, "", Path(), None, 0, Placement(plan.units))
    units = [make_unit(run, blocks, dataset, link) for blocks, link in zip(plan.units, links, strict=True)]
    for unit in reversed(units):
        unit.start()
    blocks = [b for u in units for b in (u.blocks if isinstance(u, JointUnit) else [u])]
    return [block.forward_step(0) for block in blocks if isinstance(block, BlockUnit)]


@pytest.mark.parametrize("key", SPECS)
def test_losses_are_float32_and_near_those_of_float32(key: str) -> None:
    reduced, full = first_steps(plan_of(SPECS[key])), first_steps(plan_of(SPECS[key], "float32"))
    assert any(step.output.dtype is torch.bfloat16 for step in reduced)
    for step, expected in zip(reduced, full, strict=True):
        found = (step.alpha_BPD, *step.table, *step.local, step.loss)
        assert {tensor.dtype for tensor in found} == {torch.float32}
        assert step.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
        assert not torch.equal(step.alpha_BPD, expected.alpha_BPD)
        # 8 bits of a number, through a few layers.
        torch.testing.assert_close(step.alpha_BPD, expected.alpha_BPD, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("key", SPECS)
def test_steps_and_evaluations_of_every_kind_run_in_bfloat16(key: str, tmp_path: Path) -> None:
    plan = plan_of(SPECS[key], batch_size=256 if key != "transformer" else 128)
    events = list(Training(plan, tmp_path).events())
    assert isinstance(events[-1], RunEnded)
    (scores,) = [event for event in events if isinstance(event, Evaluation | RegressionEvaluation)]
    assert math.isfinite(scores.mixture.nll_nats)


def test_messages_travel_in_bfloat16_and_tables_in_float32() -> None:
    channels: list[Listening] = []
    first_steps(plan_of(CHAIN), channels)
    packets = [packet for channel in channels for packet in channel.heard]
    assert {(packet.kind, tensor.dtype) for packet in packets for tensor in packet.tensors} == {
        (Kind.TRAIN, torch.bfloat16),
        (Kind.VERSION, torch.float32),
    }


def test_slots_for_messages_are_half_as_large() -> None:
    def message_bytes(precision: str) -> int:
        plan, sizes = plan_of(CHAIN, precision), list[int]()

        def make_channel(_slots: int, size: int) -> Channel:
            sizes.append(size)
            return DequeChannel()

        wire(plan, plan.units, make_channel, lambda _event: None, lambda: False)
        return sizes[0] - 128 * 4 * 10  # the exit's log-probabilities of an evaluation, in float32

    assert message_bytes("float32") == 2 * message_bytes("bfloat16") == 128 * 4 * 32


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bfloat16")


CNN = plan_of(SPECS["cnn_dropout"], epochs=6)


@pytest.fixture(scope="module")
def evaluation(run_dir: Path) -> Evaluation:
    """The last one of a run of CNN in `run_dir`."""
    events = list(Training(CNN, run_dir).events())
    return [event for event in events if isinstance(event, Evaluation)][-1]


def test_a_network_learns_in_bfloat16_and_predicts_as_well_in_float32(evaluation: Evaluation, run_dir: Path) -> None:
    assert evaluation.mixture.accuracy > 0.85
    found = Training(CNN, run_dir).model().evaluate("validation").mixture
    assert found.accuracy == pytest.approx(evaluation.mixture.accuracy, abs=0.02)
    assert found.nll_nats == pytest.approx(evaluation.mixture.nll_nats, abs=0.02)


@pytest.mark.usefixtures("evaluation")
def test_checkpoints_hold_float32(run_dir: Path) -> None:
    cuts = list(run_dir.glob("checkpoints/*"))
    files = [file for cut in cuts for file in cut.glob("*.safetensors")]
    assert len(files) == 3 * len(cuts) > 0
    dtypes = {
        (name, tensor.dtype) for file in files for name, tensor in load_file(file).items() if tensor.is_floating_point()
    }
    assert {dtype for name, dtype in dtypes if name != "mixing"} == {torch.float32}


@pytest.mark.usefixtures("evaluation")
def test_a_model_trained_in_bfloat16_is_exported_in_float32(run_dir: Path, tmp_path: Path) -> None:
    manifest = Training(CNN, run_dir).model().export(tmp_path)
    assert manifest.parity <= 1e-4
    assert manifest.config.executor.precision is PrecisionName.BFLOAT16
    assert {tensor.dtype for tensor in (*manifest.inputs, *manifest.outputs)} == {"float32"}


def test_bfloat16_is_deterministic_and_differs_from_float32() -> None:
    def weights(precision: PrecisionName, name: ExecutorName) -> list[torch.Tensor]:
        executor = replace(CNN.config.executor, precision=precision, name=name)
        model = fit(replace(CNN.config, executor=executor, epochs=1))
        return list(model.network.state_dict().values())

    first = weights(PrecisionName.BFLOAT16, ExecutorName.SEQUENTIAL)
    again = weights(PrecisionName.BFLOAT16, ExecutorName.THREADS)
    other = weights(PrecisionName.FLOAT32, ExecutorName.SEQUENTIAL)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_widening_leaves_every_other_dtype_alone() -> None:
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensor = torch.ones(2, dtype=dtype)
        assert in_float32(tensor) is tensor
    assert in_float32(torch.ones(2, dtype=torch.bfloat16)).dtype is torch.float32
