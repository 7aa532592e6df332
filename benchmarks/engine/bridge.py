"""Lines between worker processes that cross a network: for block-local learning the links that its rivals have.

Each line is a ring at either end and a TCP connection between two hosts in the middle, served by this process. Workers
know nothing of it. At most `slots` packets wait at either end, and on the way what the connection's buffers hold.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

import torch

from benchmarks.engine.network import Network
from bll.executors.processes import ProcessExecutor
from bll.executors.ring import RingChannel
from bll.messages import Kind, Packet
from bll.wiring import WorkerEvent
from bll.worker import Run

_LOOK_S = 0.2
"""How long a line may take to notice that the run is over."""


class BridgedLine(RingChannel):
    """The receiver's ring, which has the sender's with it."""

    def __init__(self, context: BaseContext, slots: int, payload_bytes: int) -> None:
        super().__init__(context, slots, payload_bytes)
        self.near = RingChannel(context, slots, payload_bytes)

    def send(self, packet: Packet, timeout_s: float) -> bool:
        return self.near.send(packet, timeout_s)

    def arrive(self, packet: Packet, timeout_s: float) -> bool:
        """Put `packet`, which has crossed the network, into the receiver's ring. False if there came no room."""
        return super().send(packet, timeout_s)


class BridgedProcesses(ProcessExecutor):
    """A process a worker, with a network of `round_trip_s` between them; weights are those of every executor."""

    def __init__(self, round_trip_s: float) -> None:
        super().__init__()
        self._network = Network(round_trip_s)
        self._bridges: list[tuple[BridgedLine, socket.socket, socket.socket]] = []
        self._serving = contextlib.ExitStack()

    def make_channel(self, slots: int, size_bytes: int) -> RingChannel:
        line = BridgedLine(self._context, slots, size_bytes)
        address = (self._network.next_address, 0)
        server = self._network.on_new_host(lambda: socket.create_server(address))
        client = self._network.on_new_host(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        self._bridges.append((line, client, server))
        return line

    def launch(self, run: Run) -> None:
        super().launch(run)
        self._serving.enter_context(self._network.carrying())
        for line, client, server in self._bridges:
            self._serving.enter_context(_served(line, client, server))

    def events(self) -> Generator[WorkerEvent, None, None]:
        with self._serving:
            yield from super().events()


@contextlib.contextmanager
def _served(line: BridgedLine, client: socket.socket, server: socket.socket) -> Iterator[None]:
    """Connect the ends, and carry packets from one to the other as long as the context lasts."""
    with client, server:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            over = threading.Event()
            threads = [
                threading.Thread(target=_depart, args=(line, client, over), daemon=True),
                threading.Thread(target=_arrive, args=(line, accepted, over), daemon=True),
            ]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                over.set()
                for end in (client, accepted):
                    end.shutdown(socket.SHUT_RDWR)
                for thread in threads:
                    thread.join()


def _depart(line: BridgedLine, client: socket.socket, over: threading.Event) -> None:
    connection = Connection(client.dup().detach(), readable=False)
    with connection, contextlib.suppress(OSError):  # the other end has been shut down
        while not over.is_set():
            if packet := line.near.receive(_LOOK_S):
                arrays = [tensor.numpy() for tensor in packet.tensors]
                connection.send((packet.kind.value, packet.epoch, packet.step, arrays))


def _arrive(line: BridgedLine, accepted: socket.socket, over: threading.Event) -> None:
    connection = Connection(accepted.dup().detach(), writable=False)
    with connection, contextlib.suppress(EOFError, OSError):
        while True:
            kind, epoch, step, arrays = connection.recv()
            packet = Packet(Kind(kind), epoch, step, tuple(map(torch.from_numpy, arrays)))
            while not line.arrive(packet, _LOOK_S):
                if over.is_set():
                    return
