"""One process of a contender: `python -m benchmarks.engine.contend CONTENDER RANK RENDEZVOUS`.

Rank 0 prints what it measured on its last line, in JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.engine.bridge import BridgedProcesses
from benchmarks.engine.contenders import Contender, Figures, Window, from_json
from benchmarks.engine.delay import DelayedProcesses
from benchmarks.engine.resident import baseline_bytes, grandchildren, peak_bytes, reset_peak, worker_baseline_bytes
from benchmarks.engine.rivals import Trainer, make_trainer
from bll import data
from bll.choices import ExecutorName
from bll.events import BlockProgress
from bll.executors import Executor
from bll.forecast import forecast
from bll.partition import resolve
from bll.placement import Placement
from bll.plan import Plan
from bll.training import Training
from bll.worker import Run


def main(contender: Contender, rank: int, rendezvous: str) -> Figures:
    """What rank 0 measured."""
    torch.set_num_threads(contender.threads)
    baseline = baseline_bytes()
    plan = resolve(contender.config())
    match contender.kind:
        case "bll" | "hosted":
            return train_blocks(plan, contender.window, baseline, distant_executor(contender))
        case "forecast":
            found = forecast(plan)
            steps_s = [worker.step_s for worker in found.workers]
            return {
                "samples_per_s": found.samples_per_s,
                "limit_samples_per_s": found.batch_size / max(steps_s),
                "alone_s": found.alone_s,
                "slowest_s": max(steps_s),
            }
        case "cut":
            return {"cut": float(plan.config.blocks.cuts[0])}
        case "backprop":
            return train_rival(contender, plan, baseline, lambda: None)
        case _:
            with process_group(rank, contender.ranks, rendezvous):
                return train_rival(contender, plan, baseline, dist.barrier)


def train_rival(contender: Contender, plan: Plan, baseline: int, barrier: Callable[[], object]) -> Figures:
    """Throughput and memory of one rival over the window, between two barriers.

    `baseline` bytes were held before anything was read or built.
    """
    window, own = contender.window, os.getpid()
    dataset = data.load(plan.config.data, plan.config.seed)
    trainer: Trainer = make_trainer(contender.kind, plan, dataset, contender.cuts, contender.microbatches)
    for number in range(window.warm_up):
        trainer.step(number)
    barrier()
    reset_peak(own)
    start = time.perf_counter()
    for number in range(window.warm_up, window.warm_up + window.steps):
        trainer.step(number)
    barrier()
    seconds = time.perf_counter() - start
    peak = peak_bytes(own)
    return {
        "samples_per_s": window.steps * plan.config.batch_size / seconds,
        "peak_bytes": peak,
        "net_bytes": peak - baseline,
    }


def train_blocks(plan: Plan, window: Window, baseline: int, executor: Executor | None = None) -> Figures:
    """Throughput of the last block over the window by this process's clock, and memory of the largest worker.

    `baseline` bytes this process held before anything was read or built.
    """
    own = os.getpid()
    apart = plan.config.executor.name is ExecutorName.PROCESSES
    if apart:
        baseline = worker_baseline_bytes()
    workers = [own]
    reported: list[BlockProgress] = []
    start = 0.0
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as folder:
        for event in (events := _events(plan, Path(folder), executor)):
            if not isinstance(event, BlockProgress) or event.block != plan.num_blocks - 1:
                continue
            if event.step == window.warm_up:
                workers = grandchildren(own) if apart else workers
                for worker in workers:
                    reset_peak(worker)
                start = time.perf_counter()
                continue
            reported.append(event)
            if event.step == window.warm_up + window.steps:
                break
        seconds = time.perf_counter() - start
        peak = max(peak_bytes(worker) for worker in workers)
        events.close()
    return {
        "samples_per_s": window.steps * plan.config.batch_size / seconds,
        "reported_samples_per_s": statistics.harmonic_mean([event.samples_per_s for event in reported]),
        "peak_bytes": peak,
        "net_bytes": peak - baseline,
    }


def distant_executor(contender: Contender) -> Executor | None:
    """Who runs blocks between which there are links of a round trip; None: whom the plan names."""
    if contender.round_trip_ms is None:
        return None
    processes = BridgedProcesses if contender.kind == "hosted" else DelayedProcesses
    return processes(contender.round_trip_ms / 1e3)


def _events(plan: Plan, run_dir: Path, executor: Executor | None) -> Generator[object, None, None]:
    """The events of a run."""
    if executor is None:
        yield from Training(plan, run_dir).events()
        return
    executor.launch(Run(plan, "", run_dir, data_root=None, start_step=0, placement=Placement(plan.units)))
    yield from executor.events()


@contextmanager
def process_group(rank: int, ranks: int, rendezvous: str) -> Iterator[None]:
    """Processes that talk through gloo, which meet at `rendezvous`."""
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    print(json.dumps(main(from_json(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
