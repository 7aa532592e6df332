"""A server that is killed outright: nothing of it stays, and nothing that it had answered is lost."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from bll_proto.v1 import training_pb2, training_pb2_grpc


@contextmanager
def serving(
    data_dir: Path, *flags: str
) -> Iterator[tuple[subprocess.Popen[str], training_pb2_grpc.TrainingServiceStub]]:
    command = [sys.executable, "-m", "bll_server", "--port", "0", "--metrics-port", "0", "--data-dir", str(data_dir)]
    with subprocess.Popen([*command, "--drain-s", "30", *flags], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split(",")[0].removeprefix("bll: serving on ")
        with grpc.insecure_channel(address) as channel:
            yield process, training_pb2_grpc.TrainingServiceStub(channel)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def descendants(pid: int) -> set[int]:
    children: dict[int, set[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), set()).add(int(stat.parent.name))
    found, new = set(), {pid}
    while new:
        new = set().union(*(children.get(p, set()) for p in new))
        found |= new
    return found


@pytest.mark.timeout(300)
def test_a_job_of_a_killed_server_leaves_no_process_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    spec = training_pb2.JobSpec(
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[16, 16]),
        blocks=training_pb2.BlocksSpec(num_blocks=2),
        batch_size=32,
        epochs=30,
    )
    watch = training_pb2.WatchJobRequest(name="jobs/survivor")
    with serving(tmp_path, "--job-threads", "2") as (process, stub):
        request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="survivor")
        stub.CreateJob(request, timeout=100)
        events = (reply.event for reply in stub.WatchJob(watch, timeout=100))
        saved = next(event for event in events if event.HasField("checkpoint_saved"))
        running = [os.pidfd_open(pid) for pid in descendants(process.pid)]
        assert len(running) >= 4, "planner, runner and two workers"
        process.kill()
        process.wait()
    deadline = time.monotonic() + 20
    for pidfd in running:
        assert select.select([pidfd], [], [], max(0, deadline - time.monotonic()))[0], "a process outlived its server"
        os.close(pidfd)

    with serving(tmp_path, "--job-threads", "2") as (_, stub):
        replies = stub.WatchJob(watch, timeout=250)
        events_again = [reply.event for reply in replies if reply.HasField("event")]
        job = stub.GetJob(training_pb2.GetJobRequest(name="jobs/survivor"), timeout=10).job
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    assert [event.number for event in events_again] == list(range(1, job.last_event + 1))
    reasons = [event.state_change.reason for event in events_again if event.HasField("state_change")]
    (reason,) = [r for r in reasons if r]
    assert reason.startswith("the server died; goes on from step ")
    resumed_at = int(reason.rpartition(" ")[2])
    assert resumed_at >= saved.checkpoint_saved.step
    queued_again = next(i for i, e in enumerate(events_again) if e.state_change.reason)
    steps = [e.block_progress.step for e in events_again[queued_again:] if e.HasField("block_progress")]
    assert min(steps) > resumed_at


@pytest.mark.timeout(300)
def test_a_job_that_gave_way_before_its_server_was_killed_keeps_its_place_and_its_running_time(tmp_path: Path) -> None:
    spec = training_pb2.JobSpec(
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[8, 8]),
        blocks=training_pb2.BlocksSpec(num_blocks=2),
        executor=training_pb2.ExecutorSpec(name=training_pb2.EXECUTOR_NAME_SEQUENTIAL, checkpoint_steps=20),
        batch_size=16,
        epochs=20,
    )

    def get(stub: training_pb2_grpc.TrainingServiceStub, job_id: str) -> training_pb2.Job:
        return stub.GetJob(training_pb2.GetJobRequest(name=f"jobs/{job_id}"), timeout=10).job

    def create(stub: training_pb2_grpc.TrainingServiceStub, job_id: str, **fields: Any) -> None:
        job = training_pb2.Job(spec=spec, **fields)
        stub.CreateJob(training_pb2.CreateJobRequest(job=job, job_id=job_id), timeout=100)

    with serving(tmp_path) as (process, stub):
        create(stub, "low", preemptible=True, max_run_duration=Duration(seconds=3600))
        events = stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/low"), timeout=100)
        next(reply for reply in events if reply.event.HasField("checkpoint_saved"))
        create(stub, "later", preemptible=True)
        create(stub, "high", priority=1)
        next(reply for reply in events if reply.event.state_change.state == training_pb2.JOB_STATE_QUEUED)
        before = get(stub, "low")
        process.kill()
        process.wait()
    assert before.run_duration.ToTimedelta() > timedelta(0)

    with serving(tmp_path) as (_, stub):
        low = get(stub, "low")
        assert low.run_duration == before.run_duration
        assert low.max_run_duration.ToTimedelta() == timedelta(hours=1)
        ends = {}
        for job_id in ("high", "low", "later"):
            list(stub.WatchJob(training_pb2.WatchJobRequest(name=f"jobs/{job_id}"), timeout=250))
            ends[job_id] = get(stub, job_id)
            assert ends[job_id].state == training_pb2.JOB_STATE_SUCCEEDED, ends[job_id]
    times = [ends[job_id].end_time.ToDatetime() for job_id in ("high", "low", "later")]
    assert times == sorted(times)
    assert ends["low"].run_duration.ToTimedelta() > before.run_duration.ToTimedelta()
    assert ends["low"].test == ends["later"].test
