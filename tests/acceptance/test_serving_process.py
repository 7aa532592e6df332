"""The life of the serving process: what it loads, how it stops, and what it takes up again."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bll_proto.v1 import training_pb2, training_pb2_grpc


def long_job() -> training_pb2.CreateJobRequest:
    """Minutes of small epochs, each with a checkpoint, unless it is stopped."""
    spec = training_pb2.JobSpec(
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[16, 16]),
        blocks=training_pb2.BlocksSpec(num_blocks=2),
        batch_size=32,
        epochs=40,
    )
    return training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="interrupted")


def watch(channel: grpc.Channel, after_event: int = 0) -> Any:
    request = training_pb2.WatchJobRequest(name="jobs/interrupted", after_event=after_event)
    for reply in training_pb2_grpc.TrainingServiceStub(channel).WatchJob(request, timeout=100):
        if reply.HasField("event"):
            yield reply.event


@pytest.mark.timeout(240)
def test_job_interrupted_by_sigterm_goes_on_after_a_restart_and_succeeds(start_server: Any) -> None:
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        training_pb2_grpc.TrainingServiceStub(channel).CreateJob(long_job(), timeout=60)
        saved = next(event for event in watch(channel) if event.HasField("checkpoint_saved"))
        libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
        server.terminate()
        assert server.wait() == 0
    assert "libtorch" not in libraries, "the serving process has loaded torch"

    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        events = list(watch(channel, after_event=saved.number))
        job = (
            training_pb2_grpc.TrainingServiceStub(channel)
            .GetJob(training_pb2.GetJobRequest(name="jobs/interrupted"), timeout=10)
            .job
        )
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    assert [event.number for event in events] == list(range(saved.number + 1, job.last_event + 1))
    states = [event.state_change.state for event in events if event.HasField("state_change")]
    assert states[0] == training_pb2.JOB_STATE_QUEUED, "the interrupted job was not queued again"
    resumed = next(i for i, event in enumerate(events) if event.state_change.state == training_pb2.JOB_STATE_RUNNING)
    steps = [event.block_progress.step for event in events[resumed:] if event.HasField("block_progress")]
    assert min(steps) > saved.checkpoint_saved.step, "the job began anew"


def test_server_that_is_told_to_stop_says_so_and_answers_until_balancers_have_seen_it(start_server: Any) -> None:
    server = start_server("--pre-stop-s", "2")
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        states = health.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        server.terminate()
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            urllib.request.urlopen(server.metrics_url.replace("/metrics", "/healthz"), timeout=10)
        refused.value.close()
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        assert not stub.ListJobs(training_pb2.ListJobsRequest(), timeout=10).jobs
        states.cancel()
        assert server.wait() == 0


def test_serving_process_never_loads_torch(server: Any, job: training_pb2.Job) -> None:
    assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_healthz_answers_on_the_metrics_port(server: Any) -> None:
    with urllib.request.urlopen(server.metrics_url.replace("/metrics", "/healthz"), timeout=10) as reply:
        assert reply.status == 200
