"""Errors of the client. Each call's error is chained to the `grpc.RpcError` that caused it.

ClientError
├── InvalidSpec              a job spec does not fit; found before anything was sent
├── InvalidInput             an array has a dtype that cannot be sent
├── PlaintextToken           a token would have been sent where others can read it
├── DamagedDownload          what arrived is not the file that the server announced
└── CallError                the server refused a call, or no answer came
    ├── Unauthenticated      no token was sent, or it is wrong, expired or revoked
    ├── PermissionDenied     the token's role does not allow the call; the message names the one that does
    ├── InvalidArgument      a field breaks its rule; `violations` names each
    ├── NotFound             no job, model or version has that name
    ├── AlreadyExists        the job id is taken, or the request id came again with another body
    ├── FailedPrecondition   the job's state does not allow the call
    ├── Aborted              the job has changed since its etag was read
    ├── ResourceExhausted    a limit is reached: messages, watchers, disk; `retry_delay` may say when to try again
    ├── DeadlineExceeded     no answer within the call's deadline
    └── Unavailable          the server cannot be reached, is draining, or its model is not ready
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, TypedDict

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "bll"
"""Of the ErrorInfo whose reasons are listed in `bll_proto/v1/errors.proto`."""


class ClientError(Exception):
    """Root of every error that `bll_client` raises on purpose."""


@dataclass(frozen=True)
class FieldViolation:
    """One broken rule: the field's path (`latent.family`), and the rule with the value received."""

    field: str
    description: str

    def __str__(self) -> str:
        return f"{self.field}: {self.description}"


class InvalidSpec(ClientError):
    """A job spec does not fit `JobSpec`; `violations` names each field at fault."""

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(map(str, self.violations)))


class InvalidInput(ClientError):
    """An array has a dtype that cannot be sent."""


class DamagedDownload(ClientError):
    """A downloaded file has a bad name, length or digest; nothing of it was kept."""


class PlaintextToken(ClientError):
    """A token was given for a connection without TLS to another machine."""


class CallError(ClientError):
    """The server refused a call, or no answer came."""

    kinds: ClassVar[dict[grpc.StatusCode, type[CallError]]] = {}

    def __init_subclass__(cls, status: grpc.StatusCode) -> None:
        CallError.kinds[status] = cls

    def __init__(
        self,
        message: str,
        *,
        status: grpc.StatusCode,
        reason: str = "",
        violations: Sequence[FieldViolation] = (),
        retry_delay: timedelta | None = None,
    ) -> None:
        self.message = message
        self.status = status
        self.reason = reason
        """Machine-readable, such as `JOB_EXISTS`; empty when the answer is not from a bll server."""
        self.violations = tuple(violations)
        self.retry_delay = retry_delay
        """How long the server asks to wait before another try; None when it does not say."""
        super().__init__(f"{status.name}: {message}")


class _Details(TypedDict):
    reason: str
    violations: list[FieldViolation]
    retry_delay: timedelta | None


class Unauthenticated(CallError, status=grpc.StatusCode.UNAUTHENTICATED):
    """No token was sent, or it is wrong, has expired or was revoked."""


class PermissionDenied(CallError, status=grpc.StatusCode.PERMISSION_DENIED):
    """The token's role does not allow the call; the message names the one that does."""


class InvalidArgument(CallError, status=grpc.StatusCode.INVALID_ARGUMENT):
    """A field of the request breaks its rule."""


class NotFound(CallError, status=grpc.StatusCode.NOT_FOUND):
    """No job, model, version or data set has that name."""


class AlreadyExists(CallError, status=grpc.StatusCode.ALREADY_EXISTS):
    """The job id is taken, the request id came again with another body, or the data set has other content."""


class FailedPrecondition(CallError, status=grpc.StatusCode.FAILED_PRECONDITION):
    """The job's state does not allow the call, or the data set is still needed."""


class Aborted(CallError, status=grpc.StatusCode.ABORTED):
    """The job has changed since its etag was read, or another stream goes on with the upload."""


class ResourceExhausted(CallError, status=grpc.StatusCode.RESOURCE_EXHAUSTED):
    """A limit is reached: message size, watchers, queue, disk."""


class DeadlineExceeded(CallError, status=grpc.StatusCode.DEADLINE_EXCEEDED):
    """No answer came within the call's deadline."""


class Unavailable(CallError, status=grpc.StatusCode.UNAVAILABLE):
    """The server cannot be reached, is draining, or its model is not ready."""


def call_error(error: grpc.RpcError) -> CallError:
    """The client's error for a failed call, of the class that belongs to its status."""
    status = error.code()
    kind = CallError.kinds.get(status, CallError)
    message = error.details() or "no message"
    try:
        rich_status = rpc_status.from_call(error)  # type: ignore[arg-type]  # every raised RpcError is a Call too
        return kind(message, status=status, **_details(rich_status or status_pb2.Status()))
    except (DecodeError, ValueError):
        # A proxy may have mangled the details; the status and the message still stand.
        return kind(message, status=status)


def _details(status: status_pb2.Status) -> _Details:
    details = _Details(reason="", violations=[], retry_delay=None)
    for detail in status.details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest.FromString(detail.value)
            details["violations"] = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            details["reason"] = info.reason if info.domain == DOMAIN else ""
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            details["retry_delay"] = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay.ToTimedelta()
    return details
