"""What travels between blocks, and the channels that executors provide for it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class Kind(IntEnum):
    """What a packet is."""

    TRAIN = 1
    """msg_k(t): (hidden,), to the right."""
    EVALUATE = 2
    """(hidden, log-probabilities of the exits so far, shape (k, B, C)), to the right."""
    STOP = 3
    """Marker: save and end before step `step`; to the right."""
    TABLE = 4
    """Class table of version `step`: (beta_CPD,), to the left."""


class Packet(NamedTuple):
    """One message. Tensors have no graph and are not written to by their receiver."""

    kind: Kind
    epoch: int
    step: int
    """Steps done when it was made; for EVALUATE the number of the batch; for TABLE its version."""
    tensors: tuple[Tensor, ...]


class Channel(Protocol):
    """A bounded first-in-first-out line between two neighbours."""

    def send(self, packet: Packet) -> None:
        """Waits while the line is full. Raises Aborted when the run is being torn down."""
        ...

    def receive(self) -> Packet:
        """Waits while the line is empty. Raises Aborted when the run is being torn down."""
        ...

    def depth(self) -> int:
        """Packets that wait to be received, by this moment."""
        ...


class Aborted(Exception):
    """The run is being torn down; the worker ends without a word."""
