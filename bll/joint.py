"""Blocks whose local losses reach over boundaries (`loss.span` above 1): one unit, one graph.

With span s, L_k trains the parameters of blocks k-s+1 to k: overlapping pairs for s = 2 (method, section 8), and every
exit by backpropagation for s = num_blocks. Forward values are those of ordinary blocks; each gradient stops at what
the first block of its span received.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll.data import Dataset
from bll.messages import DequeChannel
from bll.wiring import Links, wire
from bll.worker import BlockUnit, Run, Unit


class JointUnit:
    """All blocks of a run, message by message, in one loop."""

    def __init__(self, run: Run, dataset: Dataset, links: Links) -> None:
        self.run = run
        self.links = links
        alone = tuple(range(index, index + 1) for index in range(run.plan.num_blocks))
        lines = wire(run.plan, alone, lambda _slots, _size: DequeChannel(), links.emit, links.stop_requested)
        self.blocks = [BlockUnit(run, index, dataset, line, keeps_graph=True) for index, line in enumerate(lines)]

    @property
    def index(self) -> int:
        return 0

    def start(self) -> None:
        for block in reversed(self.blocks):  # a block's first version may need that of its right neighbour
            block.start()

    def stop_before(self, step: int) -> bool:
        return self.links.stop_requested()

    def train_step(self, step: int) -> None:
        """Run all blocks forward, then let each local loss train the blocks of its span."""
        taken = [block.forward_step(step) for block in self.blocks]
        self._backward([each.loss for each in taken])
        for block, each in zip(self.blocks, taken, strict=True):
            block.update(each)

    def evaluate_batch(self, step: int, batch: int) -> None:
        for block in self.blocks:
            block.evaluate_batch(step, batch)

    def save(self, step: int) -> None:
        for block in self.blocks:
            block.save(step)

    def _backward(self, losses: list[Tensor]) -> None:
        span = self.run.plan.config.loss.span
        if span == len(losses):
            torch.autograd.backward(torch.stack(losses).sum())
            return
        for last, loss in enumerate(losses):
            earlier = self.blocks[max(0, last - span + 1) : last]
            trained = [*self.blocks[last].block.parameters()]
            trained += [parameter for block in earlier for parameter in block.block.forward_parameters()]
            # Later losses go through the same graph; it is freed with them, at the end of the step.
            torch.autograd.backward(loss, inputs=[p for p in trained if p.requires_grad], retain_graph=True)


def make_unit(run: Run, blocks: range, dataset: Dataset, links: Links) -> Unit:
    """The unit of `blocks`, one of those in `run.plan.units`."""
    return BlockUnit(run, blocks[0], dataset, links) if len(blocks) == 1 else JointUnit(run, dataset, links)
