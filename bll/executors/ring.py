"""A ring of preallocated slots in shared memory, between two processes.

One writer, one reader. How many packets were sent and how many slots were freed stands in the shared memory, each
written by one end alone, so that whoever takes the place of a killed process finds it. A pipe for each end wakes it: a
byte for every slot filled, a byte for every slot freed, which also order the memory accesses. A byte too many does no
harm, for the counts decide; one that was lost with a killed process is made up for by `take_over`, with bytes to spare.
Where such a byte lets a reader go by the counts alone, the writer's stores must be seen in their order, as on x86.

A packet is copied once into its slot and once out of it; nothing is pickled. Memory and pipes have no name: they are
gone with the last process that holds them, however that one dies.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import select
import struct
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext

import torch
from torch import Tensor

from bll.messages import Kind, Packet

_HEADER = struct.Struct("<IIQQQI")
"""magic, kind, sequence number, epoch, step, number of tensors."""
_TENSOR = struct.Struct("<II8Q")
"""dtype code, number of dimensions, sizes."""
_MAGIC = 0xB10C4321
_ALIGNMENT = 64
_MAX_TENSORS = 2
_KINDS = {kind.value for kind in Kind}
_MAX_DIMENSIONS = 8
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
_PAYLOAD = -(-(_HEADER.size + _MAX_TENSORS * _TENSOR.size) // _ALIGNMENT) * _ALIGNMENT

_SENT, _FREED = 0, _ALIGNMENT // 8
"""Where the counts stand among the shared numbers of 8 bytes: a cache line apart."""


class RingChannel:
    """A bounded line between two processes. Made by their parent and passed to both when they start."""

    crosses_processes = True

    def __init__(self, context: BaseContext, slots: int, payload_bytes: int) -> None:
        self.slots = slots
        self.sent = self.received = 0
        """Packets that this end has sent or received; `take_over` sets where it begins."""
        self.holds = False
        """Whether the slot of a received packet stays as it is until `free`."""
        self._slot_bytes = _PAYLOAD + _aligned(payload_bytes) + _MAX_TENSORS * _ALIGNMENT
        self._memory = context.RawArray("B", slots * self._slot_bytes)
        self._counts = context.RawArray("Q", 2 * _ALIGNMENT // 8)
        self._filled, self._freed = _Bell(context, 0), _Bell(context, slots)

    def send(self, packet: Packet, timeout_s: float) -> bool:
        """Copy `packet` into the next slot. False if none became free within `timeout_s`.

        Raises ValueError if it does not fit into any.
        """
        self._check(packet)
        if self.sent == self._counts[_SENT]:  # else another process has sent it, in whose place this one is
            if not self._freed.wait_until(lambda: self.sent - self._counts[_FREED] < self.slots, timeout_s):
                return False
            self._write(packet, self.sent)
            self._counts[_SENT] += 1
            self._filled.ring()
        self.sent += 1
        return True

    def receive(self, timeout_s: float) -> Packet | None:
        """Copy the oldest packet out of its slot. None if there came none within `timeout_s`.

        Raises RuntimeError if the slot does not hold what it must.
        """
        if not self._filled.wait_until(lambda: self.received < self._counts[_SENT], timeout_s):
            return None
        packet = self._read(self.received)
        self.received += 1
        if not self.holds:
            self.free(self.received)
        return packet

    def depth(self) -> int:
        """Packets that wait to be received, by this moment."""
        return int(self._counts[_SENT] - max(self.received, self._counts[_FREED]))

    def free(self, packets: int) -> None:
        """Give the slots of the first `packets` packets back to the sender."""
        freed = packets - self._counts[_FREED]
        if freed > 0:
            self._counts[_FREED] = packets
            self._freed.ring(freed)

    def take_over(self, sent: int, received: int) -> None:
        """Stand where a process stood that was killed, when it had sent and received so many packets.

        What it sent after that is not sent twice; what it received after that must not have been freed.
        """
        self.sent, self.received = sent, received
        # A byte may have been lost with it, and those of packets that are received again are gone.
        for bell in (self._filled, self._freed):
            bell.ring(self.slots)

    def resent(self) -> Kind | None:
        """What the next packet to send is, if it has been sent already."""
        if self.sent == self._counts[_SENT]:
            return None
        return Kind(_HEADER.unpack_from(self._memory, self._start(self.sent))[1])

    def _check(self, packet: Packet) -> None:
        tensors = packet.tensors
        if len(tensors) > _MAX_TENSORS:
            raise ValueError(f"{packet.kind.name} has {len(tensors)} tensors, more than {_MAX_TENSORS}")
        for tensor in tensors:
            if tensor.dtype not in _DTYPES or tensor.ndim > _MAX_DIMENSIONS:
                raise ValueError(f"{packet.kind.name} of {tensor.dtype}, shape {list(tensor.shape)}, has no encoding")
        *_, end = _offsets([tensor.numel() * tensor.element_size() for tensor in tensors])
        if end > self._slot_bytes:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
            raise ValueError(f"{packet.kind.name} of shape {shapes} exceeds {self._slot_bytes} bytes")

    def _write(self, packet: Packet, sequence: int) -> None:
        start = self._start(sequence)
        header = (_MAGIC, packet.kind, sequence, packet.epoch, packet.step, len(packet.tensors))
        _HEADER.pack_into(self._memory, start, *header)
        offsets = _offsets([tensor.numel() * tensor.element_size() for tensor in packet.tensors])
        for number, (tensor, offset) in enumerate(zip(packet.tensors, offsets, strict=False)):
            sizes = (*tensor.shape, *[0] * (_MAX_DIMENSIONS - tensor.ndim))
            place = start + _HEADER.size + number * _TENSOR.size
            _TENSOR.pack_into(self._memory, place, _DTYPES.index(tensor.dtype), tensor.ndim, *sizes)
            if tensor.numel():
                self._view(start + offset, tensor.dtype, tuple(tensor.shape)).copy_(tensor)

    def _read(self, sequence: int) -> Packet:
        start = self._start(sequence)
        magic, kind, found, epoch, step, count = _HEADER.unpack_from(self._memory, start)
        if (magic, found) != (_MAGIC, sequence) or count > _MAX_TENSORS or kind not in _KINDS:
            raise RuntimeError(f"ring slot holds packet {found} (mark {magic:#x}, kind {kind}), expected {sequence}")
        places = [start + _HEADER.size + number * _TENSOR.size for number in range(count)]
        kinds = [self._described(*_TENSOR.unpack_from(self._memory, place)) for place in places]
        *offsets, end = _offsets([math.prod(shape) * dtype.itemsize for dtype, shape in kinds])
        if end > self._slot_bytes:
            raise RuntimeError(f"ring slot names tensors of shape {[shape for _, shape in kinds]}, more than its size")
        views = [self._view(start + offset, *kind) for kind, offset in zip(kinds, offsets, strict=True)]
        return Packet(Kind(kind), epoch, step, tuple(view.clone() for view in views))

    def _described(self, code: int, ndim: int, *sizes: int) -> tuple[torch.dtype, tuple[int, ...]]:
        if code >= len(_DTYPES) or ndim > _MAX_DIMENSIONS:
            raise RuntimeError(f"ring slot names dtype {code} with {ndim} dimensions")
        return _DTYPES[code], sizes[:ndim]

    def _start(self, sequence: int) -> int:
        return (sequence % self.slots) * self._slot_bytes

    def _view(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(self._memory, dtype=dtype, count=math.prod(shape), offset=start)
        return flat.view(shape)


class _Bell:
    """Wakes a process that waits: a pipe that holds a byte for each time that it was rung and not yet answered."""

    def __init__(self, context: BaseContext, rings: int) -> None:
        self._listening, self._ringing = context.Pipe(duplex=False)
        os.set_blocking(self._ringing.fileno(), False)
        self.ring(rings)

    def ring(self, times: int = 1) -> None:
        """Wake the other end, now or when it comes to wait."""
        with contextlib.suppress(BlockingIOError):  # it is full of bytes: enough to wake anybody
            os.write(self._ringing.fileno(), bytes(times))

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Sleep until the bell rings and `ready()`. Whether it came to that within `timeout_s`, or is so anyway."""
        end = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._listening.fileno(), select.POLLIN)
        while poll.poll(max(0.0, end - time.monotonic()) * 1e3):
            os.read(self._listening.fileno(), 1)
            if ready():
                return True
        return ready()


def _offsets(sizes_bytes: Sequence[int]) -> list[int]:
    """Where tensors of these sizes lie within a slot, and where the last one ends."""
    return list(itertools.accumulate(map(_aligned, sizes_bytes), initial=_PAYLOAD))


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
