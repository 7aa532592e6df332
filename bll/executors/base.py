"""The small interface of every executor, and the wiring of blocks that they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol, TypeVar

import torch

from bll.choices import TwinName
from bll.families import make_family
from bll.messages import Channel
from bll.plan import Plan
from bll.readouts import latent_units
from bll.sending import message_shape
from bll.worker import Links, Run, WorkerEvent


class Executor(Protocol):
    """Runs every block of one run, once."""

    def launch(self, run: Run) -> None:
        """Start the blocks. Raises DataError or CheckpointError if one cannot be built."""
        ...

    def events(self) -> Generator[WorkerEvent, None, None]:
        """What the workers tell, until all have ended; closing the iterator ends them.

        Raises BlockFailed or Diverged once a worker has, after the others were ended.
        """
        ...

    def stop(self) -> None:
        """Ask for an end at the next marker, with a checkpoint. From any thread or signal handler; repeatable."""
        ...


C = TypeVar("C", bound=Channel)


def wire(
    plan: Plan,
    make_channel: Callable[[int, int], C],
    emit: Callable[[WorkerEvent], None],
    stop_requested: Callable[[], bool],
) -> list[Links]:
    """The connections of every block, over channels from `make_channel(slots, largest packet in bytes)`."""
    config, batch, family = plan.config, plan.config.batch_size, make_family(plan.config.latent)
    rightward: list[C | None] = [None]
    leftward: list[C | None] = []
    for index, (block, right) in enumerate(pairwise(plan.blocks)):
        message = math.prod(message_shape(block.output_shape, family, config.latent))
        scalars = batch * (message + (index + 1) * plan.num_classes)
        rightward.append(make_channel(config.executor.messages_in_flight, 4 * scalars))
        if config.backward.twin is TwinName.CHAIN:
            # At most delay + 1 versions wait while their block is ahead, and one is on its way at each end.
            table = plan.num_classes * family.num_parameters * latent_units(right.output_shape, config.latent)
            leftward.append(make_channel(config.backward.delay_steps + 3, 4 * table))
        else:
            leftward.append(None)
    rightward.append(None)
    leftward.append(None)
    return [
        Links(
            inbox=rightward[index],
            outbox=rightward[index + 1],
            tables_in=leftward[index],
            tables_out=leftward[index - 1] if index else None,
            emit=emit,
            stop_requested=stop_requested,
        )
        for index in range(plan.num_blocks)
    ]


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads an operation, in this thread and those started meanwhile; then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
