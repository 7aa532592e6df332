"""The messages of `datasets.proto` from what the server knows of data sets, and back."""

from __future__ import annotations

import re

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from bll.choices import BUILT_IN_DATA
from bll.data.stored import ID, PREFIX
from bll.errors import Violation
from bll_proto.v1 import datasets_pb2, errors_pb2
from bll_server.datasets.records import Dataset, Failure, Format, Header, Report, State
from bll_server.errors import DOMAIN, InvalidRequest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FORMATS = {datasets_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{kind.name}"): kind for kind in Format}
_LONGEST_MESSAGE = 2000


def header_from_message(message: datasets_pb2.UploadHeader) -> Header:
    """Raises InvalidRequest for every field that breaks its rule."""
    violations = []
    if not ID.fullmatch(message.dataset_id) or message.dataset_id in BUILT_IN_DATA:
        rule = f"must match {ID.pattern} and be none of {', '.join(BUILT_IN_DATA)}, got {message.dataset_id!r:.200}"
        violations.append(Violation("header.dataset_id", rule))
    if message.format not in _FORMATS:
        known = ", ".join(kind.name for kind in Format)
        violations.append(Violation("header.format", f"must be one of {known}, got number {message.format}"))
    if message.total_bytes < 1:
        violations.append(Violation("header.total_bytes", f"must be positive, got {message.total_bytes}"))
    if not _SHA256.fullmatch(message.sha256):
        rule = f"must be a SHA-256 in hex, 64 lower-case digits, got {message.sha256!r:.200}"
        violations.append(Violation("header.sha256", rule))
    if violations:
        raise InvalidRequest(*violations)
    return Header(message.dataset_id, _FORMATS[message.format], message.total_bytes, message.sha256)


def format_number(kind: Format) -> datasets_pb2.DatasetFormat.ValueType:
    """The value of the proto's enum."""
    return datasets_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{kind.name}")


def built_in_message(name: str) -> datasets_pb2.Dataset:
    """A data set that comes with the server."""
    state = datasets_pb2.DATASET_STATE_READY
    return datasets_pb2.Dataset(name=f"{PREFIX}{name}", data_name=name, built_in=True, state=state)


def dataset_message(dataset: Dataset, *, classes: bool = True) -> datasets_pb2.Dataset:
    """An uploaded data set, with or without the classes of its report."""
    name = f"{PREFIX}{dataset.dataset_id}"
    message = datasets_pb2.Dataset(
        name=name,
        data_name=name,
        state=_state_number(dataset.state),
        format=format_number(dataset.header.format),
        upload_bytes=dataset.header.total_bytes,
        sha256=dataset.header.sha256,
        owner=dataset.owner,
    )
    message.create_time.FromDatetime(dataset.create_time.replace(tzinfo=None))  # it takes a naive time for UTC
    if dataset.report:
        message.report.CopyFrom(_report_message(dataset.report, classes))
    if dataset.failure:
        message.error.CopyFrom(_failure_status(dataset.failure))
    return message


def _state_number(state: State) -> datasets_pb2.DatasetState.ValueType:
    return datasets_pb2.DatasetState.Value(f"DATASET_STATE_{state.name}")


def _report_message(report: Report, classes: bool) -> datasets_pb2.DatasetReport:
    return datasets_pb2.DatasetReport(
        train_rows=report.train_rows,
        test_rows=report.test_rows,
        input_shape=report.input_shape,
        target_shape=report.target_shape,
        dtype=report.dtype,
        classes=(datasets_pb2.DatasetClass(**vars(count)) for count in report.classes if classes),
        dataset_digest=report.dataset_digest,
        stored_bytes=report.stored_bytes,
    )


def _failure_status(failure: Failure) -> status_pb2.Status:
    """The failure as a call would have been answered."""
    description = failure.description[:_LONGEST_MESSAGE]
    if failure.no_room:
        code, reason = code_pb2.RESOURCE_EXHAUSTED, errors_pb2.ERROR_REASON_STORAGE_FULL
    else:
        code, reason = code_pb2.INVALID_ARGUMENT, errors_pb2.ERROR_REASON_INVALID_ARGUMENT
    name = errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    status = status_pb2.Status(code=code, message=description)
    _add(status, error_details_pb2.ErrorInfo(domain=DOMAIN, reason=name))
    if not failure.no_room:
        violation = error_details_pb2.BadRequest.FieldViolation(field="content", description=description)
        _add(status, error_details_pb2.BadRequest(field_violations=[violation]))
    return status


def _add(status: status_pb2.Status, detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
