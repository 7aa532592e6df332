"""How fast a plan will train on this machine, and in how much memory: its workers' own steps, timed one at a time."""

from __future__ import annotations

import math
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bll import data
from bll.devices import wait_for_devices
from bll.intra_op import intra_op_threads
from bll.placement import Placement
from bll.plan import Plan
from bll.turns import Worker
from bll.wiring import Links
from bll.worker import Run

_STEPS = 12
_WARM_UP = 2
"""First steps that are not counted: they set up what later ones use again."""


@dataclass(frozen=True)
class WorkerForecast:
    """One worker of a run, alone on a core."""

    blocks: range
    step_s: float
    """Median time of a training step, with readout, twin, loss, optimizers and the copies of its messages."""
    memory_bytes: int
    """Weights, gradients and moments, and what a step keeps for its backward pass; interpreter and data not counted."""


@dataclass(frozen=True)
class Forecast:
    """What a pipeline of these workers can do."""

    workers: tuple[WorkerForecast, ...]
    batch_size: int
    cores: int
    """That the workers can use at the same time: the machine's over the threads of each."""

    @property
    def slowest(self) -> WorkerForecast:
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
    """The forecast of `plan`, by taking a few of its first training steps; nothing is written.

    `root` is where data sets are looked for first. Raises DataError.
    """
    config = plan.config
    dataset = data.load(config.data, config.seed, root)
    everything = range(plan.num_blocks)
    run = Run(plan, "", run_dir=Path(), data_root=root, start_step=0, placement=Placement((everything,)))
    alone = Links(None, None, None, None, emit=lambda _event: None, stop_requested=lambda: False)
    workers = Worker(run, everything, dataset, alone).units
    taken_s: list[list[float]] = [[] for _ in workers]
    with intra_op_threads(config.executor.threads_per_block):
        for worker in reversed(workers):  # a block's first version may need that of its right neighbour
            worker.start()
        for step in range(min(_STEPS, plan.total_steps)):
            for worker, own_s in zip(workers, taken_s, strict=True):
                start = time.perf_counter()
                worker.train_step(step)
                wait_for_devices(config.executor)
                own_s.append(time.perf_counter() - start)
    return Forecast(
        workers=tuple(
            WorkerForecast(
                blocks=blocks,
                step_s=statistics.median(own_s[_WARM_UP:] or own_s),
                memory_bytes=sum(plan.training_bytes(block) for block in blocks),
            )
            for blocks, own_s in zip(plan.units, taken_s, strict=True)
        ),
        batch_size=config.batch_size,
        cores=max(1, math.floor(len(os.sched_getaffinity(0)) / config.executor.threads_per_block)),
    )
