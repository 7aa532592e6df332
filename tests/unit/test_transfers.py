"""What comes to a block's device and leaves it, as far as a machine without one can tell.

`torch.cpu` has streams and events that do nothing: with them the lane of a CUDA device, its staging, its deferred
sends and its buffers run here as they are. The meta device has shapes but no values: a step that runs there reads
nothing back, and mixes no devices.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bll import data
from bll.choices import ExecutorName
from bll.config import TrainingConfig
from bll.joint import make_unit
from bll.lines import Inlet, Outlet
from bll.messages import Channel, DequeChannel, Kind, Packet
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training
from bll.transfers import Lane, StreamLane, make_lane
from bll.wiring import wire
from bll.worker import Run

CPU = torch.device("cpu")
META = torch.device("meta")

SPECS: dict[str, dict[str, Any]] = {
    "chain_dropout_augmentation_cnn": {
        "data": {"name": "digits", "augmentation": "shift_flip"},
        "network": {"widths": [4, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 3},
        "latent": {"family": "gaussian", "units": 8, "readout_units": 16},
        "backward": {"twin": "chain", "delay_steps": 3},
    },
    "natural_messages_bootstrap": {
        "network": {"architecture": "mlp", "widths": [16, 12]},
        "blocks": {"num_blocks": 2, "normalize_messages": True},
        "latent": {"readout": "identity", "message": "mean", "bootstrap": 0.5, "bootstrap_epochs": 2},
    },
    "next_layer_overlapping_pairs": {
        "network": {"architecture": "mlp", "widths": [16, 12, 8]},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "units": 8},
        "backward": {"delay_steps": 2},
        "loss": {"span": 2},
    },
    "next_layer": {
        "network": {"architecture": "mlp", "widths": [16, 12, 8]},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "units": 8},
        "backward": {"twin": "chain", "delay_steps": 2},
    },
    "samples_similarity_reconstruction": {
        "network": {"widths": [4]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "gaussian", "readout": "identity", "message": "sample"},
        "loss": {"name": "discriminative", "samples": 2, "similarity": 0.3, "reconstruction": 0.1},
        "mixing": {"start": 0.5},
    },
    "laplace": {
        "network": {"architecture": "mlp", "widths": [12, 12]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "laplace", "units": 6},
        "mixing": {"start": 0.5},
    },
    "categorical": {
        "network": {"architecture": "mlp", "widths": [12, 12]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "categorical", "units": 6, "group_size": 3},
    },
    "prototype": {
        "rule": "prototype",
        "network": {"architecture": "mlp", "widths": [12, 12]},
        "blocks": {"num_blocks": 2},
    },
    "autoencoder": {
        "data": {"name": "digits", "target": "inputs"},
        "network": {"architecture": "conv_autoencoder", "widths": [4, 6], "dropout": 0.1},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 8, "readout_units": 16},
        "loss": {"name": "decoder", "samples": 2},
        "mixing": {"start": 0.5},
    },
    "among_targets": {
        "data": {"name": "digits", "target": "inputs"},
        "network": {"architecture": "conv_autoencoder", "widths": [4, 6]},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 8, "readout_units": 16},
        "loss": {"name": "in_batch"},
    },
    "transformer": {
        "data": {"name": "reversal", "train_rows": 300, "validation_rows": 40},
        "network": {"architecture": "transformer", "widths": [8] * 2, "heads": 2, "dropout": 0.1},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "batch_size": 50,
    },
    "feedback_alignment": {"rule": "feedback_alignment", "network": {"widths": [4]}},
    "direct_feedback": {
        "rule": "direct_feedback_alignment",
        "network": {"architecture": "mlp", "widths": [12, 12]},
    },
    "target_propagation": {
        "rule": "target_propagation",
        "network": {"architecture": "mlp", "widths": [12, 12], "dropout": 0.2},
    },
    "synthetic_gradients": {"rule": "synthetic_gradients", "network": {"architecture": "mlp", "widths": [12, 12]}},
}


def plan_of(key: str, name: ExecutorName = ExecutorName.SEQUENTIAL) -> Plan:
    base = {
        "data": {"name": "digits"},
        "batch_size": 256,
        "epochs": 1,
        "executor": {"name": name, "checkpoint_steps": 3},
    }
    return resolve(from_dict(TrainingConfig, {**base, **SPECS[key]}))


class CopyingChannel(DequeChannel):
    """What a line between processes does to tensors, without the processes."""

    crosses_processes = True

    def send(self, packet: Packet, timeout_s: float) -> bool:
        return super().send(packet._replace(tensors=tuple(tensor.clone() for tensor in packet.tensors)), timeout_s)


def ends(channel: Channel) -> tuple[Outlet, Inlet]:
    return Outlet(channel, lambda _seconds, _ended: None), Inlet(channel, lambda _seconds, _ended: None)


def stream_lane(device: torch.device, *, own_stream: bool = True) -> Lane:
    return StreamLane(device, own_stream=own_stream)


def weights(plan: Plan, run_dir: Path) -> dict[str, bytes]:
    for _ in Training(plan, run_dir).events():
        pass
    newest = max((run_dir / "checkpoints").iterdir())
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tensor_that_is_where_it_is_needed_passes_as_the_same_object(device: str) -> None:
    lane, (outlet, inlet) = make_lane(torch.device(device)), ends(DequeChannel())
    tensor = torch.zeros(3, device=device)
    lane.send(outlet, Packet(Kind.TRAIN, 0, 0, (tensor, tensor)))
    assert inlet.channel.depth() == 1
    assert all(received is tensor for received in lane.receive(inlet.receive()).tensors)
    assert lane.arrive(tensor) is tensor
    assert lane.depart(tensor)() is tensor


@pytest.mark.parametrize("key", ["chain_dropout_augmentation_cnn", "next_layer", "next_layer_overlapping_pairs"])
@pytest.mark.parametrize(
    ("name", "crosses"),
    [(ExecutorName.SEQUENTIAL, False), (ExecutorName.SEQUENTIAL, True), (ExecutorName.THREADS, False)],
)
def test_streams_that_wait_for_each_other_change_no_bit(
    key: str, name: ExecutorName, crosses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(key, name)
    expected = weights(plan_of(key), tmp_path / "plain")
    monkeypatch.setattr("bll.worker.make_lane", stream_lane)
    if crosses:
        monkeypatch.setattr("bll.turns.DequeChannel", CopyingChannel)
    assert weights(plan, tmp_path / "streams") == expected


def test_a_packet_between_processes_leaves_at_the_flush_in_order_and_as_it_was() -> None:
    lane, (right, from_left), (left, from_right) = StreamLane(CPU), ends(CopyingChannel()), ends(CopyingChannel())
    message, version = torch.arange(6.0).view(2, 3).T, torch.full((5,), 2, dtype=torch.bfloat16)
    expected = message.clone()
    lane.send(right, Packet(Kind.TRAIN, 0, 7, (message, version)))
    lane.send(left, Packet(Kind.VERSION, 0, 8, (version,)))
    assert from_left.channel.depth() == from_right.channel.depth() == 0
    message.zero_()
    version.zero_()
    lane.flush()
    packet = from_left.receive()
    assert (packet.kind, packet.step) == (Kind.TRAIN, 7)
    assert torch.equal(packet.tensors[0], expected)
    assert torch.equal(packet.tensors[1], torch.full((5,), 2, dtype=torch.bfloat16))
    assert torch.equal(from_right.receive().tensors[0], torch.full((5,), 2, dtype=torch.bfloat16))
    lane.flush()
    assert from_left.channel.depth() == from_right.channel.depth() == 0


def test_a_marker_leaves_after_the_packets_before_it() -> None:
    lane, (outlet, inlet) = StreamLane(CPU), ends(CopyingChannel())
    lane.send(outlet, Packet(Kind.TRAIN, 0, 0, (torch.ones(1),)))
    lane.send(outlet, Packet(Kind.STOP, 0, 1, ()))
    assert [inlet.receive().kind for _ in range(2)] == [Kind.TRAIN, Kind.STOP]


def test_arrivals_of_any_size_keep_their_values_while_later_ones_arrive() -> None:
    lane = StreamLane(CPU)
    sent = [torch.rand(size, 3) if size % 2 else torch.arange(size) for size in range(1, 12)]
    arrived = [lane.arrive(tensor) for tensor in sent]
    assert all(torch.equal(a, s) and a.dtype == s.dtype for a, s in zip(arrived, sent, strict=True))


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of two devices, and counts copies from one to another."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors: list[Tensor] = []
        torch.utils._pytree.tree_map_only(Tensor, tensors.append, (args, kwargs))
        found = func(*args, **(kwargs or {}))
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or tensor.device == META}
        assert len(devices) <= 1, f"{func} on {devices}"
        moved = isinstance(found, Tensor) and devices == {"cpu"} and found.device == META
        self.copies += moved
        return found


@pytest.mark.parametrize("key", SPECS)
def test_a_step_reads_nothing_back_and_mixes_no_devices(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its inputs and targets come to the device, and nothing else does."""
    plan = plan_of(key)
    monkeypatch.setattr("bll.worker.device_of", lambda _config, _block: META)
    fused = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(fused, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    dataset = data.load(plan.config.data, plan.config.seed, None)
    links = wire(plan, plan.units, lambda _slots, _size: DequeChannel(), lambda _event: None, lambda: False)
    run = Run(plan, "", Path(), None, 0, placement=Placement(plan.units))
    units = [make_unit(run, blocks, dataset, link) for blocks, link in zip(plan.units, links, strict=True)]
    monkeypatch.setattr("bll.progress.ProgressMeter.is_due", lambda _self, _step: False)
    monkeypatch.setattr("bll.diagnostics.Examiner.is_due", lambda _self, _step: False)
    for unit in reversed(units):
        unit.start()
    with OneDevice() as mode:
        for step in range(2):
            for unit in units:
                unit.train_step(step)
    assert 0 < mode.copies <= 2 * 2 * plan.num_blocks
