"""The shared-memory ring: packets come out as they went in, in order, and what cannot fit is refused."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bll.executors.ring import RingChannel
from bll.messages import Kind, Packet

CONTEXT = multiprocessing.get_context("forkserver")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]

tensors = st.builds(
    lambda dtype, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 2**31),
)


@given(packets=st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**40), st.lists(tensors, max_size=2))))
def test_packets_come_out_as_they_went_in(packets: list[tuple[Kind, int, list[torch.Tensor]]]) -> None:
    ring = RingChannel(CONTEXT, slots=2, payload_bytes=2 * 4**4 * 8)
    for kind, step, content in packets:
        ring.send(Packet(kind, 3, step, tuple(content)))
        packet = ring.receive()
        assert (packet.kind, packet.epoch, packet.step) == (kind, 3, step)
        for found, sent in zip(packet.tensors, content, strict=True):
            assert found.dtype == sent.dtype
            torch.testing.assert_close(found, sent, rtol=0, atol=0, equal_nan=True)


def test_a_received_tensor_is_not_overwritten_by_later_packets() -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=64)
    ring.send(Packet(Kind.TRAIN, 0, 0, (torch.zeros(4),)))
    (first,) = ring.receive().tensors
    ring.send(Packet(Kind.TRAIN, 0, 1, (torch.ones(4),)))
    assert first.tolist() == [0, 0, 0, 0]


def test_a_packet_too_large_for_its_slot_is_refused_with_its_shape() -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=16)
    with pytest.raises(ValueError, match=r"TRAIN of shape \[1000\]"):
        ring.send(Packet(Kind.TRAIN, 0, 0, (torch.zeros(1000),)))


def test_a_slot_that_holds_something_else_is_noticed() -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=16)
    ring.send(Packet(Kind.TRAIN, 0, 0, (torch.zeros(2),)))
    ring._memory[0] ^= 255
    with pytest.raises(RuntimeError, match="expected 0"):
        ring.receive()


def _echo(there: RingChannel, back: RingChannel, count: int) -> None:
    for _ in range(count):
        back.send(there.receive())


def test_another_process_receives_and_answers_through_back_pressure() -> None:
    there, back = (RingChannel(CONTEXT, slots=2, payload_bytes=4000) for _ in range(2))
    process = CONTEXT.Process(target=_echo, args=(there, back, 100), daemon=True)
    process.start()
    sent = 0
    for received in range(100):
        while sent < min(received + 4, 100):  # four on the way, two slots each way
            there.send(Packet(Kind.TRAIN, 0, sent, (torch.full((1000,), float(sent)),)))
            sent += 1
        packet = back.receive()
        assert packet.step == received
        assert set(packet.tensors[0].tolist()) == {float(received)}
    process.join(30)
    assert process.exitcode == 0
