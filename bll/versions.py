"""What flows right to left between two neighbours: versions of a block, by a fixed rule of age.

Class tables flow for a chain of twins, first layers for readouts that hold a copy of one. At step t a block uses
version max(0, t - delay_steps) of its right neighbour, where version v is the neighbour after v updates. The rule
looks at no clock, so every executor computes the same (method, section 5). Shapes: C classes, P natural parameters
per unit, D units, W weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from bll.choices import ReadoutName, TwinName
from bll.config import TrainingConfig
from bll.lines import Inlet, Outlet
from bll.messages import Kind, Packet
from bll.transfers import Lane


class Version(NamedTuple):
    """What a block tells its left neighbour of itself after some updates. None: does not flow in this run."""

    table: Tensor | None = None
    """Parameters of its class table, shape (C, P, D)."""
    first_layer: Tensor | None = None
    """All parameters of its first layer, shape (W,)."""


def carried(config: TrainingConfig) -> tuple[str, ...]:
    """The fields of Version that flow in a run of `config`, in their order."""
    flows = {
        "table": config.backward.twin is TwinName.CHAIN,
        "first_layer": config.latent.readout is ReadoutName.NEXT_LAYER,
    }
    return tuple(name for name in Version._fields if flows[name])


class RightVersions:
    """The right neighbour's versions, as they are asked for."""

    def __init__(self, config: TrainingConfig, incoming: Inlet | None, lane: Lane) -> None:
        """`lane` is where versions come to."""
        self._incoming = incoming
        self._lane = lane
        self._carried = carried(config)
        self._delay_steps = config.backward.delay_steps
        self._number, self._version = -1, Version()

    def at(self, step: int) -> Version:
        """The version for step `step`, which must not fall from call to call. Nothing where there is no neighbour."""
        if self._incoming is None:
            return self._version
        wanted = max(0, step - self._delay_steps)
        while self._number < wanted:
            packet = self._incoming.receive()
            self._number = packet.step
            tensors = self._lane.receive(packet).tensors
            self._version = Version(**dict(zip(self._carried, tensors, strict=True)))
        if self._number != wanted:
            raise RuntimeError(f"expected version {wanted} from the right, got {self._number}")
        return self._version

    def staleness(self, step: int) -> int:
        """Steps that the version last asked for lies before `step`; 0 where nothing flows."""
        return step - self._number if self._incoming else 0


class OwnVersions:
    """A block's versions on their way left. Those that the neighbour may still ask for go into checkpoints."""

    def __init__(
        self, config: TrainingConfig, outgoing: Outlet | None, make: Mapping[str, Callable[[int], Tensor]], lane: Lane
    ) -> None:
        """`make[name](number)` gives one field of Version as it is, after `number` updates, in a tensor of its own;
        `lane` is where it comes from."""
        self._outgoing = outgoing
        self._lane = lane
        self._carried = carried(config)
        self._make = make
        self._delay_steps = config.backward.delay_steps
        self._kept: deque[tuple[Tensor, ...]] = deque(maxlen=self._delay_steps + 1)
        """The tensors of each version, in the order of what is carried."""

    def start(self, step: int) -> None:
        """Send what the neighbour needs before it does step `step`: the first version, or those kept."""
        if not self._kept:
            self.send(0)
            return
        for number, tensors in enumerate(self._kept, start=step - len(self._kept) + 1):
            self._put(number, tensors)

    def come_in(self, step: int) -> None:
        """Stand as a block that has done `step` steps, whose weights are older: what it kept of itself before counts
        as its newest versions. On a line within the worker they are sent again; other lines have kept theirs."""
        if self._outgoing is None:
            return
        if not self._kept:
            self._kept.append(self._made(step))
        while len(self._kept) < min(self._delay_steps, step) + 1:
            self._kept.appendleft(self._kept[0])
        if self._outgoing.channel.slots is None:
            self.start(step)

    def send(self, number: int) -> None:
        """Send the block as it is, after `number` updates."""
        if self._outgoing is None:
            return
        self._kept.append(self._made(number))
        self._put(number, self._kept[-1])

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, on the host, where those of the checkpoint before still are."""
        if not self._kept:
            return {}
        columns = zip(self._carried, zip(*self._kept, strict=True), strict=True)
        return {f"sent_{name}s": torch.stack([tensor.cpu() for tensor in tensors]) for name, tensors in columns}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises KeyError if it is not there."""
        if self._outgoing is not None:
            columns = [tensors[f"sent_{name}s"].unbind() for name in self._carried]
            self._kept.extend(zip(*columns, strict=True))

    @torch.no_grad()
    def _made(self, number: int) -> tuple[Tensor, ...]:
        return tuple(self._make[name](number) for name in self._carried)

    def _put(self, number: int, tensors: tuple[Tensor, ...]) -> None:
        assert self._outgoing is not None
        self._lane.send(self._outgoing, Packet(Kind.VERSION, 0, number, tensors))
