"""What only a CUDA device can tell: `make test-gpu`. Those of two devices are skipped where there is one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bll import checkpoint, data
from bll.config import TrainingConfig
from bll.events import Evaluation, RunEnded
from bll.joint import JointUnit, make_unit
from bll.lines import Inlet, Outlet
from bll.messages import Channel, DequeChannel, Kind, Packet
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training
from bll.transfers import StreamLane, make_lane
from bll.wiring import wire
from bll.worker import BlockUnit, Run, Unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")

CPU = torch.device("cpu")
CUDA = torch.device("cuda:0")

SPECS: dict[str, dict[str, Any]] = {
    "cnn": {"network": {"widths": [8, 16]}, "blocks": {"num_blocks": 3}},
    "chain": {
        "network": {"architecture": "mlp", "widths": [32, 32, 32]},
        "blocks": {"num_blocks": 3},
        "latent": {"family": "gaussian", "units": 8},
        "backward": {"twin": "chain", "delay_steps": 2},
    },
    "pairs_next_layer": {
        "network": {"architecture": "mlp", "widths": [32, 32, 32]},
        "blocks": {"num_blocks": 3},
        "latent": {"readout": "next_layer", "units": 8},
        "loss": {"span": 2},
    },
    "laplace_auxiliary": {
        "network": {"widths": [8]},
        "blocks": {"num_blocks": 2},
        "latent": {"family": "laplace", "units": 8},
        "loss": {"name": "discriminative", "similarity": 0.3, "reconstruction": 0.3},
        "mixing": {"start": 0.5},
    },
    "prototype": {
        "rule": "prototype",
        "network": {"architecture": "mlp", "widths": [16, 16]},
        "blocks": {"num_blocks": 2},
    },
    "autoencoder": {
        "data": {"name": "digits", "target": "inputs"},
        "network": {"architecture": "conv_autoencoder", "widths": [4, 8]},
        "blocks": {"num_blocks": 2},
        "loss": {"name": "decoder"},
    },
    "transformer": {
        "data": {"name": "reversal", "train_rows": 400, "validation_rows": 40},
        "network": {"architecture": "transformer", "widths": [16] * 2, "heads": 2},
        "blocks": {"num_blocks": 2},
        "batch_size": 32,
    },
    "target_propagation": {
        "rule": "target_propagation",
        "network": {"architecture": "mlp", "widths": [16, 16], "dropout": 0.1},
    },
}
WITHOUT_DRAWS = sorted(SPECS.keys() - {"target_propagation", "prototype"})
"""Draws are made by a device's own generator: losses with them differ."""


def plan_of(key: str, *devices: str, **executor: Any) -> Plan:
    base = {"data": {"name": "digits"}, "batch_size": 128, "epochs": 1, "diagnostics": {"per_epoch": 0}, **SPECS[key]}
    values = {"name": "sequential", "devices": list(devices), **executor}
    return resolve(from_dict(TrainingConfig, {**base, "executor": values}))


class CopyingChannel(DequeChannel):
    """What a line between processes does to tensors, which must be on the host."""

    crosses_processes = True

    def send(self, packet: Packet, timeout_s: float) -> bool:
        assert all(tensor.is_pinned() or not tensor.numel() for tensor in packet.tensors)
        return super().send(packet._replace(tensors=tuple(tensor.clone() for tensor in packet.tensors)), timeout_s)


def units_of(plan: Plan, channel: type[DequeChannel] = DequeChannel, run: Run | None = None) -> list[Unit]:
    dataset = data.load(plan.config.data, plan.config.seed, None)
    links = wire(plan, plan.units, lambda _slots, _size: channel(), lambda _event: None, lambda: False)
    run = run or Run(plan, "", Path(), None, 0, Placement(plan.units))
    units = [make_unit(run, blocks, dataset, link) for blocks, link in zip(plan.units, links, strict=True)]
    for unit in reversed(units):
        unit.start()
    return units


def blocks_of(units: list[Unit]) -> list[BlockUnit]:
    return [b for u in units for b in (u.blocks if isinstance(u, JointUnit) else [u]) if isinstance(b, BlockUnit)]


def ends(channel: Channel) -> tuple[Outlet, Inlet]:
    return Outlet(channel, lambda _seconds, _ended: None), Inlet(channel, lambda _seconds, _ended: None)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Makes every call that waits for the device an error, once the test sets the mode."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def exact_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions would use TensorFloat-32, with 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("key", WITHOUT_DRAWS)
def test_first_losses_are_those_of_the_cpu(key: str) -> None:
    on_cpu, on_cuda = (blocks_of(units_of(plan_of(key, device))) for device in ("cpu", "cuda"))
    for block, other in zip(on_cpu, on_cuda, strict=True):
        expected, found = block.forward_step(0), other.forward_step(0)
        assert found.loss.device == CUDA
        torch.testing.assert_close(found.local.loss_B.cpu(), expected.local.loss_B, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("channel", [DequeChannel, CopyingChannel])
@pytest.mark.parametrize(
    ("key", "precision"),
    [(key, "float32") for key in SPECS] + [(key, "bfloat16") for key in SPECS if key != "target_propagation"],
)
def test_a_training_step_does_not_wait_for_the_device(
    key: str, precision: str, channel: type[DequeChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(key, "cuda", precision=precision)
    units = units_of(plan, channel)
    monkeypatch.setattr("bll.progress.ProgressMeter.is_due", lambda _self, _step: False)
    for step in range(8):
        if step == 3:  # what the first steps set up has been set up
            torch.cuda.set_sync_debug_mode("error")
        for unit in units:
            unit.train_step(step)


@pytest.mark.parametrize("name", ["sequential", "threads", "processes"])
@pytest.mark.parametrize("devices", [("cuda",), ("cpu", "cuda", "cpu")])
def test_a_run_on_cuda_learns_as_on_the_cpu(name: str, devices: tuple[str, ...], tmp_path: Path) -> None:
    def last(*on: str, name: str = "sequential") -> Evaluation:
        plan = plan_of("chain", *on, name=name)
        plan = resolve(replace(plan.config, epochs=5))
        events = list(Training(plan, tmp_path / "-".join((name, *on))).events())
        assert events[-1] == RunEnded(plan.total_steps, finished=True)
        return [event for event in events if isinstance(event, Evaluation)][-1]

    expected, found = last("cpu").mixture, last(*devices, name=name).mixture
    assert found.accuracy == pytest.approx(expected.accuracy, abs=0.03)
    assert found.nll_nats == pytest.approx(expected.nll_nats, abs=0.05)


@pytest.mark.parametrize(("before", "after"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_goes_on_on_another_device(before: str, after: str, tmp_path: Path) -> None:
    plan = plan_of("chain", before, checkpoint_steps=4)
    run = Run(plan, "digest", tmp_path, None, 0, Placement(plan.units))
    units = units_of(plan, run=run)
    for step in range(4):
        for unit in units:
            unit.train_step(step)
    for unit in units:
        unit.save(4)
    folder = tmp_path / "checkpoints" / "step-000000004"
    files = sorted(folder.glob("*.safetensors"))
    digests = {index: hashlib.sha256(file.read_bytes()).hexdigest() for index, file in enumerate(files)}
    checkpoint.commit(tmp_path, 4, digests, "digest", kept=1)
    elsewhere = plan_of("chain", after, checkpoint_steps=4)
    restored = blocks_of(units_of(elsewhere, run=Run(elsewhere, "digest", tmp_path, None, 4, Placement(plan.units))))
    for block, file in zip(restored, files, strict=True):
        saved = load_file(file)
        assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
        state = {f"block.{name}": tensor for name, tensor in block.block.state_dict().items()}
        assert {tensor.device.type for tensor in state.values()} == {after}
        state |= block.optimizer.state()
        assert state.keys() <= saved.keys()
        assert all(torch.equal(tensor.cpu(), saved[name]) for name, tensor in state.items())
    for block in restored:
        assert torch.isfinite(block.forward_step(4).loss)


def test_a_model_trained_on_cuda_predicts_and_is_exported_on_the_cpu(tmp_path: Path) -> None:
    plan = plan_of("cnn", "cuda", precision="bfloat16")
    for _ in Training(plan, tmp_path / "run").events():
        pass
    model = Training(plan, tmp_path / "run").model()
    assert {tensor.device for tensor in model.network.state_dict().values()} == {CPU}
    assert np.isfinite(model.predict(model.validation_inputs(3))["probabilities"]).all()
    assert model.export(tmp_path / "export").parity <= 1e-4


def test_copies_keep_their_values_while_the_device_is_busy() -> None:
    lane = StreamLane(CUDA)
    outlet, inlet = ends(CopyingChannel())
    sent = [torch.full((1 << 18,), float(number)) for number in range(20)]
    departed = []
    for number, tensor in enumerate(sent):
        with lane.current():
            torch.cuda._sleep(5_000_000)  # type: ignore[no-untyped-call]
            arrived = lane.arrive(tensor)
            tensor.fill_(-1)  # the caller's own memory is free again
            doubled = 2 * arrived
            del arrived
            lane.send(outlet, Packet(Kind.TRAIN, 0, number, (doubled,)))
            departed.append(lane.depart(doubled))
            del doubled
            lane.flush()
    for number, read in enumerate(departed):
        assert torch.equal(read(), torch.full((1 << 18,), 2.0 * number))
        assert torch.equal(inlet.receive().tensors[0], torch.full((1 << 18,), 2.0 * number))


def handed_over(source: torch.device, target: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor that is still being computed when it is sent, and what its receiver makes of it."""
    sender, receiver = make_lane(source), make_lane(target)
    outlet, inlet = ends(DequeChannel())
    with sender.current():
        message = torch.zeros(1 << 20, device=source)
        torch.cuda._sleep(50_000_000)  # type: ignore[no-untyped-call]
        message += 1
        sender.send(outlet, Packet(Kind.TRAIN, 0, 0, (message,)))
    with receiver.current():
        (received,) = receiver.receive(inlet.receive()).tensors
        result = received * 2
    torch.cuda.synchronize()
    assert torch.equal(result.cpu(), torch.full((1 << 20,), 2.0))
    return message, received


def test_on_one_device_a_message_is_handed_over_as_it_is() -> None:
    message, received = handed_over(CUDA, CUDA)
    assert received is message


def test_a_message_goes_from_a_device_to_a_block_on_the_cpu() -> None:
    assert handed_over(CUDA, CPU)[1].device == CPU


@two_devices
def test_between_two_devices_a_message_is_copied_once_it_is_there() -> None:
    assert handed_over(CUDA, torch.device("cuda:1"))[1].device == torch.device("cuda:1")


@two_devices
def test_blocks_on_two_devices_learn_as_on_one(tmp_path: Path) -> None:
    one, two = plan_of("cnn", "cuda:0"), plan_of("cnn", "cuda:0", "cuda:1", "cuda:0")
    for plan, folder in ((one, "one"), (two, "two")):
        for _ in Training(plan, tmp_path / folder).events():
            pass
    # The same kind of device: the same run, which another placement of it can load.
    expected, found = (Training(one, tmp_path / folder).model().evaluate("validation") for folder in ("one", "two"))
    assert found.mixture.nll_nats == pytest.approx(expected.mixture.nll_nats, abs=0.02)
