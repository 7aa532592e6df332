"""The messages of the KServe v2 inference protocol, for the server only.

tritonclient registers the same names in protobuf's default pool, and a second registration raises. So these classes
come from the checked-in descriptor set, in a pool of their own; `grpc_service_pb2.pyi` types them and has no module.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

POOL = DescriptorPool()
for _file in FileDescriptorSet.FromString(Path(__file__).with_name("grpc_service.binpb").read_bytes()).file:
    POOL.Add(_file)

SERVICE = POOL.FindServiceByName("inference.GRPCInferenceService")


def _message(name: str) -> Any:
    return GetMessageClass(POOL.FindMessageTypeByName(f"inference.{name}"))


if TYPE_CHECKING:
    from bll_proto.oip.grpc_service_pb2 import (
        InferParameter,
        InferTensorContents,
        ModelInferRequest,
        ModelInferResponse,
        ModelMetadataRequest,
        ModelMetadataResponse,
        ModelReadyRequest,
        ModelReadyResponse,
        ServerLiveRequest,
        ServerLiveResponse,
        ServerMetadataRequest,
        ServerMetadataResponse,
        ServerReadyRequest,
        ServerReadyResponse,
    )
else:
    InferParameter = _message("InferParameter")
    InferTensorContents = _message("InferTensorContents")
    ModelInferRequest = _message("ModelInferRequest")
    ModelInferResponse = _message("ModelInferResponse")
    ModelMetadataRequest = _message("ModelMetadataRequest")
    ModelMetadataResponse = _message("ModelMetadataResponse")
    ModelReadyRequest = _message("ModelReadyRequest")
    ModelReadyResponse = _message("ModelReadyResponse")
    ServerLiveRequest = _message("ServerLiveRequest")
    ServerLiveResponse = _message("ServerLiveResponse")
    ServerMetadataRequest = _message("ServerMetadataRequest")
    ServerMetadataResponse = _message("ServerMetadataResponse")
    ServerReadyRequest = _message("ServerReadyRequest")
    ServerReadyResponse = _message("ServerReadyResponse")

__all__ = [
    "POOL",
    "SERVICE",
    "InferParameter",
    "InferTensorContents",
    "ModelInferRequest",
    "ModelInferResponse",
    "ModelMetadataRequest",
    "ModelMetadataResponse",
    "ModelReadyRequest",
    "ModelReadyResponse",
    "ServerLiveRequest",
    "ServerLiveResponse",
    "ServerMetadataRequest",
    "ServerMetadataResponse",
    "ServerReadyRequest",
    "ServerReadyResponse",
]
