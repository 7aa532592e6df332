"""What travels between blocks, and the channels that executors provide for it."""

from __future__ import annotations

from collections import deque
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Kind(IntEnum):
    """What a packet is."""

    TRAIN = 1
    """msg_k(t): (hidden,), to the right."""
    EVALUATE = 2
    """(hidden, log-probabilities of the exits so far, shape (k, B, C)), to the right."""
    STOP = 3
    """Marker: save and end before step `step`; to the right."""
    VERSION = 4
    """A block after `step` updates: what its left neighbour uses of it, to the left."""


class Packet(NamedTuple):
    """One message. Tensors are not written to by their receiver, and have no graph that leads out of its worker."""

    kind: Kind
    epoch: int
    step: int
    """Steps done when it was made; for EVALUATE the number of the batch; for VERSION the number of the version."""
    tensors: tuple[Tensor, ...]
    ready: Any = None
    """Within a process, the CUDA event after which the tensors hold their values; None: they do. It does not travel
    between processes."""


class Channel(Protocol):
    """A bounded first-in-first-out line between two neighbours."""

    crosses_processes: bool
    """Whether tensors are copied on the way, out of the host's memory and into it; else they are passed on as they
    are, on any device."""

    @property
    def slots(self) -> int | None:
        """Packets that it holds at most; None: as many as there are."""
        ...

    def send(self, packet: Packet, timeout_s: float) -> bool:
        """Waits while the line is full; False if it stays so for `timeout_s`. Raises Aborted when the run is being
        torn down."""
        ...

    def receive(self, timeout_s: float) -> Packet | None:
        """Waits while the line is empty; None if it stays so for `timeout_s`. Raises Aborted when the run is being
        torn down."""
        ...

    def depth(self) -> int:
        """Packets that wait to be received, by this moment."""
        ...


class DequeChannel:
    """A line within one loop: what is received was sent in the same turn or before."""

    slots = None
    crosses_processes = False

    def __init__(self) -> None:
        self._packets: deque[Packet] = deque()

    def send(self, packet: Packet, timeout_s: float) -> bool:
        self._packets.append(packet)
        return True

    def receive(self, timeout_s: float) -> Packet | None:
        return self._packets.popleft()

    def depth(self) -> int:
        return len(self._packets)


class Aborted(Exception):
    """The run is being torn down; the worker ends without a word."""
