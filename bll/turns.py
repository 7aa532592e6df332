"""The loop of one worker: the blocks that it holds take turns, an action each.

The sequential executor is one worker that holds all blocks; threads and processes have several, and lines of their
own between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bll.data import Dataset
from bll.joint import make_unit
from bll.messages import DequeChannel
from bll.wiring import BlockEnded, Links, wire
from bll.worker import Run, Unit, run_block


class Worker:
    """Consecutive units of a run, in one loop."""

    def __init__(self, run: Run, blocks: range, dataset: Dataset, links: Links) -> None:
        """`blocks` are one of `run.placement.workers`, `links` lead to the workers beside it."""
        units = tuple(unit for unit in run.plan.units if unit.start in blocks)
        lines = wire(run.plan, units, lambda _slots, _size: DequeChannel(), links.emit, links.stop_requested)
        lines[0] = replace(lines[0], inbox=links.inbox, backward_out=links.backward_out)
        lines[-1] = replace(lines[-1], outbox=links.outbox, backward_in=links.backward_in)
        # One after the other, from the left: initial weights are drawn from torch's global generator.
        self.units: list[Unit] = [make_unit(run, unit, dataset, line) for unit, line in zip(units, lines, strict=True)]
        self.run = run
        self.blocks = blocks
        self.links = links
        self.turn = blocks[0]
        """First block of the unit whose turn it is: to blame for what is raised."""

    def turns(self) -> Iterator[int]:
        """Train the units to the end of the plan or to a stop marker: the turns done, after each turn of all.

        A unit's action needs those before it of the units beside it, and the same one of the unit to its left: so a
        turn goes from left to right, and no placement can make two workers wait for each other.
        """
        loops = [run_block(unit) for unit in self.units]
        for unit, loop in zip(reversed(self.units), reversed(loops), strict=True):
            self.turn = unit.index  # a block's first version may need that of its right neighbour
            next(loop)
        done = max(1, self.run.takeover.turns) if self.run.takeover else 1
        yield done
        ended: list[int] = []
        while not ended:  # blocks walk through the same schedule, so all end in the same turn
            for unit, loop in zip(self.units, loops, strict=True):
                self.turn = unit.index
                try:
                    next(loop)
                except StopIteration as end:
                    ended.append(end.value)
            if ended:
                self.links.emit(BlockEnded(self.blocks[0], ended[0]))
            done += 1
            yield done
