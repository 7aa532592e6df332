"""The generator of load counts what a server does to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from benchmarks.serving.load import Load, Outcome, Target, _closed, _open

PATH = "/some.Service/Method"


@pytest.fixture
def body(tmp_path: Path) -> str:
    path = tmp_path / "body"
    path.write_bytes(b"asked")
    return str(path)


@pytest.fixture
def address() -> Iterator[str]:
    """Of a server that refuses every fourth call."""
    numbers = itertools.count(1)

    def answer(data: bytes, context: grpc.ServicerContext) -> bytes:
        assert data == b"asked"
        if next(numbers) % 4 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "every fourth")
        return b"answered"

    handlers: dict[str, Any] = {"Method": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def check(found: Outcome) -> None:
    failed = found.failures["UNAVAILABLE"]
    assert found.calls == found.answered + failed
    assert found.calls // 4 == failed
    assert "every fourth" in found.first_failure
    assert 0 < found.p50_ms <= found.p99_ms <= found.max_ms


def test_clients_that_wait_for_their_answers_are_counted(address: str, body: str) -> None:
    found = _closed(Load(Target(address, PATH, body), 0.3, clients=2, warm_up_s=0))
    check(found)
    assert found.per_s > 0


def test_calls_that_do_not_wait_begin_at_their_rate(address: str, body: str) -> None:
    found = _open(Load(Target(address, PATH, body), 0.5, clients=2, rate=100, warm_up_s=0))
    check(found)
    assert found.calls == pytest.approx(50, abs=1)
