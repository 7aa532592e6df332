"""The core of the KServe v2 protocol, for tritonclient, KServe and their tools."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as distribution_version

import grpc
import numpy as np
from google.protobuf.message_factory import GetMessageClass

from bll.errors import Violation
from bll.manifest import TensorInfo
from bll_proto import oip
from bll_proto.oip import POOL as POOL  # for reflection
from bll_proto.tensors import InvalidTensor, from_bytes, num_elements
from bll_server.errors import InvalidRequest, ModelNotReady, NotFound
from bll_server.models.batcher import Batcher
from bll_server.models.registry import parse_number
from bll_server.models.session import Array, ModelSession, Sessions
from bll_server.services.inference import terms

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "parameters", "bl_uncertainty")
DATATYPE = "FP32"
"""Of every input and output: the graphs that we publish are float32 throughout."""
DTYPE = np.dtype("<f4")

RESERVED_PARAMETERS = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("uint64_param", "int64_param"),
    "timeout": ("int64_param", "uint64_param"),
    "binary_data_output": ("bool_param",),
}
"""Parameters of a request that the protocol has given a meaning, with the kinds that clients send them as.

Only `timeout` (microseconds) and `priority` (1 goes first; 0: none) change what we do. As with Triton, a stateless
model passes over the others and over names that it does not know, and names that begin with `triton_` are refused.
"""
REFUSED_INPUT_PARAMETERS = ("shared_memory_region",)
REFUSED_OUTPUT_PARAMETERS = ("shared_memory_region", "classification")
"""Extensions that change what comes back: to pass over them would answer another question."""


def add_oip(server: grpc.Server, sessions: Sessions, batcher: Batcher, ready: Callable[[], bool]) -> None:
    """Serve `inference.GRPCInferenceService` from `server`; `ready` says whether it wants more requests."""
    servicer = _Servicer(sessions, batcher, ready)
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
        for method in oip.SERVICE.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip.SERVICE.full_name, handlers),))


class _Servicer:
    """See `grpc_service.proto`."""

    def __init__(self, sessions: Sessions, batcher: Batcher, ready: Callable[[], bool]) -> None:
        self._sessions = sessions
        self._batcher = batcher
        self._ready = ready
        self._version = distribution_version("bll")

    def ServerLive(self, request: oip.ServerLiveRequest, context: grpc.ServicerContext) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def ServerReady(self, request: oip.ServerReadyRequest, context: grpc.ServicerContext) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._ready())

    def ModelReady(self, request: oip.ModelReadyRequest, context: grpc.ServicerContext) -> oip.ModelReadyResponse:
        number = _number(request.version, "version")
        try:
            self._sessions.get(request.name, number)
        except (NotFound, ModelNotReady):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(name="bll", version=self._version, extensions=EXTENSIONS)

    def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        number = _number(request.version, "version")
        registry = self._sessions.registry
        version = registry.version(request.name, number)
        versions = reversed(registry.versions(request.name)) if number is None else [version]
        return oip.ModelMetadataResponse(
            name=request.name,
            versions=[str(v.number) for v in versions],
            platform=PLATFORM,
            inputs=map(_tensor_metadata, version.manifest.inputs),
            outputs=map(_tensor_metadata, version.manifest.outputs),
        )

    def ModelInfer(self, request: oip.ModelInferRequest, context: grpc.ServicerContext) -> oip.ModelInferResponse:
        started = time.perf_counter()
        priority, timeout_s = _urgency(request.parameters)
        session = self._sessions.get(request.model_name, _number(request.model_version, "model_version"))
        rows = _rows(request, session)
        names = _output_names(request, session)
        response = oip.ModelInferResponse(
            model_name=request.model_name, model_version=str(session.version.number), id=request.id
        )
        if timeout_s is not None:
            timeout_s -= time.perf_counter() - started
        outputs = self._batcher.infer(session, rows, terms(self._batcher, context, priority, timeout_s))
        for name in names:
            array = outputs[name]
            response.outputs.add(name=name, datatype=DATATYPE, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        session.request_seconds.observe(time.perf_counter() - started)
        return response


def _number(text: str, field: str) -> int | None:
    return parse_number(text, field) if text else None


def _tensor_metadata(info: TensorInfo) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=info.name, datatype=DATATYPE, shape=info.shape)


def _urgency(parameters: Mapping[str, oip.InferParameter]) -> tuple[int, float | None]:
    """The request's priority, and the time that it may wait. Raises InvalidRequest if a parameter breaks its rule."""
    if not parameters:
        return 0, None
    for name, parameter in parameters.items():
        if name.startswith("triton_"):
            raise InvalidRequest(Violation(f"parameters.{name:.100}", "must not begin with triton_, which is reserved"))
        if name not in RESERVED_PARAMETERS:
            continue
        kinds = RESERVED_PARAMETERS[name]
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise InvalidRequest(Violation(f"parameters.{name}", f"must be {' or '.join(kinds)}, got {kind}"))
        if kind == "int64_param" and name in ("priority", "timeout") and parameter.int64_param < 0:
            raise InvalidRequest(Violation(f"parameters.{name}", f"must not be negative, got {parameter.int64_param}"))
    priority, timeout = (_whole(parameters[name]) if name in parameters else 0 for name in ("priority", "timeout"))
    return priority, timeout / 1e6 or None  # as with Triton, 0 is no timeout


def _whole(parameter: oip.InferParameter) -> int:
    return parameter.int64_param or parameter.uint64_param


def _rows(request: oip.ModelInferRequest, session: ModelSession) -> Array:
    """The one input, checked. Raises InvalidRequest."""
    names = [tensor.name for tensor in request.inputs]
    if names != [session.input.name]:
        raise InvalidRequest(Violation("inputs", f"must be {[session.input.name]}, got {names!r:.200}"))
    (tensor,) = request.inputs
    if tensor.datatype != DATATYPE:
        raise InvalidRequest(Violation("inputs[0].datatype", f"must be {DATATYPE}, got {tensor.datatype!r:.200}"))
    _refuse(tensor.parameters, REFUSED_INPUT_PARAMETERS, "inputs[0].parameters")
    raw = request.raw_input_contents
    if len(raw) > 1:
        raise InvalidRequest(Violation("raw_input_contents", f"must have one entry an input or none, got {len(raw)}"))
    if raw and tensor.contents.ByteSize():
        raise InvalidRequest(Violation("inputs[0].contents", "must be absent where raw_input_contents is used"))
    data = "raw_input_contents[0]" if raw else "inputs[0].contents"
    try:
        rows = from_bytes(raw[0], DTYPE, tensor.shape) if raw else _from_contents(tensor.contents, tensor.shape)
    except InvalidTensor as error:
        field = "inputs[0].shape" if error.field == "shape" else data
        raise InvalidRequest(Violation(field, error.description)) from error
    session.check(rows, dtype="inputs[0].datatype", shape="inputs[0].shape", data=data)
    return rows


def _from_contents(contents: oip.InferTensorContents, shape: Sequence[int]) -> Array:
    """The array in the typed `contents`. Raises InvalidTensor."""
    others = [field.name for field, _ in contents.ListFields() if field.name != "fp32_contents"]
    if others:
        raise InvalidTensor("data", f"must be fp32_contents, which goes with {DATATYPE}, got {', '.join(others)}")
    elements = num_elements(shape)
    if len(contents.fp32_contents) != elements:
        raise InvalidTensor("data", f"must have {elements} elements, got {len(contents.fp32_contents)}")
    return np.fromiter(contents.fp32_contents, DTYPE, elements).reshape(tuple(shape))


def _output_names(request: oip.ModelInferRequest, session: ModelSession) -> list[str]:
    """The outputs to return, each once. Raises InvalidRequest."""
    for i, output in enumerate(request.outputs):
        if output.name not in session.output_names:
            rule = f"must be one of {', '.join(session.output_names)}, got {output.name!r:.200}"
            raise InvalidRequest(Violation(f"outputs[{i}].name", rule))
        _refuse(output.parameters, REFUSED_OUTPUT_PARAMETERS, f"outputs[{i}].parameters")
    return list(dict.fromkeys(output.name for output in request.outputs)) or session.output_names


def _refuse(parameters: Mapping[str, oip.InferParameter], refused: tuple[str, ...], field: str) -> None:
    for name in refused:
        if name in parameters:
            raise InvalidRequest(Violation(f"{field}.{name}", "must be absent: this server lacks the extension"))
