"""The lines between actors, without Ray: two ends that call each other, at once or later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bll.executors.ray.channel import RayChannel
from bll.messages import Kind, Packet


class Far:
    """Stands for the handle of the actor at the far end. Calls lie in `mail` until they are delivered."""

    def __init__(self, end: RayChannel) -> None:
        self.mail: list[Callable[[], None]] = []
        self.deliver = Remote(lambda _line, number, header, *arrays: self._post(end.deliver, number, header, arrays))
        self.credit = Remote(lambda _line, taken: self._post(end.credit, taken))

    def _post(self, call: Callable[..., None], *values: Any) -> None:
        self.mail.append(lambda: call(*values))

    def deliver_all(self, order: Callable[[list[Any]], None] = lambda mail: None) -> None:
        mail, self.mail = self.mail, []
        order(mail)
        for call in mail:
            call()


class Remote:
    def __init__(self, remote: Callable[..., None]) -> None:
        self.remote = remote


def line(slots: int) -> tuple[RayChannel, RayChannel, Far, Far]:
    """Both ends, and the handles through which the sender, and the receiver, call the other."""
    sender, receiver = RayChannel(slots), RayChannel(slots)
    to_receiver, to_sender = Far(receiver), Far(sender)
    sender.connect(to_receiver, "inbox")
    receiver.connect(to_sender, "outbox")
    return sender, receiver, to_receiver, to_sender


def packet(step: int, *tensors: Tensor) -> Packet:
    return Packet(Kind.TRAIN, 0, step, tensors)


def test_a_sender_is_at_most_its_slots_ahead_of_what_was_taken() -> None:
    sender, receiver, to_receiver, to_sender = line(slots=2)
    assert sender.send(packet(0), 0)
    assert sender.send(packet(1), 0)
    assert not sender.send(packet(2), 0.01)
    to_receiver.deliver_all()
    assert receiver.depth() == 2
    assert not sender.send(packet(2), 0), "arrived is not taken"
    assert receiver.receive(0) == packet(0)
    assert not sender.send(packet(2), 0), "its credit is still on the way"
    to_sender.deliver_all()
    assert sender.send(packet(2), 0)
    assert not sender.send(packet(3), 0)


@given(st.permutations(range(6)))
def test_packets_are_received_in_the_order_of_sending_however_they_arrive(order: list[int]) -> None:
    sender, receiver, to_receiver, _ = line(slots=6)
    for step in range(6):
        assert sender.send(packet(step, torch.tensor([float(step)])), 0)
    to_receiver.deliver_all(lambda mail: mail.sort(key=dict(zip(list(mail), order, strict=True)).__getitem__))
    received = [receiver.receive(0) for _ in range(6)]
    assert [each.step for each in received if each] == list(range(6))
    assert [float(each.tensors[0]) for each in received if each] == list(range(6))
    assert receiver.receive(0) is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(4, 3).T,
        torch.randn(2, 3, dtype=torch.float64),
        torch.randn(5).to(torch.bfloat16),
        torch.arange(3),
        torch.empty(0, 2),
        torch.tensor(1.5),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{list(tensor.shape)}",
)
def test_tensors_arrive_with_their_bits_and_on_the_alignment_of_torch(tensor: Tensor) -> None:
    sender, receiver, to_receiver, _ = line(slots=1)
    sender.send(packet(7, tensor), 0)
    to_receiver.deliver_all()
    received = receiver.receive(0)
    assert received is not None
    torch.testing.assert_close(received.tensors[0], tensor, rtol=0, atol=0)
    assert received.tensors[0].dtype is tensor.dtype
    assert received.tensors[0].data_ptr() % 64 == 0


def test_an_array_on_the_alignment_of_torch_is_not_copied() -> None:
    memory = np.zeros(64, np.float32)
    start = -memory.ctypes.data % 64 // 4
    _, receiver, _, _ = line(slots=1)
    receiver.deliver(0, (Kind.TRAIN, 0, 0, (torch.float32,)), (memory[start : start + 4],))
    received = receiver.receive(0)
    assert received is not None
    assert received.tensors[0].data_ptr() == memory.ctypes.data + 4 * start


@pytest.mark.parametrize("number", [-1, 0, 2, 9])
def test_a_packet_that_came_before_or_had_no_credit_is_an_error_of_the_receiver(number: int) -> None:
    _, receiver, _, _ = line(slots=2)
    header = (Kind.TRAIN, 0, 0, ())
    receiver.deliver(0, header, ())
    receiver.deliver(number, header, ())
    with pytest.raises(RuntimeError, match=rf"packet {number} arrived, expected one of the 2 from 0 on"):
        receiver.receive(0)


def test_a_receiver_and_a_sender_that_wait_are_woken() -> None:
    sender, receiver, to_receiver, to_sender = line(slots=1)
    found: list[Packet | None] = []
    waiting = threading.Thread(target=lambda: found.append(receiver.receive(30)))
    waiting.start()
    sender.send(packet(0), 0)
    to_receiver.deliver_all()
    waiting.join(30)
    assert found == [packet(0)]
    sent: list[bool] = []
    waiting = threading.Thread(target=lambda: sent.append(sender.send(packet(1), 30)))
    waiting.start()
    to_sender.deliver_all()
    waiting.join(30)
    assert sent == [True]
