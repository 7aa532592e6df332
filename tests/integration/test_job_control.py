"""Jobs that are paused, resumed and retried on a real server, with real runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import RUNNER, Server
from bll_server.settings import Settings

Stub = training_pb2_grpc.TrainingServiceStub

FIELDS: dict[str, Any] = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "latent": {"units": 4, "readout_units": 8},
    "executor": {"name": training_pb2.EXECUTOR_NAME_SEQUENTIAL, "checkpoint_steps": 20},
    "batch_size": 16,
    "epochs": 3,
}


@contextmanager
def serving(data_dir: Path) -> Iterator[Stub]:
    server = Server(Settings(port=0, metrics_port=0, data_dir=data_dir, drain_s=60), RUNNER)
    try:
        with grpc.insecure_channel(server.address) as channel:
            yield Stub(channel)
    finally:
        server.stop()


def create(stub: Stub, job_id: str) -> None:
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=training_pb2.JobSpec(**FIELDS)), job_id=job_id)
    stub.CreateJob(request, timeout=90)


def watch(stub: Stub, job_id: str, after: int = 0) -> Iterator[training_pb2.JobEvent]:
    request = training_pb2.WatchJobRequest(name=f"jobs/{job_id}", after_event=after)
    return (reply.event for reply in stub.WatchJob(request, timeout=120) if reply.HasField("event"))


def get(stub: Stub, job_id: str) -> training_pb2.Job:
    return stub.GetJob(training_pb2.GetJobRequest(name=f"jobs/{job_id}"), timeout=10).job


@pytest.mark.timeout(300)
def test_a_job_paused_over_a_restart_and_resumed_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    with serving(tmp_path) as stub:
        create(stub, "paused")
        events = watch(stub, "paused")
        next(event for event in events if event.HasField("checkpoint_saved"))
        stub.PauseJob(training_pb2.PauseJobRequest(name="jobs/paused"), timeout=10)
        next(e for e in events if e.state_change.state == training_pb2.JOB_STATE_PAUSED)
        create(stub, "undisturbed")
        assert list(watch(stub, "undisturbed"))  # the slot is free
        expected = get(stub, "undisturbed")
    with serving(tmp_path) as stub:
        paused = get(stub, "paused")
        assert paused.state == training_pb2.JOB_STATE_PAUSED
        assert paused.progress.step < paused.progress.total_steps
        stub.ResumeJob(training_pb2.ResumeJobRequest(name="jobs/paused"), timeout=10)
        told = list(watch(stub, "paused"))
        job = get(stub, "paused")
        metrics = training_pb2.GetJobMetricsRequest(name="jobs/paused", max_points=10_000)
        series = stub.GetJobMetrics(metrics, timeout=10).blocks
        blocks = stub.ListBlocks(training_pb2.ListBlocksRequest(parent="jobs/paused"), timeout=10).blocks
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    assert [event.number for event in told] == list(range(1, job.last_event + 1))
    resumed_at = int(paused.state_reason.rpartition(" ")[2])
    steps = [e.block_progress.step for e in told[paused.last_event :] if e.HasField("block_progress")]
    assert min(steps) > resumed_at > 0
    assert (job.test, job.validation) == (expected.test, expected.validation)
    for told_of in series:
        steps = [report.step for report in told_of.reports]
        assert steps == sorted(set(steps))
        assert steps[-1] == job.progress.total_steps
    assert [block.state for block in blocks] == [training_pb2.BLOCK_STATE_DONE] * 2
    assert [block.checkpoint_step for block in blocks] == [job.progress.total_steps] * 2
