"""A long link changes when packets arrive, and nothing else."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.engine.bridge import BridgedProcesses
from benchmarks.engine.delay import DelayedProcesses, DelayedRing
from bll.config import TrainingConfig
from bll.executors import Executor
from bll.executors.sequential import SequentialExecutor
from bll.messages import Kind, Packet
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.worker import Run

SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "backward": {"twin": "chain"},
    "blocks": {"num_blocks": 2},
    "executor": {"messages_in_flight": 2},
    "batch_size": 128,
    "epochs": 1,
}
LIMIT_S = 30.0
DISTANT = [DelayedProcesses, pytest.param(BridgedProcesses, marks=pytest.mark.network)]


def ring_of(slots: int, round_trip_s: float) -> DelayedRing:
    return DelayedRing(multiprocessing.get_context("forkserver"), slots, 64, round_trip_s)


def packet(step: int) -> Packet:
    return Packet(Kind.TRAIN, 0, step, (torch.full((2,), float(step)),))


def test_a_packet_arrives_half_a_round_trip_after_it_was_sent() -> None:
    ring = ring_of(slots=2, round_trip_s=0.6)
    sent = time.monotonic()
    assert ring.send(packet(0), LIMIT_S)
    assert ring.depth() == 0
    received = ring.receive(LIMIT_S)
    assert received
    assert time.monotonic() - sent >= 0.3
    assert (received.kind, received.epoch, received.step) == (Kind.TRAIN, 0, 0)
    assert received.tensors[0].tolist() == [0.0, 0.0]


def test_a_line_moves_no_more_than_its_slots_in_a_round_trip() -> None:
    ring = ring_of(slots=2, round_trip_s=0.04)

    def send() -> None:
        for step in range(6):
            assert ring.send(packet(step), LIMIT_S)

    sender = threading.Thread(target=send)
    started = time.monotonic()
    sender.start()
    steps = [received.step for _ in range(6) if (received := ring.receive(LIMIT_S))]
    sender.join()
    assert steps == list(range(6))
    # The last two of six went out two round trips after the first two, and then took half of one.
    assert time.monotonic() - started >= 2.5 * 0.04


def test_without_a_delay_it_is_the_ring() -> None:
    ring = ring_of(slots=3, round_trip_s=0.0)
    for step in range(3):
        assert ring.send(packet(step), LIMIT_S)
    assert ring.depth() == 3
    assert [received.step for _ in range(3) if (received := ring.receive(LIMIT_S))] == [0, 1, 2]


@pytest.mark.parametrize("distant", DISTANT)
def test_weights_over_distant_links_are_those_of_the_sequential_loop(
    distant: Callable[[float], Executor], tmp_path: Path
) -> None:
    plan = resolve(from_dict(TrainingConfig, SPEC))

    def saved(name: str, executor: Executor) -> list[str]:
        executor.launch(Run(plan, "", tmp_path / name, None, start_step=0, placement=Placement(plan.units)))
        for _ in executor.events():
            pass
        files = sorted((tmp_path / name).rglob("*.safetensors"))
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    expected = saved("sequential", SequentialExecutor())
    assert len(expected) == 2
    assert saved("distant", distant(0.01)) == expected
