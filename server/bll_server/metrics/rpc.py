"""What happens to calls, under the names that other gRPC servers have for it: dashboards exist."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_CALL = ["grpc_type", "grpc_service", "grpc_method"]
_TYPES = {
    "unary_unary": "unary",
    "unary_stream": "server_stream",
    "stream_unary": "client_stream",
    "stream_stream": "bidi_stream",
}
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class MethodMetrics:
    """Those of one method, found once and not at every call."""

    def __init__(self, metrics: RpcMetrics, path: str, *labels: str) -> None:
        self.path = path
        self.name = labels[-1]
        self._labels = labels
        self._started = metrics.started.labels(*labels)
        self._all_handled = metrics.handled
        self._handled: dict[str, Counter] = {}
        self._seconds = metrics.seconds.labels(*labels)
        self._in_flight = metrics.in_flight.labels(*labels)
        self.received = metrics.received.labels(*labels)
        self.sent = metrics.sent.labels(*labels)

    def begin(self) -> None:
        """A call has come."""
        self._started.inc()
        self._in_flight.inc()

    def end(self, code: str, seconds: float) -> None:
        """It was answered, by the name of its status."""
        if code not in self._handled:
            self._handled[code] = self._all_handled.labels(*self._labels, code)
        self._handled[code].inc()
        self._seconds.observe(seconds)
        self._in_flight.dec()


class RpcMetrics:
    """Those of all methods that have been called."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.started = Counter("grpc_server_started", "Calls begun.", _CALL, registry=registry)
        self.handled = Counter(
            "grpc_server_handled", "Calls answered, by status.", [*_CALL, "grpc_code"], registry=registry
        )
        self.seconds = Histogram(
            "grpc_server_handling_seconds",
            "Time from a call's arrival in its handler to its answer.",
            _CALL,
            buckets=SECONDS,
            registry=registry,
        )
        self.received = Counter("grpc_server_msg_received", "Messages read from callers.", _CALL, registry=registry)
        self.sent = Counter("grpc_server_msg_sent", "Messages given to callers.", _CALL, registry=registry)
        self.in_flight = Gauge("grpc_server_in_flight", "Calls begun and not yet answered.", _CALL, registry=registry)

    def method(self, path: str, kind: str) -> MethodMetrics:
        """`kind` is grpc's: `unary_stream` and the like."""
        service, _, name = path.removeprefix("/").partition("/")
        return MethodMetrics(self, path, _TYPES[kind], service, name)
