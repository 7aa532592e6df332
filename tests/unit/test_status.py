import inspect

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from bll.errors import Violation
from bll_proto.v1 import errors_pb2
from bll_server import errors
from bll_server.errors import InvalidRequest, NotFound, Overloaded, ServerError
from bll_server.status import TABLE, status_of


def detail(status: status_pb2.Status, kind: type) -> object:
    found = kind()
    assert any(packed.Unpack(found) for packed in status.details), kind
    return found


def test_every_error_has_a_status_and_every_reason_an_error() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServerError)}
    assert set(TABLE) == kinds - {ServerError}
    without_error = {"UNSPECIFIED", "INTERNAL", "DEADLINE", "TRAINING_FAILED"}  # the last two are of jobs, not of calls
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    assert {errors_pb2.ErrorReason.Name(r).removeprefix("ERROR_REASON_") for _, r in TABLE.values()} == (
        reasons - without_error
    )


def test_broken_rules_are_in_the_details_and_in_the_message() -> None:
    error = InvalidRequest(Violation("job.spec.epochs", "must be positive, got 0"), Violation("page_size", "too big"))
    status = status_of(error, "r1")
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    bad = detail(status, error_details_pb2.BadRequest)
    assert [v.field for v in bad.field_violations] == ["job.spec.epochs", "page_size"]  # type: ignore[attr-defined]
    assert "job.spec.epochs: must be positive, got 0" in status.message


def test_the_reason_is_machine_readable() -> None:
    info = detail(status_of(NotFound("no job"), "r1"), error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason, info.metadata["request_id"]) == ("bll", "NOT_FOUND", "r1")  # type: ignore[attr-defined]


def test_a_limit_says_when_to_try_again() -> None:
    retry = detail(status_of(Overloaded("busy"), "r1"), error_details_pb2.RetryInfo)
    assert retry.retry_delay.seconds > 0  # type: ignore[attr-defined]


def test_an_unexpected_error_tells_nothing_of_its_inside() -> None:
    status = status_of(KeyError("secret"), "r1")
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    assert "r1" in status.message


@pytest.mark.parametrize("text", ["x", "\N{SNOWMAN}"])
def test_a_status_fits_into_the_headers_that_a_client_takes(text: str) -> None:
    status = status_of(InvalidRequest(*(Violation("f" * 500, text * 5000) for _ in range(300))), "r1")
    percent_encoded = sum(1 if 32 <= byte < 127 else 3 for byte in status.message.encode())
    assert percent_encoded + 4 * len(status.SerializeToString()) / 3 < 8000
