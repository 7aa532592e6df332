"""How fast a plan will train on this machine, and in how much memory: its blocks' own steps, timed one at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bll import data
from bll.cores import usable_cores
from bll.devices import wait_for_devices
from bll.intra_op import intra_op_threads
from bll.placement import Placement, num_workers, place
from bll.plan import Plan
from bll.turns import Worker
from bll.wiring import Links
from bll.worker import Run

_STEPS = 12
_WARM_UP = 2
"""First steps that are not counted: they set up what later ones use again."""


@dataclass(frozen=True)
class Load:
    """What blocks take that run one after the other, alone on a core."""

    blocks: range
    step_s: float
    """Median time of a training step, with readout, twin, loss, optimizers and the copies of its messages."""
    memory_bytes: int
    """Weights, gradients and moments, and what a step keeps for its backward pass; interpreter and data not counted."""


@dataclass(frozen=True)
class Forecast:
    """What a pipeline of these workers can do."""

    units: tuple[Load, ...]
    """Of each part that one worker must hold whole."""
    workers: tuple[Load, ...]
    batch_size: int
    cores: int
    """That the workers can use at the same time: those of this process over the threads of each."""

    @property
    def slowest(self) -> Load:
        """The worker that bounds the throughput, the first of equals."""
        return max(self.workers, key=lambda worker: worker.step_s)

    @property
    def alone_s(self) -> float:
        """Time of a step of all blocks, one after the other."""
        return sum(worker.step_s for worker in self.workers)

    @property
    def pipeline_s(self) -> float:
        """Time from step to step once every worker has messages: bounded by the slowest, and by the cores."""
        return max(self.slowest.step_s, self.alone_s / min(self.cores, len(self.workers)))

    @property
    def speed_up(self) -> float:
        """Over the same blocks one after the other."""
        return self.alone_s / self.pipeline_s

    @property
    def samples_per_s(self) -> float:
        return self.batch_size / self.pipeline_s


def forecast(plan: Plan, root: Path | None = None) -> Forecast:
    """The forecast of `plan`, placed on its workers, by taking a few of its first training steps; nothing is written.

    `root` is where data sets are looked for first. Raises DataError.
    """
    times_s = step_times(plan, root)
    units = [
        Load(blocks, step_s, sum(plan.training_bytes(block) for block in blocks))
        for blocks, step_s in zip(plan.units, times_s, strict=True)
    ]
    placement = place(plan, num_workers(plan), times_s)
    return Forecast(
        units=tuple(units),
        workers=tuple(_joined(blocks, units) for blocks in placement.workers),
        batch_size=plan.config.batch_size,
        cores=max(1, usable_cores() // plan.config.executor.threads_per_block),
    )


def step_times(plan: Plan, root: Path | None = None, steps: int = _STEPS) -> tuple[float, ...]:
    """Median time in seconds of a training step of each unit of `plan`, over `steps` steps less those that set up.

    Nothing is written, and no state of the process is changed. Raises DataError.
    """
    dataset = data.load(plan.config.data, plan.config.seed, root)
    everything = range(plan.num_blocks)
    run = Run(plan, "", run_dir=Path(), data_root=root, start_step=0, placement=Placement((everything,)))
    alone = Links(None, None, None, None, emit=lambda _event: None, stop_requested=lambda: False)
    units = Worker(run, everything, dataset, alone).units
    taken_s: list[list[float]] = [[] for _ in units]
    with intra_op_threads(plan.config.executor.threads_per_block):
        for unit in reversed(units):  # a block's first version may need that of its right neighbour
            unit.start()
        for step in range(min(steps, plan.total_steps)):
            for unit, own_s in zip(units, taken_s, strict=True):
                start = time.perf_counter()
                unit.train_step(step)
                wait_for_devices(plan.config.executor)
                own_s.append(time.perf_counter() - start)
    return tuple(statistics.median(own_s[_WARM_UP:] or own_s) for own_s in taken_s)


def _joined(blocks: range, units: Iterable[Load]) -> Load:
    held = [unit for unit in units if unit.blocks[0] in blocks]
    return Load(blocks, sum(unit.step_s for unit in held), sum(unit.memory_bytes for unit in held))
