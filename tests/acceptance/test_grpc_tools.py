"""What generic gRPC tools see: health by Check and Watch, and services described by reflection."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from bll_proto.v1 import training_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    "bll.v1.DatasetService": "UploadDataset",
    "bll.v1.InferenceService": "Predict",
    "bll.v1.ModelService": "DownloadModel",
    "bll.v1.TrainingService": "WatchJob",
    "grpc.health.v1.Health": "Watch",
    "inference.GRPCInferenceService": "ModelInfer",
}


def health(channel: grpc.Channel) -> Any:
    # Any: the published types of the stub lack its methods.
    return health_pb2_grpc.HealthStub(channel)


def test_health_check_answers_for_the_server_and_for_a_model(channel: grpc.Channel, job: training_pb2.Job) -> None:
    stub = health(channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == SERVING
    assert stub.Check(health_pb2.HealthCheckRequest(service="bll.model/digits"), timeout=10).status == SERVING


def test_health_check_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as error:
        health(channel).Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=10)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_watch_turns_to_not_serving_when_the_server_drains(start_server: Any) -> None:
    server = start_server()
    with grpc.insecure_channel(server.address) as channel:
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == SERVING
        server.terminate()
        assert next(watch).status == NOT_SERVING
        watch.cancel()
    assert server.wait() == 0


@pytest.mark.parametrize(("service", "method"), SERVICES.items())
def test_reflection_lists_and_describes(channel: grpc.Channel, service: str, method: str) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert service in database.get_services()
    # A pool of its own: this process may hold another `package inference`.
    described = DescriptorPool(database).FindServiceByName(service)
    assert method in described.methods_by_name
