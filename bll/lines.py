"""The ends of the lines between a block and its neighbours: they time every wait, and tell of one that is long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from bll.messages import Channel, Packet

LONG_WAIT_S = 10.0
"""How long a block waits for a neighbour before it tells."""

T = TypeVar("T")
Tell = Callable[[float, bool], None]


class _End:
    """One end of a line."""

    def __init__(self, channel: Channel, tell: Tell) -> None:
        """`tell(seconds, it has ended)` hears of a wait that is long: once while it lasts, and when it ends."""
        self.channel = channel
        self.wait_s = 0.0
        self._tell = tell

    def _wait(self, attempt: Callable[[float], T | None]) -> T:
        """What `attempt(timeout_s)` gives once it gives anything but None."""
        result = attempt(0.0)
        if result is not None:
            return result
        before = time.monotonic()
        result = attempt(LONG_WAIT_S)
        if result is None:
            self._tell(time.monotonic() - before, False)
            while (result := attempt(LONG_WAIT_S)) is None:
                pass
            self._tell(time.monotonic() - before, True)
        self.wait_s += time.monotonic() - before
        return result


class Inlet(_End):
    """Where a block takes what a neighbour sends."""

    def __init__(self, channel: Channel, tell: Tell) -> None:
        super().__init__(channel, tell)
        self.depths = self.reads = 0

    def receive(self) -> Packet:
        """The oldest packet on the line, waiting for one."""
        self.depths += self.channel.depth()
        self.reads += 1
        return self._wait(self.channel.receive)


class Outlet(_End):
    """Where a block sends to a neighbour."""

    def send(self, packet: Packet) -> None:
        """Put `packet` on the line, waiting for room."""
        self._wait(lambda timeout_s: self.channel.send(packet, timeout_s) or None)
