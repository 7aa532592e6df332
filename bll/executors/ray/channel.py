"""A bounded line between two actors: packets are pushed one way, and credit for them comes back.

A sender may be `slots` packets ahead of what its receiver has taken, and while it has credit it awaits nothing: so
packets are on their way, or in the receiver's object store, while both ends compute. Calls may arrive in another order
than they were made; packets are put in order by their number.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from bll.messages import Kind, Packet

Header = tuple[int, int, int, tuple[torch.dtype, ...]]
"""kind, epoch and step of a packet, and the dtype of each of its tensors."""

_ALIGNMENT = 64
"""That of torch's own memory: some kernels round differently on data that lies otherwise."""


class RayChannel:
    """One end of a line. The far end is one of the neighbouring actor's, under a name of its own."""

    crosses_processes = True

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._changed = threading.Condition()
        self._sent = self._taken = 0
        """Packets sent, at the sender's end; packets taken, which its far end hears of later."""
        self._arrived: dict[int, Packet] = {}
        self._fault: RuntimeError | None = None
        self._neighbour: Any = None
        self._far_end = ""

    def connect(self, neighbour: Any, far_end: str) -> None:
        """Name the actor of the far end, a handle with the methods `deliver` and `credit`, and what it is there."""
        self._neighbour, self._far_end = neighbour, far_end

    # For the worker: a Channel ----------------------------------------------------------------------------------

    def send(self, packet: Packet, timeout_s: float) -> bool:
        """Copy `packet` into the object store and push it on. False if there was no credit within `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._sent - self._taken < self.slots, timeout_s):
                return False
        header: Header = (packet.kind, packet.epoch, packet.step, tuple(tensor.dtype for tensor in packet.tensors))
        # What becomes of the call is not asked for: the driver hears of a neighbour's death by itself.
        self._neighbour.deliver.remote(self._far_end, self._sent, header, *map(_to_numpy, packet.tensors))
        self._sent += 1
        return True

    def receive(self, timeout_s: float) -> Packet | None:
        """The next packet, or None if there came none within `timeout_s`. Its large tensors lie in the object store.

        Raises RuntimeError once a packet came that cannot be.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._fault or self._taken in self._arrived, timeout_s):
                return None
            if self._fault:
                raise self._fault
            packet = self._arrived.pop(self._taken)
            self._taken += 1
        self._neighbour.credit.remote(self._far_end, self._taken)
        return packet

    def depth(self) -> int:
        """Packets that wait to be received, by this moment."""
        return len(self._arrived)

    # For the neighbour ------------------------------------------------------------------------------------------

    def deliver(self, number: int, header: Header, arrays: tuple[Any, ...]) -> None:
        """Take in packet `number`. Nobody awaits the answer: `receive` raises for a number without credit."""
        kind, epoch, step, dtypes = header
        packet = Packet(Kind(kind), epoch, step, tuple(map(_to_torch, arrays, dtypes)))
        with self._changed:
            if number in self._arrived or not self._taken <= number < self._taken + self.slots:
                expected = f"one of the {self.slots} from {self._taken} on that is not here"
                self._fault = RuntimeError(f"packet {number} arrived, expected {expected}")
            self._arrived[number] = packet
            self._changed.notify_all()

    def credit(self, taken: int) -> None:
        """Hear that the far end has taken `taken` packets in all."""
        with self._changed:
            self._taken = max(self._taken, taken)
            self._changed.notify_all()


def _to_numpy(tensor: Tensor) -> Any:
    """The tensor as Ray passes it on in one copy: a numpy array, which knows no bfloat16."""
    bits = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
    return bits.contiguous().numpy()


def _to_torch(array: Any, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array).view(dtype)
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
