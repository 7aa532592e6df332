"""Links of a chosen round trip between the worker processes of a run: what distance alone does to block-local learning.

The ring in shared memory stays as it is, and carries every byte. What is added is time: a packet can be received half a
round trip after it was sent, and the sender hears of a freed slot half a round trip after it was freed. So at most
`slots` packets are on their way or unread, as over a network, and no line moves more than `slots` packets in a round
trip. The bandwidth is that of memory.
"""

from __future__ import annotations

import time
from multiprocessing.context import BaseContext

from bll.executors.processes import ProcessExecutor
from bll.executors.ring import RingChannel
from bll.messages import Packet


class DelayedRing(RingChannel):
    """A ring whose packets, and whose news of free slots, take half a round trip."""

    def __init__(self, context: BaseContext, slots: int, payload_bytes: int, round_trip_s: float) -> None:
        super().__init__(context, slots, payload_bytes)
        self._one_way_s = round_trip_s / 2
        self._places = slots
        # Of a place, either side writes its own time before it lets the other go on.
        self._sent_at = context.RawArray("d", slots)
        self._freed_at = context.RawArray("d", slots)
        self._credits = context.Semaphore(slots)
        self._sends = self._receives = 0
        self._arriving: Packet | None = None

    def send(self, packet: Packet, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        if not self._credits.acquire(timeout=timeout_s):
            return False
        place = self._sends % self._places
        if self._sends >= self._places and not _wait_until(self._freed_at[place] + self._one_way_s, end):
            self._credits.release()
            return False
        self._sent_at[place] = time.monotonic()
        self._sends += 1
        return super().send(packet, 0.0)  # with a credit there is a free slot

    def receive(self, timeout_s: float) -> Packet | None:
        end = time.monotonic() + timeout_s
        self._arriving = self._arriving or super().receive(timeout_s)
        place = self._receives % self._places
        if not self._arriving or not _wait_until(self._sent_at[place] + self._one_way_s, end):
            return None
        packet, self._arriving = self._arriving, None
        self._freed_at[place] = time.monotonic()
        self._receives += 1
        self._credits.release()
        return packet

    def depth(self) -> int:
        """Packets that have arrived and wait to be received, by this moment."""
        latest = time.monotonic() - self._one_way_s
        places = (
            (self._receives + number) % self._places for number in range(super().depth() + (self._arriving is not None))
        )
        return sum(self._sent_at[place] <= latest for place in places)


class DelayedProcesses(ProcessExecutor):
    """A process a worker, with links of `round_trip_s` between them; weights are those of every executor."""

    def __init__(self, round_trip_s: float) -> None:
        super().__init__()
        self._round_trip_s = round_trip_s

    def make_channel(self, slots: int, size_bytes: int) -> RingChannel:
        return DelayedRing(self._context, slots, size_bytes, self._round_trip_s)


def _wait_until(moment: float, end: float) -> bool:
    """Sleep until `moment`, or only until `end` where that is earlier; whether it is `moment`.

    By the clock that all processes of a machine share.
    """
    remaining_s = min(moment, end) - time.monotonic()
    if remaining_s > 0:
        time.sleep(remaining_s)
    return moment <= end or moment <= time.monotonic()
