"""TrainingService through a real server with its real planner; jobs run a small program that waits, but for one."""

import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import CannotStart, Server
from bll_server.settings import Settings

WAIT = (
    "import json, sys; print(json.dumps({'event': 'Started'}), flush=True);"
    "[sys.exit() for line in sys.stdin if line == 'stop\\n']"
)
UUID = "7d3f3c1e-4f43-4b57-9d34-0b1d8a7d2f10"

Stub = training_pb2_grpc.TrainingServiceStub


def settings(data_dir: Path, **more: Any) -> Settings:
    return Settings(port=0, metrics_port=0, data_dir=data_dir, drain_s=5, cancel_grace_s=5, **more)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    (folder / "datasets").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    server = Server(settings(data_dir, max_message_mb=1, max_watchers=2), [sys.executable, "-c", WAIT])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Stub]:
    with grpc.insecure_channel(server.address) as channel:
        yield Stub(channel)


def small(**more: Any) -> training_pb2.JobSpec:
    """A spec that is planned in no time."""
    fields: dict[str, Any] = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [8, 8]},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "executor": {"name": training_pb2.EXECUTOR_NAME_SEQUENTIAL},
        "epochs": 1,
    }
    return training_pb2.JobSpec(**(fields | more))


def create(stub: Stub, spec: training_pb2.JobSpec | None = None, **more: Any) -> training_pb2.Job:
    job = training_pb2.Job(spec=spec or small())
    return stub.CreateJob(training_pb2.CreateJobRequest(job=job, **more), timeout=90).job


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, dict[str, str], str]:
    """Status, broken rules by field, and reason of a call that is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status is not None, error
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(bad)
        detail.Unpack(info)
    for violation in bad.field_violations:
        assert violation.field in status.message
    return error.code(), {v.field: v.description for v in bad.field_violations}, info.reason


def test_a_validated_spec_shows_its_defaults_and_its_plan_and_stores_nothing(stub: Stub) -> None:
    job = create(stub, validate_only=True, job_id="not-stored")
    assert [list(block.layers) for block in job.plan.blocks] == [["dense 64->8"], ["dense 8->8"]]
    assert list(job.resolved_spec.blocks.cuts) == [1]
    assert job.resolved_spec.batch_size == 128
    assert len(job.plan.dataset_digest) == 64
    code, _, reason = refusal(lambda: stub.GetJob(training_pb2.GetJobRequest(name="jobs/not-stored"), timeout=10))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def test_a_job_is_watched_cancelled_and_listed(stub: Stub) -> None:
    job = create(stub, job_id="watched", request_id=UUID)
    assert (job.name, job.state, job.resolved_spec.model_id) == (
        "jobs/watched",
        training_pb2.JOB_STATE_QUEUED,
        "watched",
    )
    events = stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/watched"), timeout=60)
    running = next(e.event for e in events if e.event.state_change.state == training_pb2.JOB_STATE_RUNNING)
    stub.CancelJob(training_pb2.CancelJobRequest(name="jobs/watched"), timeout=10)
    rest = [e.event for e in events]
    assert rest[-1].state_change.state == training_pb2.JOB_STATE_CANCELLED
    assert [e.number for e in rest] == list(range(running.number + 1, running.number + 1 + len(rest)))
    again = stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/watched", after_event=running.number), timeout=10)
    assert [e.event for e in again] == rest
    (first, *_) = stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10).jobs
    assert (first.name, first.state) == ("jobs/watched", training_pb2.JOB_STATE_CANCELLED)
    assert not first.HasField("plan")
    # The same request finds the job that it made; with another body it is refused.
    assert create(stub, job_id="watched", request_id=UUID).name == "jobs/watched"
    code, _, reason = refusal(lambda: create(stub, small(epochs=2), job_id="watched", request_id=UUID))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    code, _, reason = refusal(lambda: create(stub, job_id="watched"))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "JOB_EXISTS")


def test_a_job_carries_what_its_caller_writes_on_it_until_it_is_deleted(stub: Stub) -> None:
    job = training_pb2.Job(spec=small(), labels={"team": "x"}, display_name="Night run", priority=3)
    created = stub.CreateJob(training_pb2.CreateJobRequest(job=job, job_id="labelled"), timeout=90).job
    assert (dict(created.labels), created.display_name, created.priority) == ({"team": "x"}, "Night run", 3)
    stub.PauseJob(training_pb2.PauseJobRequest(name="jobs/labelled"), timeout=10)
    watch = training_pb2.WatchJobRequest(name="jobs/labelled")
    next(e for e in stub.WatchJob(watch, timeout=60) if e.event.state_change.state == training_pb2.JOB_STATE_PAUSED)
    etag = stub.GetJob(training_pb2.GetJobRequest(name="jobs/labelled"), timeout=10).job.etag
    change = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name="jobs/labelled", labels={"stage": "late"}, etag=etag),
        update_mask=FieldMask(paths=["labels", "priority"]),
    )
    updated = stub.UpdateJob(change, timeout=10).job
    assert (dict(updated.labels), updated.display_name, updated.priority) == ({"stage": "late"}, "Night run", 0)
    code, _, reason = refusal(lambda: stub.UpdateJob(change, timeout=10))
    assert (code, reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    refused = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name="jobs/labelled"), update_mask=FieldMask(paths=["state"])
    )
    names = "labels, priority, preemptible, max_run_duration, ttl_after_finish"
    wanted = {"update_mask": f"must name some of display_name, {names}, got state"}
    assert refusal(lambda: stub.UpdateJob(refused, timeout=10))[1] == wanted
    delete = training_pb2.DeleteJobRequest(name="jobs/labelled", etag=updated.etag)
    stub.DeleteJob(delete, timeout=10)
    code, _, _ = refusal(lambda: stub.DeleteJob(delete, timeout=10))
    assert code is grpc.StatusCode.NOT_FOUND


def test_durations_are_kept_replaced_and_taken_away(stub: Stub) -> None:
    hour, day = Duration(seconds=3600), Duration(seconds=86400)
    job = training_pb2.Job(spec=small(), preemptible=True, max_run_duration=hour, ttl_after_finish=day)
    created = stub.CreateJob(training_pb2.CreateJobRequest(job=job, job_id="timed"), timeout=90).job
    assert (created.preemptible, created.max_run_duration, created.ttl_after_finish) == (True, hour, day)
    assert not created.HasField("expire_time")
    paths = ["preemptible", "max_run_duration", "ttl_after_finish"]
    change = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name="jobs/timed", ttl_after_finish=hour), update_mask=FieldMask(paths=paths)
    )
    changed = stub.UpdateJob(change, timeout=10).job
    assert (changed.preemptible, changed.HasField("max_run_duration"), changed.ttl_after_finish) == (False, False, hour)
    stub.CancelJob(training_pb2.CancelJobRequest(name="jobs/timed"), timeout=10)


@pytest.mark.parametrize(
    "duration",
    [Duration(nanos=1), Duration(seconds=-5), Duration(seconds=2**63 - 1), Duration(seconds=315_360_001)],
    ids=str,
)
def test_a_duration_out_of_range_is_refused_with_its_value(stub: Stub, duration: Duration) -> None:
    for field in ("max_run_duration", "ttl_after_finish"):
        fields: dict[str, Any] = {"spec": small(), field: duration}
        job = training_pb2.Job(**fields)
        code, broken, _ = refusal(lambda: stub.CreateJob(training_pb2.CreateJobRequest(job=job), timeout=90))  # noqa: B023
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"got {duration.seconds + duration.nanos / 1e9:g}" in broken[f"job.{field}"]


def test_a_job_that_needs_more_threads_than_the_server_has_is_refused_with_the_numbers(tmp_path: Path) -> None:
    server = Server(settings(tmp_path, job_threads=2), [sys.executable, "-c", WAIT])
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = Stub(channel)
            processes = training_pb2.EXECUTOR_NAME_PROCESSES
            for validate_only in (True, False):
                wide = small(executor={"name": processes, "num_workers": 2, "threads_per_block": 2})
                code, broken, _ = refusal(lambda: create(stub, wide, validate_only=validate_only))  # noqa: B023
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                rule = "must be at most 1: a job may have 2 threads here, and each worker has 2, got 2"
                assert broken == {"job.spec.executor.num_workers": rule}
            open_number = create(stub, small(executor={"name": processes, "threads_per_block": 2}), job_id="fits")
            shared = "executor: 1 workers share the 2 blocks, since a job may have 2 threads here"
            assert shared in open_number.plan.warnings
            waiting = create(stub, job_id="waits")
            assert waiting.queue_position == 1
            assert waiting.state_reason == "waits for 1 of 2 threads (0 free) and a place (1 of 1 taken)"
            assert len(list(stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10).jobs)) == 2
    finally:
        server.stop()


BAD_SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "a number out of range": ("job.spec.epochs", {"epochs": 0}),
    "not a number": ("job.spec.network.dropout", {"network": {"dropout": float("nan")}}),
    "an unknown enum value": ("job.spec.latent.family", {"latent": {"family": 77}}),
    "an unknown data set": ("job.spec.data.name", {"data": {"name": "imagenet"}}),
    "an unknown architecture": ("job.spec.network.architecture", {"network": {"architecture": "transformer"}}),
    "more blocks than layers": ("job.spec.blocks.num_blocks", {"blocks": {"num_blocks": 3}}),
    "a cut beyond the last layer": ("job.spec.blocks.cuts", {"blocks": {"num_blocks": 2, "cuts": [2]}}),
    "a batch larger than the data": ("job.spec.batch_size", {"batch_size": 65_536}),
    "a file out of the folder": ("job.spec.data.path", {"data": {"name": "npz", "path": "../../etc/passwd"}}),
}


@pytest.mark.parametrize("kind", BAD_SPECS)
def test_a_bad_spec_is_refused_by_field_and_the_server_lives(stub: Stub, kind: str) -> None:
    field, more = BAD_SPECS[kind]
    code, violations, reason = refusal(lambda: create(stub, small(**more)))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert field in violations
    assert stub.ListJobs(training_pb2.ListJobsRequest(page_size=1), timeout=10) is not None


def test_damaged_and_missing_data_files_are_refused_by_field(stub: Stub, data_dir: Path) -> None:
    np.savez(data_dir / "datasets" / "whole.npz", x_train=np.zeros((50, 4), np.float32), y_train=np.zeros(50, int))
    whole = (data_dir / "datasets" / "whole.npz").read_bytes()
    (data_dir / "datasets" / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(data_dir / "datasets" / "empty.npz", "w"):
        pass
    for name in ("truncated.npz", "empty.npz", "missing.npz"):
        spec = small(data={"name": "npz", "path": name}, batch_size=4)
        code, violations, _ = refusal(lambda spec=spec: create(stub, spec))  # type: ignore[misc]
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert any(field.startswith("job.spec.data") for field in violations)


def test_a_network_beyond_this_machine_is_refused_and_the_planner_lives(stub: Stub) -> None:
    spec = small(network={"architecture": "mlp", "widths": [8192] * 256}, blocks={"num_blocks": 257 - 1})
    spec.latent.units = spec.latent.readout_units = 65_536
    code, violations, _ = refusal(lambda: create(stub, spec))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "parameters" in violations["job.spec.network"]
    assert create(stub, validate_only=True).plan.blocks


def test_a_batch_whose_activations_are_beyond_this_machine_is_refused(stub: Stub) -> None:
    spec = small(data={"name": "fashion-mnist"}, network={"architecture": "resnet18"}, batch_size=50_000)
    code, violations, _ = refusal(lambda: create(stub, spec))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "got 50000 rows, whose activations" in violations["job.spec.batch_size"]


def test_latents_whose_losses_are_beyond_this_machine_are_refused(stub: Stub) -> None:
    latent = {"units": 65_536, "readout": training_pb2.READOUT_NAME_LINEAR}
    code, violations, _ = refusal(
        lambda: create(stub, small(data={"name": "fashion-mnist"}, latent=latent, batch_size=50_000))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "got 50000 rows, whose activations and losses" in violations["job.spec.batch_size"]


BAD_REQUESTS: dict[str, Callable[[Stub], Any]] = {
    "job.spec": lambda stub: stub.CreateJob(training_pb2.CreateJobRequest(), timeout=10),
    "job_id": lambda stub: create(stub, job_id="Not An Id"),
    "request_id": lambda stub: create(stub, request_id="42"),
    "job.spec.model_id": lambda stub: create(stub, small(model_id="../up")),
    "name": lambda stub: stub.GetJob(training_pb2.GetJobRequest(name="models/a"), timeout=10),
    "job.labels": lambda stub: stub.CreateJob(
        training_pb2.CreateJobRequest(job=training_pb2.Job(spec=small(), labels={"A": "b"})), timeout=10
    ),
    "update_mask": lambda stub: stub.UpdateJob(
        training_pb2.UpdateJobRequest(job=training_pb2.Job(name="jobs/abc"), update_mask=FieldMask(paths=["state"])),
        timeout=10,
    ),
    "parent": lambda stub: stub.ListBlocks(training_pb2.ListBlocksRequest(parent="one"), timeout=10),
    "max_points": lambda stub: stub.GetJobMetrics(
        training_pb2.GetJobMetricsRequest(name="jobs/abc", max_points=10_001), timeout=10
    ),
    "offset": lambda stub: list(
        stub.TailLogs(training_pb2.TailLogsRequest(name=create(stub).name, offset=10**9), timeout=60)
    ),
    "page_size": lambda stub: stub.ListJobs(training_pb2.ListJobsRequest(page_size=-1), timeout=10),
    "filter": lambda stub: stub.ListJobs(training_pb2.ListJobsRequest(filter="status=RUNNING"), timeout=10),
    "order_by": lambda stub: stub.ListJobs(training_pb2.ListJobsRequest(order_by="state"), timeout=10),
    "page_token": lambda stub: stub.ListJobs(training_pb2.ListJobsRequest(page_token="guess"), timeout=10),
    "after_event": lambda stub: list(
        stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/abc", after_event=-1), timeout=10)
    ),
}


@pytest.mark.parametrize("field", BAD_REQUESTS)
def test_a_bad_request_is_refused_by_field(stub: Stub, field: str) -> None:
    code, violations, _ = refusal(lambda: BAD_REQUESTS[field](stub))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violations) == {field}


def test_jobs_that_do_not_exist_are_not_found(stub: Stub) -> None:
    name = "jobs/none"
    for call in (
        lambda: stub.GetJob(training_pb2.GetJobRequest(name=name), timeout=10),
        lambda: stub.CancelJob(training_pb2.CancelJobRequest(name=name), timeout=10),
        lambda: list(stub.WatchJob(training_pb2.WatchJobRequest(name=name), timeout=10)),
    ):
        code, _, reason = refusal(call)
        assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


def test_a_message_beyond_the_limit_is_refused_and_the_connection_lives(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        create(stub, small(data={"name": "x" * 2**21}))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10) is not None


def test_one_watcher_too_many_is_refused(stub: Stub) -> None:
    create(stub, job_id="crowded")
    request = training_pb2.WatchJobRequest(name="jobs/crowded")
    watchers = [stub.WatchJob(request, timeout=60) for _ in range(2)]
    for watcher in watchers:
        next(watcher)
    code, _, reason = refusal(lambda: list(stub.WatchJob(request, timeout=10)))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    stub.CancelJob(training_pb2.CancelJobRequest(name="jobs/crowded"), timeout=10)
    for watcher in watchers:
        assert list(watcher)


def test_calls_and_jobs_are_in_the_metrics_and_the_health_page_is_well(server: Server, stub: Stub) -> None:
    stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10)
    page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    assert 'grpc_server_handled_total{grpc_code="OK",grpc_method="ListJobs"' in page
    assert 'bll_jobs{state="queued"}' in page
    assert urllib.request.urlopen(server.metrics_url.replace("/metrics", "/healthz"), timeout=10).status == 200
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server.metrics_url.replace("/metrics", "/else"), timeout=10)
    with caught.value:
        assert caught.value.code == 404


def test_a_second_server_on_the_data_or_the_port_is_refused_with_the_reason(
    server: Server, data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(CannotStart, match="in use by another server"):
        Server(settings(data_dir))
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(CannotStart, match="cannot be listened on"):
        Server(Settings(port=port, metrics_port=0, data_dir=tmp_path))


def test_a_draining_server_tells_so_and_puts_its_job_back(tmp_path: Path) -> None:
    server = Server(settings(tmp_path), [sys.executable, "-c", WAIT])
    with grpc.insecure_channel(server.address) as channel:
        stub = Stub(channel)
        create(stub, job_id="put-back")
        events = stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/put-back"), timeout=60)
        next(e for e in events if e.event.state_change.state == training_pb2.JOB_STATE_RUNNING)
        watch: Any = health_pb2_grpc.HealthStub(channel).Watch  # type: ignore[attr-defined]
        health = watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(health).status == health_pb2.HealthCheckResponse.SERVING
        server.stop()
        assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(events).event.state_change.state == training_pb2.JOB_STATE_QUEUED
        code, _, reason = refusal(lambda: next(events))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")


@pytest.mark.timeout(300)
def test_a_real_job_ends_with_a_published_model(tmp_path: Path) -> None:
    server = Server(settings(tmp_path))
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = Stub(channel)
            create(stub, small(model_id="digits"), job_id="real")
            kinds = [
                reply.event.WhichOneof("event")
                for reply in stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/real"), timeout=240)
                if reply.HasField("event")
            ]
            job = stub.GetJob(training_pb2.GetJobRequest(name="jobs/real"), timeout=10).job
            assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
            of_a_run = {"blocks_placed", "block_progress", "block_diagnostics", "evaluation", "checkpoint_saved"}
            assert of_a_run | {"state_change"} == set(kinds)
            assert job.model_version == "models/digits/versions/1"
            assert job.test.rows > 0
            assert job.progress.step == job.progress.total_steps == 10
            check: Any = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(health_pb2.HealthCheckRequest(service="bll.model/digits"), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    finally:
        server.stop()


def test_streams_that_a_caller_holds_open_keep_no_other_call_waiting(tmp_path: Path) -> None:
    server = Server(settings(tmp_path, threads=1), [sys.executable, "-c", WAIT])
    released = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        released.wait(60)

    try:
        with grpc.insecure_channel(server.address) as channel:
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            held = [reflection.ServerReflectionInfo(requests(), timeout=30) for _ in range(3)]
            for stream in held:
                assert next(stream).list_services_response.service
            assert not Stub(channel).ListJobs(training_pb2.ListJobsRequest(), timeout=10).jobs
            released.set()
    finally:
        released.set()
        server.stop()
