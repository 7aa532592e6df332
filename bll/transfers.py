"""How tensors come to a block's device, and how they leave it.

On the CPU a tensor is where it is needed, and everything here gives back the very tensor that it is given. On a CUDA
device a block has a *lane*: a stream on which it computes, and two side streams on which its copies run meanwhile. The
rules of CUDA that it keeps:

- Work of one stream that reads what another wrote waits for an event which the other recorded after writing. The
  stream waits; the host goes on.
- Memory that belongs to one stream and is used on another is recorded there, so that the allocator gives it to nobody
  else before that use has ended.
- Copies between host and device are asynchronous through pinned memory alone. A pinned buffer is written again only
  when the copy that used it has ended.
- The host waits for the event of one copy, when it needs that copy's values, or for the end of a step long queued,
  and never for a whole device.

Between blocks of one process a message stays on its device, with an event that says when it is there: on the same
device the receiver takes the tensor itself, on another it copies from device to device, without the host where the
devices are peers. Between processes the sender copies to pinned memory beside its own backward pass, and writes to the
channel when the step's work is queued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from bll.lines import Outlet
from bll.messages import Packet

_ARRIVALS = 4
"""Pinned buffers of copies to a device: those of about two steps."""
_STEPS_AHEAD = 2
"""Steps whose work may be queued and not done: what is on its way takes memory."""


class Lane:
    """The device of a block whose tensors need no transfer: the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sources: dict[torch.device, Any] = {}
        """A stream on each device that something was copied from."""

    def current(self) -> AbstractContextManager[object]:
        """A context in which work is queued here."""
        return nullcontext()

    def generator(self) -> Generator:
        """A new source of random draws on this device."""
        return Generator()

    def arrive(self, tensor: Tensor) -> Tensor:
        """`tensor`, from the host, here."""
        return tensor.to(self.device)

    def receive(self, packet: Packet) -> Packet:
        """`packet`, from whichever device, with its tensors here."""
        tensors = tuple(self._received(tensor, packet.ready) for tensor in packet.tensors)
        return packet._replace(tensors=tensors, ready=None)

    def send(self, outlet: Outlet, packet: Packet) -> None:
        """Send `packet`, whose tensors are here, at once or by the next `flush`, in the order of calls."""
        outlet.send(packet)

    def flush(self) -> None:
        """Send what waits for its copy to the host. After each step's work has been queued."""

    def depart(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to bring `tensor` to the host; the result waits for it and gives it."""
        return lambda: tensor

    def _received(self, tensor: Tensor, ready: Any) -> Tensor:
        if ready is None:
            return self.arrive(tensor)
        source = self._source(tensor.device, ready)
        return _to_host(tensor, source, torch.get_device_module(tensor.device))()

    def _source(self, device: torch.device, ready: Any) -> Any:
        """A stream on the device of a neighbour in this process, for work queued from now on, which `ready` lets go
        on."""
        if device not in self._sources:
            self._sources[device] = torch.get_device_module(device).Stream(device)
        self._sources[device].wait_event(ready)
        return self._sources[device]


class StreamLane(Lane):
    """The device of a block whose work is queued on streams: CUDA."""

    def __init__(self, device: torch.device, *, own_stream: bool = True) -> None:
        """`own_stream`: whether the block computes beside others on its device, or in order with them."""
        super().__init__(device)
        self._streams: Any = torch.get_device_module(device)
        self._compute = self._streams.Stream(device) if own_stream else self._streams.current_stream(device)
        self._inward, self._outward = self._streams.Stream(device), self._streams.Stream(device)
        self._arrivals = [_Arrival(_Pinned(device), None) for _ in range(_ARRIVALS)]
        self._departures: list[_Pinned] = []
        self._pending: deque[_Departure] = deque()
        self._queued: deque[Any] = deque()
        """For each of the last steps, when it has been done."""

    def current(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._streams.stream(self._compute)
        return context

    def generator(self) -> Generator:
        return Generator(self.device)

    def arrive(self, tensor: Tensor) -> Tensor:
        """Through the pinned buffer whose last copy is oldest, on the inward stream."""
        buffer, copied = self._arrivals.pop(0)
        if copied is not None:
            copied.synchronize()
        staged = buffer.like(tensor).copy_(tensor)
        with self._streams.stream(self._inward):
            arrived = torch.empty(staged.shape, dtype=staged.dtype, device=self.device)
            arrived.copy_(staged, non_blocking=True)
        copied = self._mark(self._inward)
        self._arrivals.append(_Arrival(buffer, copied))
        return self._after(copied, arrived)

    def send(self, outlet: Outlet, packet: Packet) -> None:
        if not outlet.channel.crosses_processes:
            outlet.send(packet._replace(ready=self._mark(self._compute)))
        elif any(tensor.device == self.device for tensor in packet.tensors):
            self._stage(outlet, packet)
        else:
            self._send_pending()
            outlet.send(packet)

    def flush(self) -> None:
        self._send_pending()
        self._queued.append(self._mark(self._compute))
        if len(self._queued) > _STEPS_AHEAD:
            self._queued.popleft().synchronize()

    def depart(self, tensor: Tensor) -> Callable[[], Tensor]:
        self._outward.wait_event(self._mark(self._compute))
        return _to_host(tensor, self._outward, self._streams)

    def _received(self, tensor: Tensor, ready: Any) -> Tensor:
        if tensor.device.type == "cpu":
            return self.arrive(tensor)
        if tensor.device == self.device:
            return self._after(ready, tensor)
        # Torch queues a copy between devices on the current stream of each, and lets each wait for the other.
        source = self._source(tensor.device, ready)
        with self._streams.stream(source), self._streams.stream(self._inward):
            arrived = tensor.to(self.device, non_blocking=True)
        _used_on(tensor, source)
        return self._after(self._mark(self._inward), arrived)

    def _send_pending(self) -> None:
        while self._pending:
            outlet, packet, copied = self._pending.popleft()
            copied.synchronize()
            outlet.send(packet)

    @torch.no_grad()
    def _stage(self, outlet: Outlet, packet: Packet) -> None:
        """Start to copy `packet` to pinned memory that nothing pending uses; `flush` sends it."""
        self._outward.wait_event(self._mark(self._compute))
        staged = []
        number = sum(len(pending.packet.tensors) for pending in self._pending)
        with self._streams.stream(self._outward):
            for place, tensor in enumerate(packet.tensors, start=number):
                if place == len(self._departures):
                    self._departures.append(_Pinned(self.device))
                staged.append(self._departures[place].like(tensor).copy_(tensor, non_blocking=True))
                _used_on(tensor, self._outward)
        packet = packet._replace(tensors=tuple(staged))
        self._pending.append(_Departure(outlet, packet, self._mark(self._outward)))

    def _mark(self, stream: Any) -> Any:
        """An event that happens when all that is queued on `stream` now has been done."""
        event = self._streams.Event()
        event.record(stream)
        return event

    def _after(self, event: Any, tensor: Tensor) -> Tensor:
        """`tensor`, for work queued on the compute stream from now on, which `event` lets go on."""
        self._compute.wait_event(event)
        _used_on(tensor, self._compute)
        return tensor


class _Pinned:
    """Host memory that a device copies to and from by itself; it grows to the largest tensor that it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._is_pinned = device.type != "cpu"
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor: Tensor) -> Tensor:
        """The memory as a tensor of the shape and dtype of `tensor`, of any values."""
        size = tensor.numel() * tensor.element_size()
        if size > self._bytes.numel():
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._is_pinned)
        return self._bytes[:size].view(tensor.dtype).view(tensor.shape)


class _Arrival(NamedTuple):
    """A buffer of copies to the device, and when its last copy has been done."""

    buffer: _Pinned
    copied: Any


class _Departure(NamedTuple):
    """A packet on its way to the host."""

    outlet: Outlet
    packet: Packet
    copied: Any


def make_lane(device: torch.device, *, own_stream: bool = True) -> Lane:
    """The lane of a block on `device`. `own_stream`: whether it computes beside others there, or in order with them."""
    return StreamLane(device, own_stream=own_stream) if device.type == "cuda" else Lane(device)


class _HasLane(Protocol):
    @property
    def lane(self) -> Lane: ...


P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self", bound=_HasLane)


def on_lane(method: Callable[Concatenate[Self, P], R]) -> Callable[Concatenate[Self, P], R]:
    """A method whose work is queued on its object's lane."""

    @wraps(method)
    def queued(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lane.current():
            return method(self, *args, **kwargs)

    return queued


def _to_host(tensor: Tensor, stream: Any, streams: Any) -> Callable[[], Tensor]:
    """Start to copy `tensor` to the host on `stream`; the result waits for that copy alone."""
    with streams.stream(stream):
        arrived = tensor.to("cpu", non_blocking=True)  # which allocates pinned memory
    _used_on(tensor, stream)
    copied = streams.Event()
    copied.record(stream)

    def result() -> Tensor:
        copied.synchronize()
        return arrived

    return result


def _used_on(tensor: Tensor, stream: Any) -> None:
    """Tell the allocator that work queued on `stream` uses the memory of `tensor`."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
