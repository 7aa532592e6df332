"""Spans of calls, kept in memory instead of being sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from bll_server import tracing
from bll_server.auth.audit import AUDIT, Audit
from bll_server.auth.gate import Gate
from bll_server.auth.tokens import Tokens
from bll_server.errors import NotFound
from bll_server.interceptors import Boundary
from bll_server.metrics import Metrics

METHOD = "/bll.v1.ModelService/GetModel"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> Any:
    memory = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter", reason="the extra otel is not installed"
    )
    return memory.InMemorySpanExporter()


@pytest.fixture
def traced(exporter: Any) -> tracing.Tracing:
    return tracing.Tracing(exporter)


@pytest.fixture
def call(traced: tracing.Tracing, tmp_path: Path) -> Iterator[Any]:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"none":
            raise NotFound("no such thing")
        if request == b"bug":
            raise KeyError("oh")
        return request

    gate = Gate(Tokens(tmp_path), {}, always=False)
    boundary = Boundary(Metrics(), gate, Audit(tmp_path / AUDIT), {}, tracing=traced)
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[boundary])
    handlers: dict[str, Any] = {"GetModel": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bll.v1.ModelService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(METHOD)
    server.stop(None).wait()


def test_a_call_is_a_span_in_the_trace_that_its_caller_names(call: Any, traced: tracing.Tracing, exporter: Any) -> None:
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "mine"))
    call(b"a", timeout=10, metadata=metadata)
    traced.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == "bll.v1.ModelService/GetModel"
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "bll.v1.ModelService",
        "rpc.method": "GetModel",
        "rpc.grpc.status_code": 0,
        "bll.request_id": "mine",
    }
    assert span.status.is_ok


def test_a_fault_of_the_server_is_an_error_of_its_span_and_one_of_the_caller_is_not(
    call: Any, traced: tracing.Tracing, exporter: Any
) -> None:
    for request in (b"none", b"bug"):
        with pytest.raises(grpc.RpcError):
            call(request, timeout=10)
    traced.close()
    assert [span.status.is_ok for span in exporter.get_finished_spans()] == [True, False]


def test_a_missing_extra_is_named_where_traces_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(tracing.NoTracing, match=r"pip install 'bll\[otel\]'"):
        tracing.tracing_to("http://127.0.0.1:4317")
