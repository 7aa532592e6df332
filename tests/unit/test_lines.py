"""The ends of lines: what they count, and when they tell of a wait."""

from __future__ import annotations

from collections import deque

import pytest
import torch

from bll.events import BlockWaiting
from bll.lines import LONG_WAIT_S
from bll.messages import Channel, DequeChannel, Kind, Packet
from bll.wiring import Lines, LineUse, Links, WorkerEvent


class Clock:
    """Time that passes only while a line is waited for."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


class ScriptedChannel:
    """A line of two slots whose other end acts after given times, one for each wait."""

    slots = 2
    crosses_processes = False

    def __init__(self, clock: Clock, *delays_s: float) -> None:
        self.clock = clock
        self.delays_s = deque(delays_s)
        self.packets: deque[Packet] = deque()

    def send(self, packet: Packet, timeout_s: float) -> bool:
        if len(self.packets) == self.slots:
            if not self._waited(timeout_s):
                return False
            self.packets.popleft()
        self.packets.append(packet)
        return True

    def receive(self, timeout_s: float) -> Packet | None:
        if not self.packets:
            if not self._waited(timeout_s):
                return None
            self.packets.append(PACKET)
        return self.packets.popleft()

    def depth(self) -> int:
        return len(self.packets)

    def _waited(self, timeout_s: float) -> bool:
        passed = min(timeout_s, self.delays_s[0])
        self.clock.now_s += passed
        self.delays_s[0] -= passed
        return self.delays_s[0] == 0 and self.delays_s.popleft() == 0


PACKET = Packet(Kind.TRAIN, 0, 0, (torch.zeros(1),))


def links(told: list[WorkerEvent], **lines: Channel) -> Links:
    none = dict.fromkeys(("inbox", "outbox", "backward_in", "backward_out"))
    return Links(**{**none, **lines}, emit=told.append, stop_requested=lambda: False)


def test_waits_are_counted_by_what_is_waited_for_and_begin_afresh_when_they_were_told(clock: Clock) -> None:
    told: list[WorkerEvent] = []
    lines = Lines(
        2,
        links(
            told,
            inbox=ScriptedChannel(clock, 1.0, 2.0),
            backward_in=ScriptedChannel(clock, 4.0),
            outbox=ScriptedChannel(clock, 8.0),
            backward_out=ScriptedChannel(clock, 16.0 / 4),
        ),
    )
    assert lines.inbox and lines.outbox and lines.backward_in and lines.backward_out  # noqa: PT018
    lines.inbox.receive()
    lines.inbox.receive()
    lines.backward_in.receive()
    for _ in range(3):
        lines.outbox.send(PACKET)
        lines.backward_out.send(PACKET)
    assert lines.use() == LineUse(wait_s=7.0, version_wait_s=4.0, send_wait_s=12.0, inbox_fill=0.0)
    assert lines.use() == LineUse(0.0, 0.0, 0.0, 0.0)
    assert told == []


def test_the_fill_of_a_line_is_its_mean_over_readings(clock: Clock) -> None:
    channel = ScriptedChannel(clock, 1.0)
    lines = Lines(1, links([], inbox=channel))
    assert lines.inbox
    channel.packets.extend([PACKET] * 2)
    for _ in range(3):  # of two slots, two, one and none are taken
        lines.inbox.receive()
    assert lines.use().inbox_fill == 0.5


@pytest.mark.parametrize("delay_s", [LONG_WAIT_S, LONG_WAIT_S + 0.5, 3.5 * LONG_WAIT_S])
@pytest.mark.parametrize("sends", [False, True])
def test_a_long_wait_is_told_once_while_it_lasts_and_when_it_is_over(clock: Clock, delay_s: float, sends: bool) -> None:
    told: list[WorkerEvent] = []
    channel = ScriptedChannel(clock, delay_s, 1.0)
    lines = Lines(2, links(told, outbox=channel) if sends else links(told, inbox=channel))
    for _ in range(2):  # the second wait is short
        if sends:
            assert lines.outbox
            channel.packets.extend([PACKET] * (2 - len(channel.packets)))
            lines.outbox.send(PACKET)
        else:
            assert lines.inbox
            lines.inbox.receive()
    neighbour = 3 if sends else 1
    begun = BlockWaiting(2, neighbour, sends, LONG_WAIT_S, ended=False)
    over = BlockWaiting(2, neighbour, sends, delay_s, ended=True)
    assert told == ([begun, over] if delay_s > LONG_WAIT_S else [])


def test_a_line_within_one_loop_costs_no_time_and_has_no_fill() -> None:
    lines = Lines(1, links([], inbox=DequeChannel(), outbox=DequeChannel()))
    assert lines.inbox and lines.outbox  # noqa: PT018
    lines.outbox.send(PACKET)
    lines.inbox.channel.send(PACKET, LONG_WAIT_S)
    lines.inbox.receive()
    assert lines.use() == LineUse(0.0, 0.0, 0.0, 0.0)
