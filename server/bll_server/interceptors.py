"""What happens round every call, where nobody can forget it: request id, metrics, the gate, and what errors become."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from bll.errors import Violation
from bll_server.auth.audit import Audit
from bll_server.auth.caller import Caller, acting_for
from bll_server.auth.gate import Gate, resource_of
from bll_server.auth.roles import access
from bll_server.errors import InvalidRequest, ServerError
from bll_server.logs import bound
from bll_server.metrics import Metrics
from bll_server.status import status_of

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Boundary(grpc.ServerInterceptor):
    """Wraps every method of the server.

    The request's id is the caller's `x-request-id`, or a new one; log lines, errors and the answer's trailing
    metadata carry it.
    """

    def __init__(self, metrics: Metrics, gate: Gate, audit: Audit, pools: Mapping[str, ThreadPoolExecutor]) -> None:
        """`pools` are the threads of those methods, by path, that would keep the others waiting."""
        self._metrics = metrics
        self._gate = gate
        self._audit = audit
        self._pools = pools
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

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
        return self._wrapped[method]

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind, behavior = next((k, b) for k in kinds if (b := getattr(handler, k)))
        if getattr(behavior, "experimental_non_blocking", False):
            return handler  # health's Watch, which is open to all: it holds no thread, and answers through a callback
        service, _, name = method.removeprefix("/").partition("/")
        labels = (kind, service, name)

        parse = handler.request_deserializer or bytes
        gate = self._gate

        def admit(call: _Call, data: Any, context: grpc.ServicerContext) -> tuple[Caller, Any]:
            """Who calls, and the message, which is not looked at for a stranger."""
            who = call.who = gate.identify(method, context.invocation_metadata())
            gate.permit(who, method)
            if handler.request_streaming:
                return who, (_checked(gate, who, _parsed(parse, part)) for part in data)
            message = _parsed(parse, data)
            call.resource = resource_of(message)
            call.change = call.change and not getattr(message, "validate_only", False)
            gate.check_owner(who, message)
            return who, message

        def unary(data: Any, context: grpc.ServicerContext) -> Any:
            with self._call(method, labels, context) as call:
                who, message = admit(call, data, context)
                with acting_for(who):
                    answer = behavior(message, context)
                call.resource = resource_of(answer) or call.resource
                return answer

        def stream(data: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._call(method, labels, context) as call:
                who, message = admit(call, data, context)
                with acting_for(who):
                    for answer in behavior(message, context):
                        yield _checked(gate, who, answer)

        wrapper: Any = stream if handler.response_streaming else unary
        if method in self._pools:
            wrapper.experimental_thread_pool = self._pools[method]  # grpc looks for it there
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(wrapper, None, handler.response_serializer)
        return wrapped

    @contextmanager
    def _call(self, method: str, labels: tuple[str, str, str], context: grpc.ServicerContext) -> Iterator[_Call]:
        request_id = _request_id(context)
        call = _Call(access(method).change)
        started = time.perf_counter()
        self._metrics.grpc_started.labels(*labels).inc()
        context.set_trailing_metadata((("x-request-id", request_id),))
        with bound(request_id=request_id):
            try:
                # Cancelled or expired while it waited for a thread: nobody reads the answer.
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
                yield call
            except Exception as error:
                answered = _code(context) is not None
                gone = isinstance(error, grpc.RpcError) and not context.is_active()  # raised where it read on
                if answered or gone:
                    raise
                self._abort(error, request_id, context)
            finally:
                code = _code(context) or (grpc.StatusCode.OK if context.is_active() else grpc.StatusCode.CANCELLED)
                if call.change and call.who:
                    who, peer = call.who, str(context.peer())
                    more = {"role": str(who.role), "token": who.token_id, "request_id": request_id, "peer": peer}
                    self._audit.write(str(who), labels[2], call.resource, code.name, **more)
                self._metrics.grpc_handled.labels(*labels, code.name).inc()
                self._metrics.grpc_seconds.labels(*labels).observe(time.perf_counter() - started)

    def _abort(self, error: Exception, request_id: str, context: grpc.ServicerContext) -> None:
        if not isinstance(error, ServerError):
            log.error("unexpected error", exc_info=error)
        status = rpc_status.to_status(status_of(error, request_id))
        metadata = (*status.trailing_metadata, ("x-request-id", request_id))
        context.set_trailing_metadata(metadata)
        context.abort(status.code, status.details)


@dataclass
class _Call:
    """What the audit log says of a call."""

    change: bool
    who: Caller | None = None
    resource: str = ""


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


def _code(context: grpc.ServicerContext) -> grpc.StatusCode | None:
    """The status that has been set so far."""
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # the stubs lack it
    return code


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)
