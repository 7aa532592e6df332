"""Calls of real threads on models that are as slow as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bll_server.errors import Busy
from bll_server.metrics import Metrics
from bll_server.models.batcher import Batcher, Terms
from bll_server.models.queue import Budget

WAIT_S = 20.0


class Model:
    """Doubles its rows; a run ends when it is let go, or at once once `open` is set. Fails on negative rows."""

    def __init__(self, name: str = "m") -> None:
        self.version = SimpleNamespace(model=name, number=1, name=f"models/{name}/versions/1")
        self.runs: list[list[float]] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.open = threading.Event()

    def infer(self, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        self.runs.append([float(value) for value in rows])
        self.begun.release()
        if not self.open.is_set():
            assert self.go_on.acquire(timeout=WAIT_S)
        if (rows < 0).any():
            raise ValueError(f"negative: {rows}")
        return {"doubled": 2 * rows}

    def release(self) -> None:
        self.open.set()
        self.go_on.release(1000)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def model() -> Iterator[Model]:
    found = Model()
    yield found
    found.release()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def make(metrics: Metrics, calls: int = 64, parallel: int = 1, **more: Any) -> Batcher:
    return Batcher(metrics, Budget(calls, 4096, 2**20), parallel=parallel, **more)


def rows(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


@pytest.fixture
def ask(threads: ThreadPoolExecutor) -> Callable[..., Future[Any]]:
    def submit(batcher: Batcher, model: Any, *values: float, **terms: Any) -> Future[Any]:
        return threads.submit(batcher.infer, model, rows(*values), Terms(**terms))

    return submit


def waiting(batcher: Batcher, model: Any, count: int) -> None:
    """Wait until `count` calls wait."""
    end = threading.Event()
    for _ in range(2000):
        lane = batcher._lanes.get(model)
        if lane and len(lane.queue) == count:
            return
        end.wait(0.005)
    raise AssertionError(f"{count} calls do not wait")


def test_a_call_alone_runs_on_its_own_thread(metrics: Metrics, model: Model) -> None:
    model.open.set()
    outputs = make(metrics).infer(model, rows(1, 2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(outputs["doubled"], [2, 4])
    labels = {"model": "m", "version": "1"}
    assert metrics.registry.get_sample_value("bll_inference_queue_seconds_count", labels) == 1


def test_calls_that_wait_run_together_and_each_gets_its_own_rows(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    batcher = make(metrics)
    calls = [ask(batcher, model, 0.0)]
    assert model.begun.acquire(timeout=WAIT_S)
    for i in range(1, 6):
        calls.append(ask(batcher, model, *[float(i)] * i))
        waiting(batcher, model, i)
    model.release()
    for i, call in enumerate(calls):
        np.testing.assert_array_equal(call.result(WAIT_S)["doubled"], [2.0 * i] * max(i, 1))
    assert [len(run) for run in model.runs] == [1, 15]


def test_a_call_that_fails_fails_alone(metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]) -> None:
    batcher = make(metrics)
    first = ask(batcher, model, 0.0)
    assert model.begun.acquire(timeout=WAIT_S)
    good, bad, well = ask(batcher, model, 1.0), ask(batcher, model, -1.0), ask(batcher, model, 2.0)
    waiting(batcher, model, 3)
    model.release()
    assert first.result(WAIT_S)["doubled"] == [0]
    with pytest.raises(ValueError, match="negative"):
        bad.result(WAIT_S)
    assert good.result(WAIT_S)["doubled"] == [2]
    assert well.result(WAIT_S)["doubled"] == [4]


def test_a_call_of_higher_priority_passes_those_that_wait(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    batcher = make(metrics, batch_rows=1)
    calls = [ask(batcher, model, 0.0)]
    assert model.begun.acquire(timeout=WAIT_S)
    for i, priority in enumerate((100, 100, 1), 1):
        calls.append(ask(batcher, model, float(i), priority=priority))
        waiting(batcher, model, i)
    model.release()
    for call in calls:
        call.result(WAIT_S)
    assert model.runs[:2] == [[0.0], [3.0]]


def test_a_call_whose_time_is_over_leaves_and_never_runs(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    batcher = make(metrics)
    first = ask(batcher, model, 0.0)
    assert model.begun.acquire(timeout=WAIT_S)
    late = ask(batcher, model, 1.0, deadline_s=batcher.clock() + 0.5)
    with pytest.raises(Busy, match="was over"):
        late.result(WAIT_S)
    model.release()
    first.result(WAIT_S)
    assert model.runs == [[0.0]]
    labels = {"model": "m", "version": "1", "outcome": "dropped"}
    assert metrics.registry.get_sample_value("bll_inference_unanswered_total", labels) == 1


def test_a_call_whose_caller_has_gone_leaves_and_never_runs(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    batcher = make(metrics)
    first = ask(batcher, model, 0.0)
    assert model.begun.acquire(timeout=WAIT_S)
    callbacks: list[Callable[[], None]] = []

    def when_gone(callback: Callable[[], None]) -> bool:
        callbacks.append(callback)
        return True

    gone = ask(batcher, model, 1.0, when_gone=when_gone)
    already_gone = ask(batcher, model, 2.0, when_gone=lambda _: False)
    with pytest.raises(Busy, match="the caller has gone"):
        already_gone.result(WAIT_S)
    waiting(batcher, model, 1)
    while not callbacks:
        threading.Event().wait(0.005)
    callbacks[0]()
    with pytest.raises(Busy, match="the caller has gone"):
        gone.result(WAIT_S)
    model.release()
    first.result(WAIT_S)
    assert model.runs == [[0.0]]


def test_a_model_that_hangs_keeps_neither_its_callers_nor_other_models(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    batcher = make(metrics, calls=6)
    hung = ask(batcher, model, 0.0)
    assert model.begun.acquire(timeout=WAIT_S)
    behind = [ask(batcher, model, 1.0, deadline_s=batcher.clock() + 1.0) for _ in range(3)]
    waiting(batcher, model, 3)
    with pytest.raises(Busy, match="4 calls of this model are in the server already"):
        batcher.infer(model, rows(1))  # type: ignore[arg-type]
    other = Model("other")
    other.open.set()
    np.testing.assert_array_equal(batcher.infer(other, rows(3))["doubled"], [6])  # type: ignore[arg-type]
    for call in behind:
        with pytest.raises(Busy, match="was over"):
            call.result(WAIT_S)
    model.release()
    hung.result(WAIT_S)


def test_delay_gathers_calls_that_come_within_it(
    metrics: Metrics, model: Model, ask: Callable[..., Future[Any]]
) -> None:
    model.open.set()
    batcher = make(metrics, batch_rows=4, delay_s=WAIT_S)
    calls = [ask(batcher, model, float(i), float(i)) for i in range(2)]
    for call in calls:
        call.result(WAIT_S)
    assert [len(run) for run in model.runs] == [4]
    alone = make(metrics, batch_rows=4, delay_s=0.02)
    np.testing.assert_array_equal(alone.infer(model, rows(1))["doubled"], [2])  # type: ignore[arg-type]


def test_many_callers_all_get_their_own_answers(metrics: Metrics, model: Model, threads: ThreadPoolExecutor) -> None:
    model.open.set()
    batcher = make(metrics, calls=64, parallel=2)

    def call_often(i: int) -> None:
        for j in range(200):
            value = float(i * 1000 + j)
            outputs = batcher.infer(model, rows(*[value] * (1 + j % 20)))  # type: ignore[arg-type]
            assert outputs["doubled"].tolist() == [2 * value] * (1 + j % 20)

    for done in [threads.submit(call_often, i) for i in range(16)]:
        done.result(60)
    assert batcher._budget.held == (0, 0, 0)
