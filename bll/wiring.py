"""What connects workers, or the units of one: messages rightward, versions leftward, and events to who runs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from bll.blocks import first_layer_weights
from bll.choices import Recovery
from bll.errors import WorkerLost
from bll.events import BlockDiagnostics, BlockProgress, BlockWaiting, Evaluation, RegressionEvaluation
from bll.families import make_family
from bll.lineage import Continuation
from bll.lines import Inlet, Outlet, Tell
from bll.messages import Channel
from bll.plan import Plan
from bll.precision import message_dtype
from bll.readouts import latent_units
from bll.sending import message_shape
from bll.versions import carried


@dataclass(frozen=True)
class BlockSaved:
    """A block has written its part of the cut after `step` steps."""

    block: int
    step: int
    digest: str
    write_s: float = 0.0


@dataclass(frozen=True)
class BlockEnded:
    """A worker, whose first block is `block`, has ended in order after `step` steps."""

    block: int
    step: int


@dataclass(frozen=True)
class WorkerMissing:
    """A worker is no more while the others live on, as `executor.recovery` `continue` has it. To ask for the next event
    is to let another take its place."""

    lost: WorkerLost
    came_in: tuple[Continuation, ...]
    """Where each of its blocks goes on."""


WorkerEvent = (
    BlockProgress
    | BlockDiagnostics
    | BlockWaiting
    | Evaluation
    | RegressionEvaluation
    | BlockSaved
    | BlockEnded
    | WorkerMissing
)


@dataclass(frozen=True)
class Links:
    """Connections of a worker, or of a unit. None where there is no neighbour, or nothing flows."""

    inbox: Channel | None
    """Messages from the left."""
    outbox: Channel | None
    """Messages to the right."""
    backward_in: Channel | None
    """Versions of the right neighbour."""
    backward_out: Channel | None
    """Versions of its own, to the left."""
    emit: Callable[[WorkerEvent], None]
    stop_requested: Callable[[], bool]
    """Asked by the first block before each step."""


class LineUse(NamedTuple):
    """How a block's lines were used since this was last asked."""

    wait_s: float
    """Time spent waiting for what the neighbours send."""
    version_wait_s: float
    """The part of it for versions of the next block."""
    send_wait_s: float
    """Time spent waiting for room in the lines to the neighbours."""
    inbox_fill: float
    """Mean fraction of the line from the left that was taken when it was read: 0 where the block waits for it, 1
    where it is the slower of the two. 0 too where nothing comes from another worker."""


class Lines:
    """All lines of one block. None where there is no neighbour, or nothing flows."""

    def __init__(self, block: int, links: Links) -> None:
        def tell(neighbour: int, for_room: bool) -> Tell:
            return lambda seconds, ended: links.emit(BlockWaiting(block, neighbour, for_room, seconds, ended))

        self.inbox = Inlet(links.inbox, tell(block - 1, False)) if links.inbox else None
        self.outbox = Outlet(links.outbox, tell(block + 1, True)) if links.outbox else None
        self.backward_in = Inlet(links.backward_in, tell(block + 1, False)) if links.backward_in else None
        self.backward_out = Outlet(links.backward_out, tell(block - 1, True)) if links.backward_out else None

    def use(self) -> LineUse:
        """How they were used since this was last asked."""
        ends = self.inbox, self.backward_in, self.outbox, self.backward_out
        left, version, *sending = (end.wait_s if end else 0.0 for end in ends)
        for end in ends:
            if end:
                end.wait_s = 0.0
        return LineUse(left + version, version, sum(sending), self._fill())

    def _fill(self) -> float:
        """Mean fill of the line from the left since the last call."""
        if self.inbox is None or not self.inbox.reads or not self.inbox.channel.slots:
            return 0.0
        fill = self.inbox.depths / self.inbox.reads / self.inbox.channel.slots
        self.inbox.depths = self.inbox.reads = 0
        return fill


C = TypeVar("C", bound=Channel)


def wire(
    plan: Plan,
    parts: tuple[range, ...],
    make_channel: Callable[[int, int], C],
    emit: Callable[[WorkerEvent], None],
    stop_requested: Callable[[], bool],
) -> list[Links]:
    """The connections of parts of a run, consecutive blocks each, over channels from
    `make_channel(slots, largest packet in bytes)`."""
    # A worker that may be replaced keeps what its action has received, and the version in use.
    spare = 2 if plan.config.executor.recovery is Recovery.CONTINUE else 0
    config, batch, family = plan.config, plan.config.batch_size, make_family(plan.config.latent)
    rightward: list[C | None] = [None]
    leftward: list[C | None] = []
    for blocks in parts[:-1]:
        last = blocks[-1]
        message = math.prod(message_shape(plan.blocks[last].output_shape, family, config.latent))
        size_bytes = message_dtype(config.executor.precision).itemsize * message + 4 * (last + 1) * plan.exit_values
        rightward.append(make_channel(config.executor.messages_in_flight, batch * size_bytes))
        if carried(config):
            # At most delay + 1 versions wait while their block is ahead, and one is on its way at each end.
            slots = config.backward.delay_steps + 3 + spare
            leftward.append(make_channel(slots, 4 * _version_scalars(plan, last + 1)))
        else:
            leftward.append(None)
    rightward.append(None)
    leftward.append(None)
    return [
        Links(
            inbox=rightward[index],
            outbox=rightward[index + 1],
            backward_in=leftward[index],
            backward_out=leftward[index - 1] if index else None,
            emit=emit,
            stop_requested=stop_requested,
        )
        for index in range(len(parts))
    ]


def _version_scalars(plan: Plan, block: int) -> int:
    """Numbers in one version of a block."""
    config, scalars = plan.config, 0
    if "table" in carried(config):
        units = latent_units(plan.blocks[block].output_shape, config.latent)
        scalars += plan.num_classes * make_family(config.latent).num_parameters * units
    if "first_layer" in carried(config):
        scalars += first_layer_weights(plan, block)
    return scalars
