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
LIMIT_S = 30.0

tensors = st.builds(
    lambda dtype, shape, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=4),
    st.integers(0, 2**31),
)
packets = st.builds(
    lambda kind, step, content: Packet(kind, 3, step, tuple(content)),
    st.sampled_from(Kind),
    st.integers(0, 2**40),
    st.lists(tensors, max_size=2),
)


def assert_same(found: Packet | None, sent: Packet) -> None:
    assert found is not None
    assert found[:3] == sent[:3]
    for ours, theirs in zip(found.tensors, sent.tensors, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def ones(step: int, numbers: int = 4) -> Packet:
    return Packet(Kind.TRAIN, 0, step, (torch.full((numbers,), float(step)),))


@given(slots=st.integers(1, 4), turns=st.lists(st.tuples(packets, st.lists(st.booleans(), max_size=3)), max_size=12))
def test_packets_come_out_as_they_went_in_however_sends_and_receipts_alternate(
    slots: int, turns: list[tuple[Packet, list[bool]]]
) -> None:
    ring = RingChannel(CONTEXT, slots, payload_bytes=2 * 4**4 * 8)
    waiting: list[Packet] = []
    for packet, receipts in turns:
        assert ring.send(packet, 0.0) == (len(waiting) < slots)
        waiting = [*waiting, packet][:slots]
        for _ in receipts:
            assert ring.depth() == len(waiting)
            if waiting:
                assert_same(ring.receive(LIMIT_S), waiting.pop(0))
            else:
                assert ring.receive(0.0) is None


def test_a_received_tensor_is_not_overwritten_by_later_packets() -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=64)
    ring.send(ones(0), LIMIT_S)
    first = ring.receive(LIMIT_S)
    ring.send(ones(1), LIMIT_S)
    assert_same(first, ones(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((torch.zeros(1000),), r"TRAIN of shape \[1000\] exceeds \d+ bytes"),
        ((torch.zeros(80), torch.zeros(2, 80)), r"TRAIN of shape \[80\], \[2, 80\] exceeds"),
        ((torch.zeros(1, dtype=torch.int32),), r"TRAIN of torch\.int32"),
        ((torch.zeros([1] * 9),), r"shape \[1, 1, 1, 1, 1, 1, 1, 1, 1\], has no encoding"),
        ((torch.zeros(1),) * 3, "TRAIN has 3 tensors, more than 2"),
    ],
)
def test_a_packet_that_does_not_fit_is_refused_and_leaves_the_ring_as_it_was(
    content: tuple[torch.Tensor, ...], message: str
) -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=16)
    with pytest.raises(ValueError, match=message):
        ring.send(Packet(Kind.TRAIN, 0, 0, content), LIMIT_S)
    ring.send(ones(0, 2), LIMIT_S)
    assert_same(ring.receive(LIMIT_S), ones(0, 2))


@pytest.mark.parametrize(
    ("byte", "message"),
    [
        (0, "expected 0"),  # the mark
        (4, "kind"),
        (8, "holds packet 255"),  # the sequence number
        (32, "expected 0"),  # the number of tensors
        (36, "names dtype"),
        (40, "dimensions"),
        (45, "more than its size"),  # of the first dimension
    ],
)
def test_a_slot_that_holds_something_else_is_noticed(byte: int, message: str) -> None:
    ring = RingChannel(CONTEXT, slots=1, payload_bytes=16)
    ring.send(ones(0, 2), LIMIT_S)
    ring._memory[byte] ^= 255
    with pytest.raises(RuntimeError, match=message):
        ring.receive(LIMIT_S)


def _echo(there: RingChannel, back: RingChannel, count: int) -> None:
    for _ in range(count):
        packet = there.receive(LIMIT_S)
        assert packet is not None
        assert back.send(packet, LIMIT_S)


def test_another_process_receives_and_answers_through_back_pressure() -> None:
    there, back = (RingChannel(CONTEXT, slots=2, payload_bytes=4000) for _ in range(2))
    process = CONTEXT.Process(target=_echo, args=(there, back, 100), daemon=True)
    process.start()
    sent = 0
    for received in range(100):
        while sent < min(received + 4, 100):  # four on the way, two slots each way
            assert there.send(ones(sent, 1000), LIMIT_S)
            sent += 1
        assert_same(back.receive(LIMIT_S), ones(received, 1000))
    process.join(30)
    assert process.exitcode == 0


def test_a_successor_knows_what_was_sent_before_it_and_does_not_send_it_again() -> None:
    ring = RingChannel(CONTEXT, slots=3, payload_bytes=16)
    stop = Packet(Kind.STOP, 0, 1, ())
    assert ring.resent() is None
    ring.send(ones(0), LIMIT_S)
    ring.send(stop, LIMIT_S)
    ring.take_over(sent=1, received=0)
    assert ring.resent() is Kind.STOP
    assert ring.send(ones(1), LIMIT_S)
    assert ring.resent() is None
    assert_same(ring.receive(LIMIT_S), ones(0))
    assert_same(ring.receive(LIMIT_S), stop)
    assert ring.receive(0.0) is None
