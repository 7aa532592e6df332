"""One suite for both clients, against a real server with canned answers."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2

import bll_client
from bll_client import BlockProgress, CheckpointSaved, Evaluation, JobState, StateChange
from bll_client._spec import parse_spec
from bll_proto import tensors
from bll_proto.v1 import inference_pb2, models_pb2, training_pb2

from .canned_server import LOG, SPEC, UNAVAILABLE, CannedServer, State, chunks, job, rich_status, run_events

Connect = Callable[..., Any]
SHORT = timedelta(seconds=0.5)


@pytest.fixture
def running(server: CannedServer) -> CannedServer:
    """The server with one job and its events."""
    server.jobs["jobs/one"] = job("jobs/one")
    server.events = run_events()
    return server


def test_a_job_is_created_from_a_mapping_with_a_fresh_request_id_each_time(client: Any, server: CannedServer) -> None:
    created = client.create_job(SPEC, job_id="first")
    client.create_job(SPEC, job_id="second")
    first, second = server.sent(training_pb2.CreateJobRequest)
    assert created.name == "jobs/first"
    assert created.state is JobState.QUEUED
    assert created.spec == SPEC
    assert created.create_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert created.plan.blocks[1].output_shape == (8,)
    assert created.progress is created.error is created.end_time is None
    assert uuid.UUID(first.request_id) != uuid.UUID(second.request_id)


def test_a_job_is_created_from_a_message_with_the_given_request_id(client: Any, server: CannedServer) -> None:
    request_id = str(uuid.uuid4())
    client.create_job(parse_spec(SPEC), request_id=request_id, validate_only=True)
    (request,) = server.sent(training_pb2.CreateJobRequest)
    assert request.request_id == request_id
    assert request.validate_only
    assert not server.jobs


def test_a_wrong_spec_is_refused_before_anything_is_sent(client: Any, server: CannedServer) -> None:
    with pytest.raises(bll_client.InvalidSpec, match=r"latent\.family: must be one of bernoulli, .*got 'poisson'"):
        client.create_job({"latent": {"family": "poisson"}})
    assert not server.requests


def test_creation_is_retried_with_the_same_request_id(client: Any, server: CannedServer) -> None:
    server.failures["CreateJob"] = [UNAVAILABLE, UNAVAILABLE]
    client.create_job(SPEC)
    ids = {request.request_id for request in server.sent(training_pb2.CreateJobRequest)}
    assert len(server.sent(training_pb2.CreateJobRequest)) == 3
    assert len(ids) == 1


def test_a_name_may_be_the_bare_id(client: Any, running: CannedServer) -> None:
    assert client.get_job("one") == client.get_job("jobs/one")
    assert client.get_model("fashion") == client.get_model("models/fashion")
    assert client.cancel_job("one").state is JobState.CANCELLED


def test_a_job_is_paused_resumed_retried_updated_and_deleted(client: Any, running: CannedServer) -> None:
    assert client.pause_job("one").state is JobState.PAUSED
    assert client.resume_job("one").state is JobState.QUEUED
    assert client.retry_job("one").state is JobState.QUEUED
    updated = client.update_job("one", labels={"team": "x"}, priority=0, etag="seen")
    assert (updated.labels, updated.priority) == ({"team": "x"}, 0)
    (update,) = running.sent(training_pb2.UpdateJobRequest)
    assert (set(update.update_mask.paths), update.job.etag) == ({"labels", "priority"}, "seen")
    timed = client.update_job(
        "one", max_run_duration=timedelta(hours=1), ttl_after_finish=timedelta(0), preemptible=True
    )
    assert (timed.max_run_duration, timed.preemptible) == (timedelta(hours=1), True)
    update = running.sent(training_pb2.UpdateJobRequest)[-1]
    assert set(update.update_mask.paths) == {"max_run_duration", "ttl_after_finish", "preemptible"}
    assert update.job.ttl_after_finish.ToTimedelta() == timedelta(0)
    assert client.delete_job("one", etag="seen") is None
    assert running.sent(training_pb2.DeleteJobRequest)[0].etag == "seen"
    with pytest.raises(bll_client.NotFound):
        client.get_job("one")


def test_a_stale_etag_is_an_error_of_its_own(client: Any, running: CannedServer) -> None:
    running.failures["UpdateJob"] = [rich_status(code_pb2.ABORTED, "jobs/one has changed")]
    with pytest.raises(bll_client.Aborted, match="has changed"):
        client.update_job("one", priority=1)


def test_blocks_and_metrics_are_read_with_their_reports(client: Any, running: CannedServer) -> None:
    first, second = client.list_blocks("one")
    assert (first.state, first.worker, first.progress.step) == (bll_client.BlockState.TRAINING, 0, 10)
    assert (second.state, second.worker, second.progress, second.checkpoint_time) == (
        bll_client.BlockState.IDLE,
        None,
        None,
        None,
    )
    metrics = client.get_job_metrics("one", max_points=2)
    assert [report.step for report in metrics.blocks[0].reports] == [5, 10]
    assert metrics.evaluations[0].mixture.accuracy == 0.9
    assert running.sent(training_pb2.GetJobMetricsRequest)[0].max_points == 2


def test_a_log_goes_on_where_its_connection_broke(client: Any, running: CannedServer) -> None:
    running.log_breaks = 1
    chunks_ = list(client.tail_logs("one", 2, follow=True))
    assert b"".join(chunk.data for chunk in chunks_) == LOG[2:]
    assert chunks_[-1].next_offset == len(LOG)
    assert [request.offset for request in running.sent(training_pb2.TailLogsRequest)] == [2, 6]


def test_lists_are_read_page_by_page(client: Any, server: CannedServer) -> None:
    server.jobs = {f"jobs/j{i}": job(f"jobs/j{i}") for i in range(5)}
    assert [j.name for j in client.list_jobs()] == list(server.jobs)
    assert len(server.sent(training_pb2.ListJobsRequest)) == 3
    models = client.list_models()
    assert next(models).name == "models/m0"
    assert len(server.sent(models_pb2.ListModelsRequest)) == 1
    assert len(list(models)) == 5


def test_a_model_is_described(client: Any) -> None:
    (version,) = client.get_model("fashion").versions
    assert version.name == "models/fashion/versions/2"
    assert version.inputs == (bll_client.TensorSpec("input", "float32", (-1, 1, 8, 8)),)
    assert version.resolved_spec == SPEC
    assert version.evaluations[1].exits[1].accuracy == 0.89


def test_a_prediction_has_an_array_for_every_quantity(client: Any, server: CannedServer) -> None:
    prediction = client.predict("fashion", np.zeros((2, 1, 8, 8), np.float32), head="last_exit")
    (request,) = server.sent(inference_pb2.PredictRequest)
    assert request.model == "models/fashion"
    assert request.head == inference_pb2.HEAD_LAST_EXIT
    assert tensors.to_array(request.input).shape == (2, 1, 8, 8)
    assert prediction.labels == ("boot", "boot")
    assert prediction.exit_probabilities.shape == (2, 3, 2)
    assert prediction.posterior_variance.shape == prediction.forward_variance.shape == (2, 3)
    assert prediction.output_variance.dtype == np.float32


@pytest.mark.parametrize(
    ("inputs", "head", "message"),
    [
        (np.zeros(2, np.complex64), "mixture", "dtype: must be one of .*, got complex64"),
        (np.array(["a"]), "mixture", "dtype: must be one of"),
        (np.zeros(2, np.float32), "best", "'best' is not a valid Head"),
    ],
)
def test_what_cannot_be_sent_is_refused(client: Any, inputs: Any, head: str, message: str) -> None:
    with pytest.raises(bll_client.InvalidInput, match=message):
        client.predict("fashion", inputs, head=head)


def test_an_error_carries_status_reason_violations_and_cause(client: Any, server: CannedServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="job.spec.epochs", description="must be a whole number between 1 and 100000, got 0"
    )
    server.failures["CreateJob"] = [
        rich_status(
            code_pb2.INVALID_ARGUMENT,
            "job.spec.epochs: must be ...",
            error_details_pb2.BadRequest(field_violations=[violation]),
            error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain="bll"),
            error_details_pb2.RetryInfo(retry_delay=Duration(seconds=3)),
        )
    ]
    with pytest.raises(bll_client.InvalidArgument) as caught:
        client.create_job({"epochs": 0})
    error = caught.value
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == "INVALID_ARGUMENT"
    assert error.violations == (bll_client.FieldViolation(violation.field, violation.description),)
    assert error.retry_delay == timedelta(seconds=3)
    assert isinstance(error.__cause__, grpc.RpcError)


def test_an_unknown_name_is_not_found(client: Any) -> None:
    with pytest.raises(bll_client.NotFound, match="no job 'jobs/nobody'"):
        client.get_job("nobody")
    with pytest.raises(bll_client.NotFound, match="no job 'jobs/nobody'"):
        list(client.watch_job("nobody"))


def test_a_status_without_a_class_of_its_own_is_a_call_error(client: Any, server: CannedServer) -> None:
    server.failures["GetJob"] = [rich_status(code_pb2.INTERNAL, "a fault")]
    with pytest.raises(bll_client.CallError) as caught:
        client.get_job("one")
    assert type(caught.value) is bll_client.CallError
    assert caught.value.status is grpc.StatusCode.INTERNAL


def test_a_missing_server_is_unavailable(connect: Connect, server: CannedServer) -> None:
    server.stop()
    with connect(server.target) as client, pytest.raises(bll_client.Unavailable):
        client.get_job("one")


def test_a_call_ends_at_its_deadline(connect: Connect, running: CannedServer) -> None:
    running.failures["GetJob"] = [UNAVAILABLE] * 4
    with (
        connect(running.target, timeout=timedelta(milliseconds=1)) as client,
        pytest.raises(bll_client.DeadlineExceeded),
    ):
        client.get_job("one")


def test_a_watcher_gets_every_kind_of_event_and_no_keep_alive(client: Any, running: CannedServer) -> None:
    events = list(client.watch_job("one"))
    assert [e.number for e in events] == list(range(1, 8))
    assert [type(e.event) for e in events] == [
        StateChange, StateChange, BlockProgress, BlockProgress, Evaluation, CheckpointSaved, StateChange,
    ]  # fmt: skip
    assert events[3].event.wait == timedelta(seconds=0.25)
    assert events[-1].event.state is JobState.SUCCEEDED


def test_an_event_of_an_unknown_kind_has_no_content(client: Any, running: CannedServer) -> None:
    running.events[0] = training_pb2.JobEvent(number=1)
    assert next(client.watch_job("one")).event is None


def test_a_watcher_begins_after_the_given_event(client: Any, running: CannedServer) -> None:
    assert [e.number for e in client.watch_job("one", 5)] == [6, 7]


def test_a_watcher_goes_on_after_each_break_without_loss_or_repetition(client: Any, running: CannedServer) -> None:
    running.failures["WatchJob"] = [UNAVAILABLE]
    running.drop_after = [2, 5]
    assert [e.number for e in client.watch_job("one")] == list(range(1, 8))
    asked = [request.after_event for request in running.sent(training_pb2.WatchJobRequest)]
    assert asked == [0, 0, 2, 5]


def test_a_watcher_survives_a_restart_of_the_server(client: Any, running: CannedServer) -> None:
    running.hang_after = 4
    events = client.watch_job("one")
    seen = [next(events).number for _ in range(4)]
    port = running.port
    running.stop()
    running.hang_after = None
    running.start(port)
    assert seen + [e.number for e in events] == list(range(1, 8))


def test_a_watcher_gives_up_on_a_server_that_stays_away(connect: Connect, running: CannedServer) -> None:
    running.hang_after = 4
    with connect(running.target, reconnect=SHORT) as client:
        events = client.watch_job("one")
        assert [next(events).number for _ in range(4)] == [1, 2, 3, 4]
        running.stop()
        with pytest.raises(bll_client.Unavailable):
            next(events)


def test_leaving_a_watch_ends_its_stream(client: Any, running: CannedServer) -> None:
    running.hang_after = 1
    events = client.watch_job("one")
    next(events)
    assert running.watched.wait(10)
    events.close()
    assert running.left.wait(10)


def test_waiting_returns_the_final_job(client: Any, running: CannedServer) -> None:
    running.events = run_events(State.JOB_STATE_FAILED)
    running.jobs["jobs/one"].error.CopyFrom(rich_status(code_pb2.INTERNAL, "block 1: died"))
    finished = client.wait_for_job("one")
    assert finished.state is JobState.FAILED
    assert finished.state.is_final
    assert finished.error == bll_client.JobFailure("INTERNAL", "block 1: died")


def test_waiting_ends_at_its_timeout(client: Any, running: CannedServer) -> None:
    running.hang_after = 2
    with pytest.raises(bll_client.DeadlineExceeded, match=r"jobs/one was not over within 0:00:00\.5"):
        client.wait_for_job("one", timeout=SHORT)


def test_a_download_appears_whole(client: Any, server: CannedServer, tmp_path: Path) -> None:
    server.download = [*chunks("model.onnx", b"0123456789"), *chunks("manifest.json", b"{}"), *chunks("empty", b"")]
    target = tmp_path / "models" / "fashion"
    files = client.download_model("fashion", target)
    assert files == (target / "model.onnx", target / "manifest.json", target / "empty")
    assert [file.read_bytes() for file in files] == [b"0123456789", b"{}", b""]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "a\\b", "c:evil", "..", ".", "", "nul\0"])
def test_a_file_name_that_leads_elsewhere_is_refused(
    client: Any, server: CannedServer, tmp_path: Path, name: str
) -> None:
    server.download = chunks(name, b"evil")
    with pytest.raises(bll_client.DamagedDownload, match="a file's name must be plain"):
        client.download_model("fashion", tmp_path / "inner" / "target")
    assert list((tmp_path / "inner").iterdir()) == []


def damaged(case: str) -> list[models_pb2.DownloadModelResponse]:
    messages = [*chunks("model.onnx", b"0123456789"), *chunks("manifest.json", b"{}")]
    match case:
        case "digest":
            messages[1].chunk = b"XXXX"
        case "short":
            del messages[2]
        case "long":
            messages.insert(1, messages[1])
        case "twice":
            messages += chunks("model.onnx", b"0123456789")
        case "nothing":
            messages = []
    return messages


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("digest", "model.onnx: SHA-256 must be 84d8.*, got"),
        ("short", "model.onnx: must have 10 bytes, got 8"),
        ("long", "model.onnx: must have 10 bytes, got more"),
        ("twice", "model.onnx: came twice"),
        ("nothing", "the server sent no file"),
    ],
)
def test_a_damaged_download_leaves_no_trace(
    client: Any, server: CannedServer, tmp_path: Path, case: str, message: str
) -> None:
    server.download = damaged(case)
    with pytest.raises(bll_client.DamagedDownload, match=message):
        client.download_model("fashion", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_download_leaves_no_trace(client: Any, server: CannedServer, tmp_path: Path) -> None:
    server.failures["DownloadModel"] = [rich_status(code_pb2.NOT_FOUND, "no model")]
    with pytest.raises(bll_client.NotFound):
        client.download_model("nobody", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


def test_a_download_does_not_touch_a_directory_that_holds_something(
    client: Any, server: CannedServer, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="must not exist or be empty"):
        client.download_model("fashion", tmp_path)
    assert not server.requests


def test_a_download_into_an_empty_directory_takes_its_place(client: Any, server: CannedServer, tmp_path: Path) -> None:
    server.download = chunks("model.onnx", b"0123456789")
    (tmp_path / "empty").mkdir()
    client.download_model("fashion", tmp_path / "empty")
    assert (tmp_path / "empty" / "model.onnx").read_bytes() == b"0123456789"


def test_one_blocking_client_serves_many_threads(running: CannedServer) -> None:
    names: list[str] = []
    with bll_client.Client(running.target) as client:
        threads = [threading.Thread(target=lambda: names.append(client.get_job("one").name)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert names == ["jobs/one"] * 8
