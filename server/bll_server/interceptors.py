"""What happens round every call, where nobody can forget it: request id, metrics, the gate, and what errors become."""

from __future__ import annotations

import itertools
import logging
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status
from prometheus_client import Counter

from bll.errors import Violation
from bll_server.auth.audit import Audit
from bll_server.auth.caller import Caller, acting_for
from bll_server.auth.gate import Gate, resource_of
from bll_server.auth.roles import Role, access
from bll_server.errors import Busy, InvalidRequest, ServerError
from bll_server.logs import bound
from bll_server.metrics import Metrics
from bll_server.metrics.rpc import MethodMetrics
from bll_server.status import retry_after_s, status_of
from bll_server.threads import AT_ONCE, BoundedThreads
from bll_server.tracing import Tracing

log = logging.getLogger(__name__)

T = TypeVar("T")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PROCESS = secrets.token_hex(5)
_NUMBERS = itertools.count(1)


class Boundary(grpc.ServerInterceptor):
    """Wraps every method of the server.

    The request's id is the caller's `x-request-id`, or a new one; log lines, errors and the answer's trailing
    metadata carry it.
    """

    def __init__(
        self,
        metrics: Metrics,
        gate: Gate,
        audit: Audit,
        pools: Mapping[str, ThreadPoolExecutor],
        log_fraction: float = 0.0,
        tracing: Tracing | None = None,
    ) -> None:
        """`pools` are the threads of those methods, by path, that would keep the others waiting.

        Of calls that went well the log has `log_fraction`, and of others, unless that is 0, each.
        """
        self._metrics = metrics
        self._gate = gate
        self._audit = audit
        self._pools = pools
        self._log_fraction = log_fraction
        self._tracing = tracing
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._crowded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = continuation(handler_call_details)
            if handler is None:  # grpc answers UNIMPLEMENTED, and what a stranger calls is never counted by name
                return None
            self._wrapped[method] = self._wrap(method, handler)
        pool = self._pools.get(method)
        if isinstance(pool, BoundedThreads) and pool.full:
            return self._crowded[method]
        return self._wrapped[method]

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind, behavior = next((k, b) for k in kinds if (b := getattr(handler, k)))
        if getattr(behavior, "experimental_non_blocking", False):
            return handler  # health's Watch, which is open to all: it holds no thread, and answers through a callback
        series = self._metrics.rpc.method(method, kind)
        received, sent = series.received, series.sent
        rules = access(method)
        # Predictions name a model, which everybody may see: there is nothing to look for in their messages.
        has_owner = rules.change or rules.least is not Role.PREDICTOR
        parse = handler.request_deserializer or bytes
        gate = self._gate

        def admit(call: _Call, data: Any, context: grpc.ServicerContext) -> tuple[Caller, Any]:
            """Who calls, and the message, which is not looked at for a stranger."""
            who = call.who = gate.identify(method, context.invocation_metadata())
            gate.permit(who, method)
            if handler.request_streaming:
                return who, (_checked(gate, who, _parsed(parse, part)) for part in _counted(data, received))
            message = _parsed(parse, data)
            received.inc()
            if has_owner:
                call.resource = resource_of(message)
                call.change = call.change and not getattr(message, "validate_only", False)
                gate.check_owner(who, message)
            return who, message

        def unary(data: Any, context: grpc.ServicerContext) -> Any:
            with _Call(self, series, rules.change, context) as call:
                who, message = admit(call, data, context)
                with acting_for(who):
                    answer = behavior(message, context)
                if has_owner:
                    call.resource = resource_of(answer) or call.resource
                sent.inc()
                return answer

        def stream(data: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with _Call(self, series, rules.change, context) as call:
                who, message = admit(call, data, context)
                with acting_for(who):
                    for answer in _counted(behavior(message, context), sent):
                        yield _checked(gate, who, answer)

        def refuse(data: Any, context: grpc.ServicerContext) -> Any:
            with _Call(self, series, rules.change, context):
                raise Busy("the server has as many calls of this kind as it may", 0.0)

        wrapper: Any = stream if handler.response_streaming else unary
        if pool := self._pools.get(method):
            wrapper.experimental_thread_pool = pool  # grpc looks for it there
            # A client cannot tell one request from a stream of one, and grpc reads a stream only when it is asked to.
            refuse.experimental_thread_pool = AT_ONCE  # type: ignore[attr-defined]
            self._crowded[method] = grpc.stream_unary_rpc_method_handler(refuse)
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(wrapper, None, handler.response_serializer)
        return wrapped

    def begun(self, call: _Call) -> None:
        """Start the span of a call, where calls are traced."""
        if self._tracing:
            metadata = call.context.invocation_metadata()
            call.end_span = self._tracing.begin(call.series.path, metadata, call.request_id)

    def ended(self, call: _Call, error: BaseException | None) -> None:
        """Count, log and audit a call that is over, and let `error` leave as its status."""
        context = call.context
        try:
            if isinstance(error, Exception):
                answered = _code(context) is not None
                gone = isinstance(error, grpc.RpcError) and not context.is_active()  # raised where it read on
                if not (answered or gone):
                    self._abort(error, call.request_id, context)
        finally:
            code = _code(context) or (grpc.StatusCode.OK if context.is_active() else grpc.StatusCode.CANCELLED)
            seconds = time.perf_counter() - call.started
            if call.change and call.who:
                who, peer = call.who, str(context.peer())
                more = {"role": str(who.role), "token": who.token_id, "request_id": call.request_id, "peer": peer}
                self._audit.write(str(who), call.series.name, call.resource, code.name, **more)
            call.series.end(code.name, seconds)
            if call.end_span:
                call.end_span(code)
            if self._log_fraction and (code is not grpc.StatusCode.OK or random.random() < self._log_fraction):  # noqa: S311
                caller = str(call.who) if call.who else "unknown"
                log.info("%s %s in %.1f ms, for %s", call.series.name, code.name, 1000 * seconds, caller)

    def _abort(self, error: Exception, request_id: str, context: grpc.ServicerContext) -> None:
        if not isinstance(error, ServerError):
            log.error("unexpected error", exc_info=error)
        status = rpc_status.to_status(status_of(error, request_id))
        metadata = (*status.trailing_metadata, ("x-request-id", request_id))
        if isinstance(error, Busy) and (delay_s := retry_after_s(error)) is not None:
            metadata += (("grpc-retry-pushback-ms", str(round(1000 * delay_s))),)
        context.set_trailing_metadata(metadata)
        context.abort(status.code, status.details)


class _Call:
    """A call from its arrival in its handler to its end, and what the logs say of it."""

    __slots__ = (
        "_boundary",
        "_unbind",
        "change",
        "context",
        "end_span",
        "request_id",
        "resource",
        "series",
        "started",
        "who",
    )

    def __init__(self, boundary: Boundary, series: MethodMetrics, change: bool, context: grpc.ServicerContext) -> None:
        self._boundary = boundary
        self.series = series
        self.change = change
        self.context = context
        self.who: Caller | None = None
        self.resource = ""
        self.end_span: Callable[[grpc.StatusCode], None] | None = None

    def __enter__(self) -> _Call:
        self.started = time.perf_counter()
        self.request_id = _request_id(self.context)
        self.series.begin()
        self.context.set_trailing_metadata((("x-request-id", self.request_id),))
        self._unbind = bound(request_id=self.request_id)
        self._unbind.__enter__()
        self._boundary.begun(self)
        try:
            # Cancelled or expired while it waited for a thread: nobody reads the answer.
            if not self.context.is_active():
                self.context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._boundary.ended(self, error)
        finally:
            self._unbind.__exit__(None, None, None)


def _parsed(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """The message in `data`. Left to grpc, what cannot be parsed would be called a fault of the server."""
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidRequest(Violation("request", f"must be the message that this method takes: {error}")) from error


def _checked(gate: Gate, who: Caller, message: Any) -> Any:
    """`message` of a stream, whose caller's token may have been revoked since it began."""
    gate.check_still(who)
    return message


def _counted(messages: Iterable[T], counter: Counter) -> Iterator[T]:
    for message in messages:
        counter.inc()
        yield message


def _code(context: grpc.ServicerContext) -> grpc.StatusCode | None:
    """The status that has been set so far."""
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs lack it
    return code


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return f"{_PROCESS}-{next(_NUMBERS):x}"  # no secret, and a new one in every process
