"""A served job whose worker is killed: watchers hear of it, it is counted, and the job succeeds."""

from __future__ import annotations

import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import Server
from bll_server.settings import Settings


def workers() -> set[int]:
    """The children of the forkservers among the processes that this one has started."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue

    def is_own(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_own(parents[pid]))

    def is_forkserver(pid: int) -> bool:
        return b"multiprocessing.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()

    return {pid for pid, parent in parents.items() if is_own(pid) and is_forkserver(parent)}


@pytest.mark.timeout(300)
def test_a_job_survives_a_killed_worker_and_says_so(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "data": {"name": "digits"},
        "network": {"architecture": "mlp", "widths": [8, 8]},
        "blocks": {"num_blocks": 2},
        "latent": {"units": 4, "readout_units": 8},
        "executor": {"name": training_pb2.EXECUTOR_NAME_PROCESSES, "checkpoint_steps": 10},
        "epochs": 8,
    }
    watch = training_pb2.WatchJobRequest(name="jobs/struck")
    server = Server(Settings(port=0, metrics_port=0, data_dir=tmp_path, job_threads=2))
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = training_pb2_grpc.TrainingServiceStub(channel)
            job = training_pb2.Job(spec=training_pb2.JobSpec(**fields))
            stub.CreateJob(training_pb2.CreateJobRequest(job=job, job_id="struck"), timeout=90)
            events = []
            for reply in stub.WatchJob(watch, timeout=240):
                events.append(reply.event)
                if reply.event.HasField("checkpoint_saved") and reply.event.checkpoint_saved.step == 10:
                    os.kill(min(workers()), signal.SIGKILL)
            ended = stub.GetJob(training_pb2.GetJobRequest(name="jobs/struck"), timeout=10).job
            page = urllib.request.urlopen(server.metrics_url, timeout=10).read().decode()
    finally:
        server.stop()
    assert ended.state == training_pb2.JOB_STATE_SUCCEEDED, ended
    (rolled_back,) = [event.rolled_back for event in events if event.HasField("rolled_back")]
    assert "was killed by SIGKILL" in rolled_back.cause
    assert rolled_back.step >= 10
    assert 'bll_block_restarts_total{recovery="exact"} 1.0' in page
