"""The placements of a run, by the time that its blocks take here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll.events import BlocksPlaced, PlacedWorker
from bll.forecast import step_times
from bll.placement import Placement, flops, place
from bll.plan import Plan

_STEPS = 6
_LARGEST_SHARE = 0.01
"""Of a run that measuring may take. A shorter run is placed by what its blocks multiply and add."""


class Placer:
    """Places the blocks of a run, as often as workers are started; times their steps once, when it first matters."""

    def __init__(self, plan: Plan, root: Path | None) -> None:
        self._plan = plan
        self._root = root
        self._times_s: tuple[float, ...] | None = None

    def placed(self, workers: int, start_step: int) -> tuple[Placement, BlocksPlaced]:
        """The best placement on `workers` workers from step `start_step` on, and what users are told of it.

        Steps are timed only where the answer depends on them, in this process, before its workers are started; on
        CUDA devices, whose memory the workers need, they are not. Raises DataError.
        """
        plan = self._plan
        if self._times_s is None and 1 < workers < len(plan.units) and self._is_worth_measuring(start_step):
            self._times_s = step_times(plan, self._root, _STEPS)
        costs = self._times_s or flops(plan)
        placement = place(plan, workers, costs)
        told = BlocksPlaced(start_step, self._times_s is not None, _workers(plan, placement, costs))
        return placement, told

    def _is_worth_measuring(self, start_step: int) -> bool:
        steps_to_go = self._plan.total_steps - start_step
        return _LARGEST_SHARE * steps_to_go >= _STEPS and set(self._plan.config.executor.devices) == {"cpu"}


def _workers(plan: Plan, placement: Placement, costs: Sequence[float]) -> tuple[PlacedWorker, ...]:
    total = sum(costs) or 1.0
    return tuple(
        PlacedWorker(
            blocks=tuple(blocks),
            share=sum(cost for unit, cost in zip(plan.units, costs, strict=True) if unit[0] in blocks) / total,
            cpus=placement.cpus[number] if placement.cpus else (),
        )
        for number, blocks in enumerate(placement.workers)
    )
