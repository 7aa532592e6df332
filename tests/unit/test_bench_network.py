"""Hosts of their own on this machine, and the time between them."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.engine.network import Network

pytestmark = pytest.mark.network


@contextmanager
def connected(round_trip_s: float) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection between two hosts: a socket stays on the host that it was made on."""
    network = Network(round_trip_s)
    address = (network.next_address, 0)
    server = network.on_new_host(lambda: socket.create_server(address))
    client = network.on_new_host(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    with network.carrying(), server, client:
        client.connect(server.getsockname())
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


def echoed_s(client: socket.socket, accepted: socket.socket) -> float:
    """Time of a byte there and back."""
    start = time.monotonic()
    client.send(b"x")
    accepted.send(accepted.recv(1))
    client.recv(1)
    return time.monotonic() - start


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_an_answer_takes_a_round_trip() -> None:
    with connected(0.1) as (client, accepted):
        assert min(echoed_s(client, accepted) for _ in range(3)) >= 0.1
    with connected(0.0) as (client, accepted):
        assert min(echoed_s(client, accepted) for _ in range(3)) < 0.1


def test_every_byte_arrives_in_order() -> None:
    sent = os.urandom(300_000)
    with connected(0.01) as (client, accepted):
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        received = bytearray()
        while len(received) < len(sent):
            received += accepted.recv(1 << 16)
        sender.join()
    assert bytes(received) == sent


def test_nothing_is_left_of_a_network() -> None:
    before = (open_files(), threading.active_count())
    with connected(0.001) as (client, accepted):
        echoed_s(client, accepted)
    assert (open_files(), threading.active_count()) == before
    assert Network.device not in [name for _, name in socket.if_nameindex()]
