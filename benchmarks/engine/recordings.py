"""How long the parts of a network take on one core, recorded for the simulation: blocks that learn by themselves, and
the same layers as stages of a pipeline of backpropagation.

Blocks are timed in the sequential loop, stages microbatch by microbatch, step by step, all with one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.schedules import BlockStep, StageStep
from benchmarks.record import commit, machine
from bll import data
from bll.blocks import build_block, make_objective
from bll.checkpoint import write_atomically
from bll.data import Dataset
from bll.intra_op import intra_op_threads
from bll.joint import make_unit
from bll.messages import DequeChannel, Packet
from bll.optimizers import BlockOptimizer
from bll.placement import Placement
from bll.plan import Plan
from bll.wiring import wire
from bll.worker import Run

MICROBATCHES = (1, 2, 4, 8)
"""Parts that a batch is cut into."""
WARM_UP = 2
"""First steps that are not kept."""


@dataclass(frozen=True)
class Recording:
    """One network, cut in `len(blocks[0])` blocks."""

    batch_size: int
    blocks: list[list[BlockStep]]
    """Of each step and block."""
    stages: dict[int, list[list[StageStep]]]
    """Of each step and stage, by the number of microbatches."""


def record(plan: Plan, steps: int) -> Recording:
    """Times of `steps` training steps of `plan`, whose rule is block-local learning."""
    config = plan.config
    dataset = data.load(config.data, config.seed)
    with intra_op_threads(1):
        blocks = _blocks(plan, dataset, WARM_UP + steps)[WARM_UP:]
        stages = {
            parts: _stages(plan, dataset, WARM_UP + steps, config.batch_size // parts)[WARM_UP:]
            for parts in MICROBATCHES
        }
    return Recording(config.batch_size, blocks, stages)


def write_recordings(name: str, recordings: dict[int, Recording], folder: Path) -> None:
    """Keep the recordings of a network by its number of blocks. Times in microseconds."""
    values = {
        "commit": commit(),
        "machine": machine(),
        "blocks": {
            number: {
                "batch_size": recording.batch_size,
                "send_learn_us": _us(recording.blocks),
                "forward_backward_update_us": {parts: _us(steps) for parts, steps in recording.stages.items()},
            }
            for number, recording in recordings.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(values).encode() + b"\n")


def read(name: str, folder: Path) -> dict[int, Recording]:
    """What `write_recordings` kept under `name`. Raises FileNotFoundError."""
    values: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return {
        int(number): Recording(
            batch_size=recorded["batch_size"],
            blocks=[[BlockStep(*_seconds(each)) for each in step] for step in recorded["send_learn_us"]],
            stages={
                int(parts): [[StageStep(*_seconds(each)) for each in step] for step in steps]
                for parts, steps in recorded["forward_backward_update_us"].items()
            },
        )
        for number, recorded in values["blocks"].items()
    }


class _Stamped(DequeChannel):
    """A line that knows when it was last sent something."""

    sent_at = 0.0

    def send(self, packet: Packet, timeout_s: float) -> bool:
        self.sent_at = time.perf_counter()
        return super().send(packet, timeout_s)


def _blocks(plan: Plan, dataset: Dataset, steps: int) -> list[list[BlockStep]]:
    links = wire(plan, plan.units, lambda _slots, _size: _Stamped(), lambda _event: None, lambda: False)
    run = Run(plan, "", run_dir=Path(), data_root=None, start_step=0, placement=Placement(plan.units))
    units = [make_unit(run, blocks, dataset, link) for blocks, link in zip(plan.units, links, strict=True)]
    for unit in reversed(units):  # a block's first version may need that of its right neighbour
        unit.start()
    recorded = []
    for step in range(steps):
        taken = []
        for unit in units:
            started = time.perf_counter()
            unit.train_step(step)
            ended = time.perf_counter()
            outbox = unit.links.outbox
            sent = outbox.sent_at if isinstance(outbox, _Stamped) else started
            taken.append(BlockStep(sent - started, ended - sent))
        recorded.append(taken)
    return recorded


class _Stage:
    """The layers of one block under backpropagation; the last one has the readout and the loss too.

    Parameters that get no gradient are not stepped.
    """

    def __init__(self, plan: Plan, index: int, dataset: Dataset) -> None:
        self._block = build_block(plan, index, data.statistics(dataset.train) if index == 0 else None).train()
        self._is_last = index == plan.num_blocks - 1
        self._objective = make_objective(self._block, plan.config.loss)
        self._optimizer = BlockOptimizer(self._block, plan.config.optimizer, plan.total_steps)

    def forward(self, received: Tensor, targets_B: Tensor) -> None:
        self._received = received
        self._output: Tensor = self._block.layers(received)
        if self._is_last:
            table, alpha_BPD = self._block.twin(None), self._block.readout(self._output)
            local = self._objective.loss(alpha_BPD, table, targets_B, 1.0)
            self._output = local.loss_B.mean()

    def sent(self) -> Tensor:
        """What the next stage receives."""
        return self._output.detach().requires_grad_()

    def backward(self, gradient: Tensor | None) -> Tensor | None:
        """The gradient for the stage before, from that of the stage after."""
        torch.autograd.backward(self._output, gradient)
        return self._received.grad

    def update(self, step: int) -> None:
        self._optimizer.step(step)


def _stages(plan: Plan, dataset: Dataset, steps: int, rows: int) -> list[list[StageStep]]:
    stages = [_Stage(plan, index, dataset) for index in range(plan.num_blocks)]
    inputs = torch.from_numpy(data.as_float(dataset.train.inputs[:rows]))
    targets_B = torch.from_numpy(dataset.train.targets[:rows]).flatten()
    recorded = []
    for step in range(steps):
        received, gradient = inputs, None
        forward_s, backward_s, update_s = [], [], []
        for stage in stages:
            started = time.perf_counter()
            stage.forward(received, targets_B)
            forward_s.append(time.perf_counter() - started)
            received = stage.sent()
        for stage in reversed(stages):
            started = time.perf_counter()
            gradient = stage.backward(gradient)
            backward_s.append(time.perf_counter() - started)
        for stage in stages:
            started = time.perf_counter()
            stage.update(step)
            update_s.append(time.perf_counter() - started)
        recorded.append(list(map(StageStep, forward_s, reversed(backward_s), update_s)))
    return recorded


def _us(steps: Sequence[Sequence[tuple[float, ...]]]) -> list[list[list[int]]]:
    return [[[round(seconds * 1e6) for seconds in each] for each in step] for step in steps]


def _seconds(microseconds: list[int]) -> list[float]:
    return [value * 1e-6 for value in microseconds]
