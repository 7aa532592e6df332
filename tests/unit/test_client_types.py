"""What the client exports, and its dataclasses against the protos that they mirror."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, get_type_hints

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import bll_client
from bll_client import _study_types, _types
from bll_client._convert import read
from bll_client._errors import CallError, call_error
from bll_client.cli.exits import ExitCode, exit_code
from bll_proto.v1 import datasets_pb2, inference_pb2, models_pb2, studies_pb2, training_pb2

MESSAGES: dict[str, Any] = {
    message.name: message
    for module in (training_pb2, models_pb2, datasets_pb2, studies_pb2)
    for message in module.DESCRIPTOR.message_types_by_name.values()
} | {
    "Prediction": inference_pb2.PredictResponse.DESCRIPTOR,
    "LogChunk": training_pb2.TailLogsResponse.DESCRIPTOR,
    "JobMetrics": training_pb2.GetJobMetricsResponse.DESCRIPTOR,
}
DATACLASSES = [kind for kind in (vars(_types) | vars(_study_types)).values() if dataclasses.is_dataclass(kind)]


def test_everything_public_is_exported_and_nothing_else() -> None:
    public = {
        name
        for name, value in vars(bll_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert set(bll_client.__all__) == public
    assert len(bll_client.__all__) == len(public)  # their order is the linter's


@pytest.mark.parametrize("kind", [k for k in DATACLASSES if k is not bll_client.JobFailure], ids=lambda k: k.__name__)
def test_a_dataclass_has_the_fields_of_its_message(kind: type[Any]) -> None:
    message = MESSAGES[kind.__name__]
    members = {field.name for oneof in message.oneofs for field in oneof.fields if field.message_type}
    wanted = {field.name for field in message.fields if field.name not in members}
    wanted |= {oneof.name for oneof in message.oneofs if not oneof.name.startswith("_")}
    hints = get_type_hints(kind)
    found = {f"{name}_s" if hints[name] is timedelta else name for name in hints}
    assert found == wanted


@pytest.mark.parametrize(
    ("kind", "enum", "prefix"),
    [
        (bll_client.JobState, training_pb2.JobState.DESCRIPTOR, "JOB_STATE_"),
        (bll_client.BlockState, training_pb2.BlockState.DESCRIPTOR, "BLOCK_STATE_"),
        (bll_client.AlarmSignature, training_pb2.AlarmSignature.DESCRIPTOR, "ALARM_SIGNATURE_"),
        (bll_client.DatasetState, datasets_pb2.DatasetState.DESCRIPTOR, "DATASET_STATE_"),
        (bll_client.DatasetFormat, datasets_pb2.DatasetFormat.DESCRIPTOR, "DATASET_FORMAT_"),
        (bll_client.StudyState, studies_pb2.StudyState.DESCRIPTOR, "STUDY_STATE_"),
        (bll_client.StudyMetric, studies_pb2.StudyMetric.DESCRIPTOR, "STUDY_METRIC_"),
        (bll_client.ParameterScale, studies_pb2.ParameterScale.DESCRIPTOR, "PARAMETER_SCALE_"),
        (bll_client.Head, inference_pb2.Head.DESCRIPTOR, "HEAD_"),
    ],
)
def test_an_enum_has_the_values_of_its_proto(kind: type[StrEnum], enum: Any, prefix: str) -> None:
    found = {f"{prefix}{member.name}" for member in kind} | {f"{prefix}UNSPECIFIED"}
    assert found == {value.name for value in enum.values}


def test_an_empty_message_reads_as_absence() -> None:
    job = read(bll_client.Job, training_pb2.Job())
    assert job.state is bll_client.JobState.UNSPECIFIED
    assert {job.plan, job.error, job.progress, job.validation, job.test, job.start_time} == {None}
    assert job.spec == {}


def test_a_state_of_a_newer_server_is_unspecified() -> None:
    job = training_pb2.Job()
    job.MergeFromString(bytes([5 << 3, 99]))
    assert read(bll_client.Job, job).state is bll_client.JobState.UNSPECIFIED


def test_instants_are_utc_and_durations_are_timedeltas() -> None:
    progress = training_pb2.JobProgress(remaining=Duration(seconds=2, nanos=500_000_000))
    job = read(bll_client.Job, training_pb2.Job(progress=progress, start_time=Timestamp(seconds=1)))
    assert job.progress is not None
    assert job.progress.remaining == timedelta(seconds=2.5)
    assert job.start_time == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)


class Refusal(grpc.RpcError):
    """A failed call with the given status and details."""

    def __init__(self, status: grpc.StatusCode, details: bytes | None = None) -> None:
        self._status = status
        self._metadata = (("grpc-status-details-bin", details),) if details is not None else ()

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return "why"

    def trailing_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize("status", [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK])
def test_every_status_is_a_call_error_with_an_exit_code(status: grpc.StatusCode) -> None:
    error = call_error(Refusal(status))
    assert type(error) is CallError.kinds.get(status, CallError)
    assert error.status is status
    assert str(error) == f"{status.name}: why"
    assert exit_code(error) is {
        grpc.StatusCode.INVALID_ARGUMENT: ExitCode.USAGE,
        grpc.StatusCode.NOT_FOUND: ExitCode.NOT_FOUND,
        grpc.StatusCode.UNAVAILABLE: ExitCode.UNREACHABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED: ExitCode.UNREACHABLE,
    }.get(status, ExitCode.REFUSED)


@pytest.mark.parametrize("details", [b"\xff\xff", b"", b"\x08\x05\x12\x05other"])
def test_mangled_details_leave_status_and_message(details: bytes) -> None:
    error = call_error(Refusal(grpc.StatusCode.NOT_FOUND, details))
    assert isinstance(error, bll_client.NotFound)
    assert error.message == "why"
    assert error.violations == ()


def test_the_tree_in_the_docstring_has_every_error() -> None:
    def names(kind: type[BaseException]) -> set[str]:
        return {kind.__name__}.union(*(names(child) for child in kind.__subclasses__()))

    tree = bll_client._errors.__doc__ or ""
    assert {word for word in tree.split() if word in names(bll_client.ClientError)} == names(bll_client.ClientError)


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("bll_client", {"typer", "rich", "yaml"}),
        ("bll_client.cli", {"typer", "rich", "yaml"}),
        ("bll_client.cli.app", set()),
    ],
)
def test_importing_the_client_loads_nothing_heavy(module: str, extra: set[str]) -> None:
    heavy = {"torch", "onnxruntime", "onnx", "bll", "bll_server", "sklearn", "sqlalchemy"} | extra
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}} & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
