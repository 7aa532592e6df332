"""Calls that wait for a busy model, over a socket and with real clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import grpc
import numpy as np
import pytest

from bll_client import Client
from bll_proto.tensors import to_array, to_tensor
from bll_proto.v1.inference_pb2 import PredictRequest
from bll_server.models.session import ModelSession

CODES = grpc.StatusCode
WAIT_S = 20.0


@dataclass
class Held:
    """`ModelSession.infer`, which waits in every run until it is let go."""

    runs: list[int] = field(default_factory=list)
    """Rows of each."""
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held, infer = Held(), ModelSession.infer

    def wait_and_infer(self: ModelSession, rows: np.ndarray[Any, Any]) -> Any:
        held.runs.append(len(rows))
        held.begun.release()
        assert held.go_on.wait(WAIT_S)
        return infer(self, rows)

    monkeypatch.setattr(ModelSession, "infer", wait_and_infer)
    yield held
    held.go_on.set()


def images(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rows).random((rows, 1, 8, 8), dtype=np.float32)


def request(rows: int, **more: Any) -> PredictRequest:
    return PredictRequest(model="models/fashion", input=to_tensor(images(rows)), **more)


def waiting(served: Any, count: int) -> None:
    """Wait until `count` calls of `Predict` are in the server."""
    labels = {"grpc_type": "unary", "grpc_service": "bll.v1.InferenceService", "grpc_method": "Predict"}
    poll = threading.Event()
    for _ in range(2000):
        begun = served.metrics.registry.get_sample_value("grpc_server_started_total", labels) or 0
        if begun >= count and not poll.wait(0.05):  # and a moment more, to get from the counter to the queue
            return
        poll.wait(0.005)
    raise AssertionError(f"{count} calls have not begun")


def test_calls_that_waited_together_get_the_answers_that_they_get_alone(crowded: Any, held: Held) -> None:
    first = crowded.inference.Predict.future(request(1), timeout=WAIT_S)
    assert held.begun.acquire(timeout=WAIT_S)
    others = [crowded.inference.Predict.future(request(rows), timeout=WAIT_S) for rows in (2, 3)]
    waiting(crowded, 3)
    held.go_on.set()
    together = [to_array(call.result().exit_probabilities) for call in (first, *others)]
    assert held.runs == [1, 5]
    for rows, answer in zip((1, 2, 3), together, strict=True):
        alone = crowded.inference.Predict(request(rows), timeout=WAIT_S)
        np.testing.assert_allclose(answer, to_array(alone.exit_probabilities), rtol=1e-5, atol=1e-7)


def test_priority_decides_who_goes_first(crowded: Any, held: Held) -> None:
    calls = [crowded.inference.Predict.future(request(1), timeout=WAIT_S)]
    assert held.begun.acquire(timeout=WAIT_S)
    for number, (rows, priority) in enumerate(((20, 0), (21, 0), (22, 1)), 2):
        calls.append(crowded.inference.Predict.future(request(rows, priority=priority), timeout=WAIT_S))
        waiting(crowded, number)
    held.go_on.set()
    for call in calls:
        call.result()
    assert held.runs == [1, 22, 20, 21]


def test_call_that_was_cancelled_while_it_waited_is_not_run(crowded: Any, held: Held) -> None:
    first = crowded.inference.Predict.future(request(1), timeout=WAIT_S)
    assert held.begun.acquire(timeout=WAIT_S)
    second = crowded.inference.Predict.future(request(2), timeout=WAIT_S)
    waiting(crowded, 2)
    second.cancel()
    labels = {"model": "fashion", "version": "2", "outcome": "dropped"}
    poll = threading.Event()
    for _ in range(2000):
        if crowded.metrics.registry.get_sample_value("bll_inference_unanswered_total", labels) == 1:
            break
        poll.wait(0.005)
    held.go_on.set()
    first.result()
    crowded.inference.Predict(request(3), timeout=WAIT_S)
    assert held.runs == [1, 3]


def test_a_full_model_refuses_and_tells_when_to_come_again(crowded: Any, held: Held) -> None:
    calls = [crowded.inference.Predict.future(request(20), timeout=WAIT_S) for _ in range(4)]
    waiting(crowded, 4)
    with pytest.raises(grpc.RpcError) as raised:
        crowded.inference.Predict(request(1), timeout=WAIT_S)
    error: Any = raised.value
    assert error.code() is CODES.UNAVAILABLE
    assert "4 calls of this model are in the server already" in error.details()
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    assert crowded.inference.Predict.future(request(1), timeout=WAIT_S).exception().code() is CODES.UNAVAILABLE
    held.go_on.set()
    for call in calls:
        call.result()


def test_our_client_comes_again_by_itself_when_it_was_refused(crowded: Any, held: Held) -> None:
    calls = [crowded.inference.Predict.future(request(20), timeout=WAIT_S) for _ in range(4)]
    waiting(crowded, 4)
    with ThreadPoolExecutor(1) as pool, Client(crowded.address, timeout=timedelta(seconds=WAIT_S)) as client:
        answer = pool.submit(client.predict, "fashion", images(1), priority=1)
        waiting(crowded, 5)  # and it was refused
        held.go_on.set()
        assert answer.result(WAIT_S).probabilities.shape == (1, 10)
    for call in calls:
        call.result()


def test_call_whose_deadline_the_model_cannot_keep_is_refused_at_once(crowded: Any, held: Held) -> None:
    held.go_on.set()
    crowded.inference.Predict(request(20), timeout=WAIT_S)
    held.go_on.clear()
    first = crowded.inference.Predict.future(request(20), timeout=WAIT_S)
    for _ in range(2):
        assert held.begun.acquire(timeout=WAIT_S)
    threading.Event().wait(1.0)  # the run takes longer than it should
    with pytest.raises(grpc.RpcError) as raised:
        crowded.inference.Predict(request(20), timeout=0.5)
    error: Any = raised.value
    assert error.code() is CODES.UNAVAILABLE
    assert "an answer would take about" in error.details()
    held.go_on.set()
    first.result()
