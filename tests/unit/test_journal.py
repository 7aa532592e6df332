"""A killed worker's place is taken without a packet lost, repeated or left waiting, whenever it was killed."""

from __future__ import annotations

import copy
import fcntl
import multiprocessing
import signal
import termios
import threading
from array import array
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from random import Random
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bll.executors.journal import Entry, Journal, Rings
from bll.executors.ring import _FREED, RingChannel
from bll.messages import Kind, Packet

CONTEXT = multiprocessing.get_context("forkserver")
LIMIT_S = 60.0

numbers = st.integers(0, 2**64 - 1)


@given(entries=st.lists(st.builds(Entry, *[numbers] * 5), max_size=4))
def test_the_newest_entry_is_read(entries: list[Entry]) -> None:
    journal = Journal(CONTEXT)
    for entry in entries:
        journal.write(entry)
    assert journal.read() == (entries[-1] if entries else Entry())


class Killed(Exception):
    """The worker ends at this very operation."""


class Fuse:
    """Counts what a worker does to memory that others see, and kills it before operation number `limit`."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def burn(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    def before(self, operation: Callable[..., None]) -> Callable[..., None]:
        """`operation`, through the fuse."""

        def burn_first(*args: Any) -> None:
            self.burn()
            operation(*args)

        return burn_first


class FusedArray:
    """Shared numbers that are written through a fuse."""

    def __init__(self, array: Any, fuse: Fuse) -> None:
        self.array, self.fuse = array, fuse

    def __getitem__(self, key: Any) -> Any:
        return self.array[key]

    def __setitem__(self, key: int | slice, value: Any) -> None:
        if isinstance(key, slice):
            for index, number in zip(range(len(self.array))[key], value, strict=True):
                self[index] = number
        else:
            self.fuse.burn()
            self.array[key] = value


def seen_by_a_process(ring: RingChannel, fuse: Fuse) -> RingChannel:
    """`ring` as a process of its own has it: shared memory, and nothing remembered; every write burns the fuse."""
    own = copy.copy(ring)
    own.sent = own.received = 0
    own._counts = FusedArray(ring._counts, fuse)
    for name in ("_filled", "_freed"):
        bell = copy.copy(getattr(ring, name))
        bell.ring = fuse.before(bell.ring)
        setattr(own, name, bell)
    return own


def packet(number: int) -> Packet:
    return Packet(Kind.TRAIN, 0, number, (torch.tensor([float(number)]),))


class Line:
    """A relay between two rings: it answers each message with a message and each version with a version."""

    def __init__(self, slots: int) -> None:
        self.journal = Journal(CONTEXT)
        # A version is kept beyond the action that has received it.
        self.rings = Rings(*(RingChannel(CONTEXT, slots + spare, 64) for spare in (0, 0, 1, 0)))

    def turns(self, fuse: Fuse) -> Iterator[int]:
        """The life of one relay process: the actions done, at its start and after each."""
        rings = Rings(*(seen_by_a_process(ring, fuse) for ring in self.rings if ring))
        journal = copy.copy(self.journal)
        journal._numbers = FusedArray(journal._numbers, fuse)
        entry = self.journal.read()
        rings.take_over(entry)
        inbox, outbox, versions, own_versions = rings
        assert inbox and outbox and versions and own_versions  # noqa: PT018
        yield entry.turns
        in_use = -1
        for turn in range(entry.turns, 1000):
            message = inbox.receive(0.0)
            assert message and message.step == turn  # noqa: PT018
            while in_use < turn // 2:  # a version serves for two actions
                version = versions.receive(0.0)
                assert version
                in_use = version.step
            assert in_use == turn // 2
            assert outbox.send(packet(turn), 0.0)
            assert own_versions.send(packet(turn), 0.0)
            entry = rings.entry(turn + 1)
            journal.write(entry)
            rings.give_back(entry)
            yield entry.turns


def rung(bell: Any) -> int:
    """Times that a bell was rung and not answered."""
    count = array("i", [0])
    fcntl.ioctl(bell._listening.fileno(), termios.FIONREAD, count)
    return count[0]


@given(limits=st.lists(st.integers(0, 60), max_size=6), slots=st.integers(1, 3))
@settings(max_examples=150)
def test_killed_at_any_operation_a_relay_loses_and_repeats_nothing(limits: list[int], slots: int) -> None:
    line = Line(slots)
    inbox, outbox, versions, own_versions = line.rings
    assert inbox and outbox and versions and own_versions  # noqa: PT018
    fuses = iter([*map(Fuse, limits), Fuse(10_000)])
    life = line.turns(next(fuses))

    def fill() -> None:
        """The neighbours send as much as there is room for: what was freed too early is gone."""
        for ring in (inbox, versions):
            while ring.send(packet(ring.sent), 0.0):
                pass

    for turn in range(8):
        done = 0
        while done <= turn:
            fill()
            try:
                done = next(life)
            except Killed:
                life, done = line.turns(next(fuses)), 0
        # Whoever waits on the other side has been woken: a neighbour that lives looks only when its bell rings.
        for ring in (inbox, versions):
            assert rung(ring._freed) > 0 or ring.sent - ring._counts[_FREED] == ring.slots
        for ring in (outbox, own_versions):
            assert rung(ring._filled) > 0
            answer = ring.receive(0.0)
            assert answer
            assert answer.step == turn
            assert ring.depth() == 0


def _relay(inbox: RingChannel, outbox: RingChannel, journal: Journal, count: int) -> None:
    rings = Rings(inbox, outbox, None, None)
    rings.take_over(journal.read())
    for turn in range(journal.read().turns, count):
        message = inbox.receive(LIMIT_S)
        assert message
        assert outbox.send(message, LIMIT_S)
        entry = rings.entry(turn + 1)
        journal.write(entry)
        rings.give_back(entry)


def test_a_process_that_is_killed_over_and_over_relays_every_packet_once() -> None:
    count, kills = 1500, 3
    inbox, outbox = (RingChannel(CONTEXT, 3, 4000) for _ in range(2))
    journal = Journal(CONTEXT)
    random = Random(7)
    kill_at = {count * kill // (kills + 1) + random.randrange(50) for kill in range(1, kills + 1)}

    def started() -> ForkServerProcess:
        process = CONTEXT.Process(target=_relay, args=(inbox, outbox, journal, count), daemon=True)
        process.start()
        return process

    def send() -> None:
        for number in range(count):
            assert inbox.send(Packet(Kind.TRAIN, 0, number, (torch.full((1000,), float(number)),)), LIMIT_S)

    process = started()
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for number in range(count):
        packet = outbox.receive(LIMIT_S)
        assert packet
        assert packet.step == number
        assert set(packet.tensors[0].tolist()) == {float(number)}
        if number in kill_at:
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            process = started()
    sender.join(LIMIT_S)
    process.join(LIMIT_S)
    assert (sender.is_alive(), process.exitcode) == (False, 0)
