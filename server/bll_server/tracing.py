"""A span for every call, sent to a collector by OpenTelemetry. The extra `otel` brings what this needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span


class NoTracing(Exception):
    """Traces were asked for, and the extra is not installed."""


class Tracing:
    """The spans of one server."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # How many calls are sampled is said by OTEL_TRACES_SAMPLER, which the library reads; by default what the
        # caller samples, and every call of one who says nothing.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "bll"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("bll_server")

    def begin(self, path: str, metadata: Iterable[tuple[str, str | bytes]], request_id: str) -> Callable[..., None]:
        """Start the span of a call, in the trace that its metadata names; returns what ends it, given the status."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = path.removeprefix("/")
        service, _, method = name.partition("/")
        given = {key: value for key, value in metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            name,
            context=TraceContextTextMapPropagator().extract(given),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "bll.request_id": request_id,
            },
        )

        def end(code: grpc.StatusCode) -> None:
            _end(span, code)

        return end

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def tracing_to(endpoint: str) -> Tracing:
    """Spans to the OTLP collector (gRPC) at that URL. Raises NoTracing."""
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise NoTracing("--trace-endpoint needs OpenTelemetry: pip install 'bll[otel]'") from error
    return Tracing(OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://")))


def _end(span: Span, code: grpc.StatusCode) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code in _OURS:
        span.set_status(Status(StatusCode.ERROR, code.name))
    span.end()


_OURS = frozenset(
    {
        grpc.StatusCode.DATA_LOSS,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNKNOWN,
    }
)
"""What is an error of a server, by OpenTelemetry's conventions; the rest is its caller's."""
