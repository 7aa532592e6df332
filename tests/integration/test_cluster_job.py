"""A job of the service on a Ray cluster that its operator has listed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server.app import Server
from bll_server.settings import Settings

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def ray_head() -> Iterator[str]:
    """Address of a Ray that runs on this machine."""
    import ray

    from bll.executors.ray.cluster import Cluster

    cluster = Cluster("", [{"CPU": 4}], 0)
    yield ray.get_runtime_context().gcs_address
    cluster.close()


def spec(epochs: int, **executor: object) -> training_pb2.JobSpec:
    return training_pb2.JobSpec(
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[8, 8]),
        blocks=training_pb2.BlocksSpec(num_blocks=2),
        executor=training_pb2.ExecutorSpec(**executor),  # type: ignore[arg-type]
        batch_size=32,
        epochs=epochs,
    )


def test_a_job_runs_on_a_listed_cluster_beside_one_that_has_all_threads_and_on_no_other(
    ray_head: str, tmp_path: Path
) -> None:
    listed = Settings(port=0, metrics_port=0, data_dir=tmp_path, max_jobs=2, job_threads=1, ray_address=(ray_head,))
    server = Server(listed)
    try:
        with grpc.insecure_channel(server.address) as channel:
            stub = training_pb2_grpc.TrainingServiceStub(channel)

            def create(job_id: str, asked: training_pb2.JobSpec) -> training_pb2.Job:
                request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=asked), job_id=job_id)
                return stub.CreateJob(request, timeout=90).job

            on_ray = training_pb2.EXECUTOR_NAME_RAY
            with socket.create_server(("127.0.0.1", 0)) as stranger:
                stranger.settimeout(0)
                address = f"127.0.0.1:{stranger.getsockname()[1]}"
                with pytest.raises(grpc.RpcError) as caught:
                    create("elsewhere", spec(1, name=on_ray, address=address))
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                rule = f"job.spec.executor.address: must be one of the Ray clusters of this server ({ray_head})"
                assert rule in str(caught.value.details())
                with pytest.raises(BlockingIOError):
                    stranger.accept()  # nobody has called there
            create("here", spec(10_000, name=training_pb2.EXECUTOR_NAME_SEQUENTIAL))
            create("there", spec(1, name=on_ray, address=ray_head))
            events = stub.WatchJob(training_pb2.WatchJobRequest(name="jobs/there"), timeout=250)
            assert list(events)
            there = stub.GetJob(training_pb2.GetJobRequest(name="jobs/there"), timeout=10).job
            here = stub.GetJob(training_pb2.GetJobRequest(name="jobs/here"), timeout=10).job
            assert there.state == training_pb2.JOB_STATE_SUCCEEDED, there
            assert here.state == training_pb2.JOB_STATE_RUNNING, here
            stub.CancelJob(training_pb2.CancelJobRequest(name="jobs/here"), timeout=10)
    finally:
        server.stop()
