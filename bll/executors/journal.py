"""How far a worker process is, in memory that outlives it: where another one takes its place.

A worker's action counts once it is in the journal, whole or not at all: until then its neighbours keep what it has
received, and what it has sent is known by its number. So a process that is killed at any moment is replaced by one
that does the action in progress once more, and neither loses nor repeats a packet.
"""

from __future__ import annotations

from multiprocessing.context import BaseContext
from typing import NamedTuple

from bll.executors.ring import RingChannel


class Entry(NamedTuple):
    """Where a worker stood at the end of an action: the counts of its lines, 0 where it has none."""

    turns: int = 0
    """Actions done, each by all blocks of the worker."""
    received: int = 0
    """Messages from the left."""
    sent: int = 0
    """Messages to the right."""
    versions_received: int = 0
    """Versions of the right neighbour, less the one in use: that is read again."""
    versions_sent: int = 0
    """Versions of its own."""


class Journal:
    """The newest entry. Made by the parent, written by the worker, read when the worker is dead."""

    def __init__(self, context: BaseContext) -> None:
        width = len(Entry._fields)
        self._numbers = context.RawArray("Q", 1 + 2 * width)
        self._places = (slice(1, 1 + width), slice(1 + width, None))

    def write(self, entry: Entry) -> None:
        """Make `entry` the newest. It is there from one moment to the next: a single number says which one counts."""
        writes = self._numbers[0] + 1
        self._numbers[self._places[writes % 2]] = entry
        self._numbers[0] = writes

    def read(self) -> Entry:
        """The newest entry; all zeros if there was none."""
        return Entry(*self._numbers[self._places[self._numbers[0] % 2]])


class Rings(NamedTuple):
    """The rings of one worker. None where there is no neighbour, or nothing flows."""

    inbox: RingChannel | None
    outbox: RingChannel | None
    backward_in: RingChannel | None
    backward_out: RingChannel | None

    def take_over(self, entry: Entry) -> None:
        """Stand where the worker stood at `entry`, and keep what is received from now on until `give_back`."""
        if self.inbox:
            self.inbox.take_over(0, entry.received)
        if self.outbox:
            self.outbox.take_over(entry.sent, 0)
        if self.backward_in:
            self.backward_in.take_over(0, entry.versions_received)
        if self.backward_out:
            self.backward_out.take_over(entry.versions_sent, 0)
        for ring in (self.inbox, self.backward_in):
            if ring:
                ring.holds = True
        self.give_back(entry)  # it may have died between its entry and this

    def entry(self, turns: int) -> Entry:
        """Where the worker stands now."""
        return Entry(
            turns,
            self.inbox.received if self.inbox else 0,
            self.outbox.sent if self.outbox else 0,
            max(0, self.backward_in.received - 1) if self.backward_in else 0,
            self.backward_out.sent if self.backward_out else 0,
        )

    def give_back(self, entry: Entry) -> None:
        """Let the neighbours have the slots that nobody will read again once `entry` is written."""
        if self.inbox:
            self.inbox.free(entry.received)
        if self.backward_in:
            self.backward_in.free(entry.versions_received)
