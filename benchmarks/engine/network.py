"""A network of its own for each of several processes, and links of a chosen round trip between them.

Each host is a network namespace with one TUN device, and this process carries packets from one device to another once
they are due. It is the kernel's TCP on both sides, over links of unlimited bandwidth. netem would do, where the kernel
has it; this needs root and /dev/net/tun. Everything is gone with the processes that use it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_MTU = 65_000
"""As large as that of loopback, so that carrying packets takes little of the processors."""
_SETTINGS = {
    # In favour of whoever needs bandwidth: windows that fill a long link, also after a pause.
    "tcp_rmem": "4096 4194304 134217728",
    "tcp_wmem": "4096 4194304 134217728",
    "tcp_slow_start_after_idle": "0",
}

T = TypeVar("T")


class Loopback:
    """No network: all processes are on this host."""

    device = "lo"

    def on_new_host(self, start: Callable[[], T]) -> T:
        return start()

    @contextlib.contextmanager
    def carrying(self) -> Iterator[None]:
        yield


class Network:
    """Hosts 10.77.0.1, 10.77.0.2, ... whose packets arrive half a round trip after they were sent."""

    device = "link0"
    """What each host calls the one that leads to the others."""

    def __init__(self, round_trip_s: float) -> None:
        self._one_way_s = round_trip_s / 2
        self._devices: dict[int, int] = {}
        """File descriptor of each host's device, by the last number of its address."""

    @property
    def next_address(self) -> str:
        """Of the host that is made next."""
        return _address(len(self._devices) + 1)

    def on_new_host(self, start: Callable[[], T]) -> T:
        """What `start()` returns, called on a new host: the processes that it starts live there."""
        number = len(self._devices) + 1
        with ThreadPoolExecutor(1) as thread:  # namespaces belong to threads, and pass to the processes they start
            device, result = thread.submit(_on_new_host, number, start).result()
        self._devices[number] = device
        return result

    @contextlib.contextmanager
    def carrying(self) -> Iterator[None]:
        """Carry packets between the hosts that there are, as long as the context lasts; then close their devices."""
        wake, stop = os.pipe()
        carrier = threading.Thread(target=self._carry, args=(wake,), name="links", daemon=True)
        carrier.start()
        try:
            yield
        finally:
            os.close(stop)
            carrier.join()
            for descriptor in (wake, *self._devices.values()):
                os.close(descriptor)

    def _carry(self, wake: int) -> None:
        under_way: deque[tuple[float, int, bytes]] = deque()
        waiting = select.poll()
        for descriptor in (wake, *self._devices.values()):
            waiting.register(descriptor, select.POLLIN)
        while True:
            until_ms = max(0.0, under_way[0][0] - time.monotonic()) * 1e3 if under_way else None
            for descriptor, _ in waiting.poll(until_ms):
                if descriptor == wake:
                    return
                for packet in _received(descriptor):
                    if (device := self._devices.get(_destination(packet))) is not None:
                        under_way.append((time.monotonic() + self._one_way_s, device, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, device, packet = under_way.popleft()
                with contextlib.suppress(OSError):  # its host has ended
                    os.write(device, packet)


def _address(number: int) -> str:
    return f"10.77.0.{number}"


def is_possible() -> bool:
    """Whether this machine, and this user, can have such networks."""
    return os.geteuid() == 0 and Path("/dev/net/tun").exists()


def _on_new_host(number: int, start: Callable[[], T]) -> tuple[int, T]:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "a network namespace cannot be made: it takes root")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", Network.device.encode(), _IFF_TUN_NO_PI))
    for command in (
        "link set lo up",
        f"link set {Network.device} mtu {_MTU} txqueuelen 10000 up",
        f"address add {_address(number)}/24 dev {Network.device}",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    for name, value in _SETTINGS.items():
        Path("/proc/sys/net/ipv4", name).write_text(value)
    return device, start()


def _received(device: int) -> Iterator[bytes]:
    """What has been sent over a device and not been carried yet."""
    with contextlib.suppress(BlockingIOError):
        while True:
            yield os.read(device, _MTU)


def _destination(packet: bytes) -> int:
    """Last number of the IPv4 address that a packet goes to; of others, 0."""
    return packet[19] if packet[0] >> 4 == 4 else 0
