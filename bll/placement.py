"""Which worker runs which blocks. It changes nothing in the result. Torch is not imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bll.balance import even_cuts
from bll.choices import ExecutorName
from bll.cores import dealt
from bll.plan import Plan


@dataclass(frozen=True)
class Placement:
    """The workers of a run, from left to right."""

    workers: tuple[range, ...]
    """The blocks of each: consecutive units of the plan, at least one."""
    cpus: tuple[tuple[int, ...], ...] = ()
    """The cores that each must keep to; empty: the system decides."""


def worker_name(blocks: range) -> str:
    """What processes, threads and messages call the worker of `blocks`."""
    return f"block-{blocks[0]}" if len(blocks) == 1 else f"blocks-{blocks[0]}-{blocks[-1]}"


def num_workers(plan: Plan) -> int:
    """How many workers the plan asks for."""
    if plan.config.executor.name is ExecutorName.SEQUENTIAL:
        return 1
    return plan.config.executor.num_workers or len(plan.units)


def crowding(plan: Plan, workers: int, cores: float) -> str:
    """What to warn of where `workers` share `cores`; "" where each of their threads has one of its own."""
    threads = plan.config.executor.threads_per_block
    if threads > cores:
        return f"executor.threads_per_block {threads} exceeds the {cores} cores here"
    if workers * threads > cores:
        return (
            f"executor: {workers} workers x {threads} threads share {cores} cores; num_workers {cores // threads} "
            "would give each its own"
        )
    return ""


def place(plan: Plan, workers: int, costs: Sequence[float]) -> Placement:
    """The placement on `workers` workers, at most one a unit, whose slowest one is as fast as can be.

    `costs` are those of a step of each unit, in any measure. Among equals the one whose workers are the most even.
    """
    cuts = even_cuts(costs, workers)
    held = [plan.units[start:end] for start, end in zip((0, *cuts), (*cuts, len(plan.units)), strict=True)]
    executor = plan.config.executor
    return Placement(
        workers=tuple(range(units[0].start, units[-1].stop) for units in held),
        cpus=dealt(workers, executor.threads_per_block) if executor.pin_cpus else (),
    )


def flops(plan: Plan) -> tuple[float, ...]:
    """Costs of the plan's units that need no measurement: the multiply-adds of their forward passes."""
    return tuple(float(sum(plan.blocks[block].flops for block in unit)) for unit in plan.units)
