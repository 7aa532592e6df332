"""A ring of preallocated slots in shared memory, between two processes.

One writer, one reader: each keeps its own position, and two semaphores count free and filled slots, which also
order the memory accesses. A packet is copied once into its slot and once out of it; nothing is pickled. The memory
has no name: it is gone with the last process that holds it, however that one dies.
"""

from __future__ import annotations

import math
import struct
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
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
_PAYLOAD = -(-(_HEADER.size + _MAX_TENSORS * _TENSOR.size) // _ALIGNMENT) * _ALIGNMENT


class RingChannel:
    """A bounded line between two processes. Made by their parent and passed to both when they start."""

    def __init__(self, context: BaseContext, slots: int, payload_bytes: int) -> None:
        self._slots = slots
        self._slot_bytes = _PAYLOAD + -(-payload_bytes // _ALIGNMENT) * _ALIGNMENT + _MAX_TENSORS * _ALIGNMENT
        self._memory = context.RawArray("B", slots * self._slot_bytes)
        self._free = context.Semaphore(slots)
        self._filled = context.Semaphore(0)
        self._sent = self._received = 0

    def send(self, packet: Packet) -> None:
        """Copy `packet` into the next free slot, waiting for one. Raises ValueError if it is too large."""
        self._free.acquire()
        start = (self._sent % self._slots) * self._slot_bytes
        header = (_MAGIC, packet.kind, self._sent, packet.epoch, packet.step, len(packet.tensors))
        _HEADER.pack_into(self._memory, start, *header)
        offset = _PAYLOAD
        for number, tensor in enumerate(packet.tensors):
            size_bytes = tensor.numel() * tensor.element_size()
            if offset + size_bytes > self._slot_bytes or number >= _MAX_TENSORS or tensor.ndim > 8:
                raise ValueError(f"{packet.kind.name} of shape {list(tensor.shape)} exceeds {self._slot_bytes} bytes")
            sizes = (*tensor.shape, *[0] * (8 - tensor.ndim))
            place = start + _HEADER.size + number * _TENSOR.size
            _TENSOR.pack_into(self._memory, place, _DTYPES.index(tensor.dtype), tensor.ndim, *sizes)
            if size_bytes:
                self._view(start + offset, tensor.dtype, tuple(tensor.shape)).copy_(tensor)
            offset = _aligned(offset + size_bytes)
        self._sent += 1
        self._filled.release()

    def receive(self) -> Packet:
        """Copy the oldest packet out of its slot, waiting for one. Raises RuntimeError if it is out of sequence."""
        self._filled.acquire()
        start = (self._received % self._slots) * self._slot_bytes
        magic, kind, sequence, epoch, step, count = _HEADER.unpack_from(self._memory, start)
        if (magic, sequence) != (_MAGIC, self._received) or count > _MAX_TENSORS:
            raise RuntimeError(f"ring slot holds packet {sequence} (mark {magic:#x}), expected {self._received}")
        tensors = []
        offset = _PAYLOAD
        for number in range(count):
            code, ndim, *sizes = _TENSOR.unpack_from(self._memory, start + _HEADER.size + number * _TENSOR.size)
            shape, dtype = tuple(sizes[:ndim]), _DTYPES[code]
            size_bytes = math.prod(shape) * dtype.itemsize
            if offset + size_bytes > self._slot_bytes:
                raise RuntimeError(f"ring slot names a tensor of {size_bytes} bytes, more than its size")
            view = self._view(start + offset, dtype, shape) if size_bytes else torch.empty(shape, dtype=dtype)
            tensors.append(view.clone())
            offset = _aligned(offset + size_bytes)
        self._received += 1
        self._free.release()
        return Packet(Kind(kind), epoch, step, tuple(tensors))

    def depth(self) -> int:
        """Packets that wait to be received, by this moment."""
        return self._filled.get_value()

    def _view(self, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        flat = torch.frombuffer(self._memory, dtype=dtype, count=math.prod(shape), offset=start)
        return flat.view(shape)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
