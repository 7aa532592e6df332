"""The one table that gives every error of the service its gRPC status and its machine-readable reason."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from bll_proto.v1 import errors_pb2 as reasons
from bll_server.errors import (
    DOMAIN,
    Busy,
    DatabaseUnavailable,
    DatasetExists,
    DatasetInUse,
    IllegalState,
    InvalidRequest,
    JobExists,
    ModelNotReady,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    RequestIdReused,
    ServerError,
    ShuttingDown,
    StaleEtag,
    StorageFull,
    StudyExists,
    Unauthenticated,
    UploadTakenOver,
)

TABLE: dict[type[ServerError], tuple[grpc.StatusCode, reasons.ErrorReason.ValueType]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, reasons.ERROR_REASON_INVALID_ARGUMENT),
    NotFound: (grpc.StatusCode.NOT_FOUND, reasons.ERROR_REASON_NOT_FOUND),
    RequestIdReused: (grpc.StatusCode.ALREADY_EXISTS, reasons.ERROR_REASON_REQUEST_ID_REUSED),
    JobExists: (grpc.StatusCode.ALREADY_EXISTS, reasons.ERROR_REASON_JOB_EXISTS),
    StudyExists: (grpc.StatusCode.ALREADY_EXISTS, reasons.ERROR_REASON_STUDY_EXISTS),
    IllegalState: (grpc.StatusCode.FAILED_PRECONDITION, reasons.ERROR_REASON_JOB_STATE),
    StaleEtag: (grpc.StatusCode.ABORTED, reasons.ERROR_REASON_ETAG_MISMATCH),
    ModelNotReady: (grpc.StatusCode.UNAVAILABLE, reasons.ERROR_REASON_MODEL_NOT_READY),
    # Not RESOURCE_EXHAUSTED, which clients do not try again.
    Busy: (grpc.StatusCode.UNAVAILABLE, reasons.ERROR_REASON_OVERLOADED),
    Overloaded: (grpc.StatusCode.RESOURCE_EXHAUSTED, reasons.ERROR_REASON_OVERLOADED),
    ShuttingDown: (grpc.StatusCode.UNAVAILABLE, reasons.ERROR_REASON_SHUTTING_DOWN),
    StorageFull: (grpc.StatusCode.RESOURCE_EXHAUSTED, reasons.ERROR_REASON_STORAGE_FULL),
    DatabaseUnavailable: (grpc.StatusCode.UNAVAILABLE, reasons.ERROR_REASON_DATABASE_UNAVAILABLE),
    DatasetExists: (grpc.StatusCode.ALREADY_EXISTS, reasons.ERROR_REASON_DATASET_EXISTS),
    DatasetInUse: (grpc.StatusCode.FAILED_PRECONDITION, reasons.ERROR_REASON_DATASET_IN_USE),
    UploadTakenOver: (grpc.StatusCode.ABORTED, reasons.ERROR_REASON_UPLOAD_TAKEN_OVER),
    QuotaExceeded: (grpc.StatusCode.RESOURCE_EXHAUSTED, reasons.ERROR_REASON_QUOTA_EXCEEDED),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, reasons.ERROR_REASON_UNAUTHENTICATED),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, reasons.ERROR_REASON_PERMISSION_DENIED),
}

_RETRY = (DatabaseUnavailable, ModelNotReady, Overloaded, ShuttingDown)
_RETRY_AFTER_S = 1.0
_SOONEST_S, _LATEST_S = 0.05, 5.0
"""Bounds of what a busy model asks its callers to wait."""

_MOST_VIOLATIONS = 10
"""Message and details travel in headers, of which a client takes 8 KiB: with more it sees a broken stream."""


def status_of(error: BaseException, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status that a client is answered with; nothing of an unexpected error's text is in it.

    The words of the details are in the message too: some clients drop the details.
    """
    if not isinstance(error, ServerError):
        message = f"internal error; the server's log has it under request id {request_id}"
        return _status(grpc.StatusCode.INTERNAL, message, _info(reasons.ERROR_REASON_INTERNAL, request_id))
    code, reason = TABLE[type(error)]
    status = _status(code, str(error), _info(reason, request_id))
    if isinstance(error, InvalidRequest):
        bad = error_details_pb2.BadRequest()
        for violation in error.violations[:_MOST_VIOLATIONS]:
            bad.field_violations.add(field=_short(violation.field, 80), description=_short(violation.description, 220))
        status.details.append(_packed(bad))
    elif (delay_s := retry_after_s(error)) is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(delay_s * 1000))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status


def retry_after_s(error: BaseException) -> float | None:
    """How long a caller should wait before another try; None where that would not help."""
    if isinstance(error, Busy):
        return min(max(error.retry_after_s, _SOONEST_S), _LATEST_S)
    return _RETRY_AFTER_S if isinstance(error, _RETRY) else None


def _status(code: grpc.StatusCode, message: str, info: error_details_pb2.ErrorInfo) -> status_pb2.Status:
    return status_pb2.Status(code=code.value[0], message=_short(message, 800), details=[_packed(info)])


def _short(text: str, size_bytes: int) -> str:
    encoded = text.encode()
    return text if len(encoded) <= size_bytes else encoded[: size_bytes - 4].decode(errors="ignore") + " ..."


def _info(reason: reasons.ErrorReason.ValueType, request_id: str) -> error_details_pb2.ErrorInfo:
    name = reasons.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    return error_details_pb2.ErrorInfo(domain=DOMAIN, reason=name, metadata={"request_id": request_id})


def _packed(detail: object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)  # type: ignore[arg-type]
    return packed
