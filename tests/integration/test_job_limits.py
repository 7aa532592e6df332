"""Jobs that give way, are cut short and expire, on a real server with real runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import code_pb2, error_details_pb2

from bll_proto.v1 import models_pb2, models_pb2_grpc, training_pb2, training_pb2_grpc
from bll_server.app import Server
from bll_server.settings import Settings

pytestmark = pytest.mark.timeout(300)

FIELDS: dict[str, Any] = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "latent": {"units": 4, "readout_units": 8},
    "executor": {"name": training_pb2.EXECUTOR_NAME_SEQUENTIAL, "checkpoint_steps": 20},
    "batch_size": 16,
}


class Jobs:
    """The jobs of one server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = training_pb2_grpc.TrainingServiceStub(channel)
        self.models = models_pb2_grpc.ModelServiceStub(channel)

    def create(self, job_id: str, epochs: int = 40, **fields: Any) -> training_pb2.Job:
        job = training_pb2.Job(spec=training_pb2.JobSpec(**FIELDS, epochs=epochs), **fields)
        return self.stub.CreateJob(training_pb2.CreateJobRequest(job=job, job_id=job_id), timeout=90).job

    def get(self, job_id: str) -> training_pb2.Job:
        return self.stub.GetJob(training_pb2.GetJobRequest(name=f"jobs/{job_id}"), timeout=10).job

    def has(self, job_id: str) -> bool:
        try:
            return bool(self.get(job_id).name)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return False

    def events(self, job_id: str, after: int = 0) -> Iterator[training_pb2.JobEvent]:
        request = training_pb2.WatchJobRequest(name=f"jobs/{job_id}", after_event=after)
        return (reply.event for reply in self.stub.WatchJob(request, timeout=200) if reply.HasField("event"))

    def until_saved(self, job_id: str) -> None:
        next(event for event in self.events(job_id) if event.HasField("checkpoint_saved"))

    def until(self, job_id: str, state: training_pb2.JobState.ValueType, after: int = 0) -> training_pb2.JobEvent:
        return next(event for event in self.events(job_id, after) if event.state_change.state == state)

    def end_of(self, job_id: str) -> training_pb2.Job:
        assert [event.number for event in self.events(job_id)] == list(range(1, self.get(job_id).last_event + 1))
        return self.get(job_id)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def jobs(data_dir: Path) -> Iterator[Jobs]:
    """With room for one job, and no patience with those that are to stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bll_server.jobs.expiry._LOOK_S", 0.1)
        server = Server(
            Settings(port=0, metrics_port=0, data_dir=data_dir, max_jobs=2, job_threads=1, pause_grace_s=0, drain_s=60)
        )
        try:
            with grpc.insecure_channel(server.address) as channel:
                yield Jobs(channel)
        finally:
            server.stop()


@pytest.fixture(scope="module")
def undisturbed(jobs: Jobs) -> training_pb2.Job:
    """What the same spec comes to when nothing happens to it."""
    jobs.create("undisturbed")
    return jobs.end_of("undisturbed")


def test_a_job_that_gives_way_goes_on_by_itself_and_ends_as_an_undisturbed_one(
    jobs: Jobs, undisturbed: training_pb2.Job
) -> None:
    jobs.create("low", preemptible=True)
    jobs.until_saved("low")
    high = jobs.create("high", priority=1)
    assert high.queue_position == 1
    back = jobs.until("low", training_pb2.JOB_STATE_QUEUED, after=1)
    assert back.state_change.reason.startswith("gave way to jobs/high, which has a higher priority; goes on from step ")
    assert jobs.end_of("high").test == undisturbed.test
    low = jobs.end_of("low")
    assert low.state == training_pb2.JOB_STATE_SUCCEEDED, low
    assert (low.test, low.validation) == (undisturbed.test, undisturbed.validation)
    resumed_at = int(back.state_change.reason.rpartition(" ")[2])
    after = [event for event in jobs.events("low", back.number) if event.HasField("block_progress")]
    assert min(event.block_progress.step for event in after) > resumed_at > 0


def test_a_job_whose_time_is_over_fails_by_its_deadline_and_a_retry_ends_as_an_undisturbed_one(
    jobs: Jobs, undisturbed: training_pb2.Job
) -> None:
    jobs.create("short", max_run_duration=Duration(seconds=3600))
    jobs.until_saved("short")
    update = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name="jobs/short", max_run_duration=Duration(seconds=1)),
        update_mask=FieldMask(paths=["max_run_duration"]),
    )
    jobs.stub.UpdateJob(update, timeout=10)
    failed = jobs.end_of("short")
    assert failed.state == training_pb2.JOB_STATE_FAILED
    assert failed.state_reason.startswith("DEADLINE: has run for 1 s, its max_run_duration; with a longer one, a retry")
    assert failed.run_duration.ToTimedelta() > timedelta(seconds=1)
    info = error_details_pb2.ErrorInfo()
    assert failed.error.details[0].Unpack(info)
    assert (failed.error.code, info.reason) == (code_pb2.DEADLINE_EXCEEDED, "DEADLINE")
    with pytest.raises(grpc.RpcError) as caught:
        jobs.stub.RetryJob(training_pb2.RetryJobRequest(name="jobs/short"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    update.job.ClearField("max_run_duration")
    assert not jobs.stub.UpdateJob(update, timeout=10).job.HasField("max_run_duration")
    jobs.stub.RetryJob(training_pb2.RetryJobRequest(name="jobs/short"), timeout=10)
    job = jobs.end_of("short")
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    assert (job.test, job.validation) == (undisturbed.test, undisturbed.validation)
    assert job.run_duration.ToTimedelta() > failed.run_duration.ToTimedelta()


def test_a_pause_that_is_cut_short_loses_no_bit_of_the_result(jobs: Jobs, undisturbed: training_pb2.Job) -> None:
    jobs.create("cut")
    jobs.until_saved("cut")
    jobs.stub.PauseJob(training_pb2.PauseJobRequest(name="jobs/cut"), timeout=10)
    paused = jobs.until("cut", training_pb2.JOB_STATE_PAUSED)
    reason = "paused by request, and killed since it had not stopped in time; goes on from step "
    assert paused.state_change.reason.startswith(reason)
    jobs.stub.ResumeJob(training_pb2.ResumeJobRequest(name="jobs/cut"), timeout=10)
    job = jobs.end_of("cut")
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    assert (job.test, job.validation) == (undisturbed.test, undisturbed.validation)


def test_a_finished_job_is_deleted_by_the_server_and_its_model_stays(jobs: Jobs, data_dir: Path) -> None:
    jobs.create("brief", epochs=1)
    ended = jobs.end_of("brief")
    assert not ended.HasField("expire_time")
    update = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name="jobs/brief", ttl_after_finish=Duration(seconds=1)),
        update_mask=FieldMask(paths=["ttl_after_finish"]),
    )
    job = jobs.stub.UpdateJob(update, timeout=10).job
    assert job.expire_time.ToDatetime() - job.end_time.ToDatetime() == timedelta(seconds=1)
    while jobs.has("brief"):
        pass  # as long as the test may take
    model = jobs.models.GetModel(models_pb2.GetModelRequest(name="models/brief"), timeout=10).model
    assert len(model.versions) == 1
    assert not (data_dir / "jobs" / "brief").exists()
    lines = [json.loads(line) for line in (data_dir / "audit.jsonl").read_text().splitlines()]
    assert ("server", "expire", "jobs/brief") in {(e["who"], e["what"], e["resource"]) for e in lines}
