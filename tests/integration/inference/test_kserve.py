"""inference.GRPCInferenceService over a socket, with tritonclient and with messages that it would not send."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from bll_proto import oip
from bll_proto.tensors import to_array, to_tensor
from bll_proto.v1.inference_pb2 import PredictRequest

CODES = grpc.StatusCode
IMAGES = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
OUTPUTS = [
    "probabilities",
    "product_probabilities",
    "exit_probabilities",
    "posterior_variance",
    "posterior_variance_between",
    "forward_variance",
    "output_variance",
    "entropy",
    "exit_disagreement",
    "calibrated_probabilities",
    "ood_score",
]


@pytest.fixture
def client(served: Any) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(served.address)
    yield client
    client.close()


def triton_input(values: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("input", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def infer(served: Any, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    call = served.channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    response: oip.ModelInferResponse = call(request, timeout=10)
    return response


def request() -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[np.ones(4, np.float32).tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
    return request


def typed() -> oip.ModelInferRequest:
    typed = request()
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.fp32_contents.extend([1.0] * 4)
    return typed


def test_server_and_models_are_ready_and_unknown_ones_are_not(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fashion")
    assert client.is_model_ready("fashion", "1")
    assert not client.is_model_ready("fashion", "9")
    assert not client.is_model_ready("../fashion")


def test_draining_server_is_live_and_not_ready(served: Any, client: triton.InferenceServerClient) -> None:
    served.draining.set()
    assert client.is_server_live()
    assert not client.is_server_ready()


def test_server_metadata_promises_only_what_is_there(client: triton.InferenceServerClient) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "bll"
    assert list(metadata.extensions) == ["binary_tensor_data", "parameters", "bl_uncertainty"]


def test_model_metadata_lists_versions_and_every_output(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("fashion")
    assert list(metadata.versions) == ["1", "2"]
    assert list(client.get_model_metadata("fashion", "1").versions) == ["1"]
    assert metadata.platform == "onnxruntime_onnx"
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("input", "FP32", [-1, 1, 8, 8])]
    assert [t.name for t in metadata.outputs] == OUTPUTS


def test_answer_equals_predicts(served: Any, client: triton.InferenceServerClient) -> None:
    result = client.infer("fashion", [triton_input(IMAGES)], request_id="abc")
    native = served.inference.Predict(PredictRequest(model="models/fashion", input=to_tensor(IMAGES)), timeout=10)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("abc", "fashion", "2")
    assert [output.name for output in response.outputs] == OUTPUTS
    np.testing.assert_array_equal(result.as_numpy("probabilities"), to_array(native.probabilities))
    np.testing.assert_array_equal(result.as_numpy("entropy"), to_array(native.entropy_nats))


def test_only_the_outputs_asked_for_come_back_in_their_order_each_once(client: triton.InferenceServerClient) -> None:
    names = ["output_variance", "probabilities", "output_variance"]
    result = client.infer(
        "fashion", [triton_input(IMAGES)], "1", outputs=[triton.InferRequestedOutput(name) for name in names]
    )
    assert [output.name for output in result.get_response().outputs] == ["output_variance", "probabilities"]
    assert result.as_numpy("probabilities").shape == (3, 10)
    assert result.as_numpy("entropy") is None


def test_typed_contents_are_answered_raw_and_equal_to_raw_ones(served: Any) -> None:
    from_typed, from_raw = infer(served, typed()), infer(served, request())
    assert from_typed == from_raw
    assert len(from_typed.raw_output_contents) == len(OUTPUTS)
    assert not any(output.HasField("contents") for output in from_typed.outputs)


def test_parameters_that_tritonclient_sends_are_accepted(client: triton.InferenceServerClient) -> None:
    result = client.infer(
        "fashion",
        [triton_input(IMAGES)],
        priority=2,
        timeout=10_000_000,
        sequence_id=7,
        sequence_start=True,
        parameters={"mine": "passed over"},
    )
    assert result.as_numpy("probabilities").shape == (3, 10)


def test_timeout_that_is_over_before_the_model_has_loaded_is_unavailable(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="the call may wait 0 s") as raised:
        client.infer("fashion", [triton_input(IMAGES)], timeout=1)
    assert raised.value.status() == "StatusCode.UNAVAILABLE"


def test_timeout_of_zero_is_none(served: Any) -> None:
    unhurried = request()
    unhurried.parameters["timeout"].int64_param = 0
    assert infer(served, unhurried).outputs


def changed(base: oip.ModelInferRequest, **fields: Any) -> oip.ModelInferRequest:
    """`base` with fields of the request, or of its input where the name begins with `input_`, set anew."""
    for name, value in fields.items():
        target: Any = base
        if name.startswith("input_"):
            target, name = base.inputs[0], name.removeprefix("input_")
        if isinstance(value, list):
            del getattr(target, name)[:]
            getattr(target, name).extend(value)
        elif isinstance(value, dict):
            for key, parameter in value.items():
                getattr(target, name)[key].CopyFrom(parameter)
        else:
            setattr(target, name, value)
    return base


INPUT = oip.ModelInferRequest.InferInputTensor
OUTPUT = oip.ModelInferRequest.InferRequestedOutputTensor
PARAMETER = oip.InferParameter


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (changed(request(), model_version="x"), "model_version: must be a whole number from 1 up, got 'x'"),
        (changed(request(), model_version="-1"), "model_version: must be a whole number from 1 up"),
        (changed(request(), inputs=[]), "inputs: must be ['input'], got []"),
        (changed(request(), input_name="image"), "inputs: must be ['input'], got ['image']"),
        (changed(request(), inputs=[INPUT(name="input")] * 2), "inputs: must be ['input'], got ['input', 'input']"),
        (changed(request(), input_datatype="FP64"), "inputs[0].datatype: must be FP32, got 'FP64'"),
        (changed(request(), input_shape=[4]), "inputs[0].shape: must be [rows, 4], got [4]"),
        (changed(request(), input_shape=[-1, 4]), "inputs[0].shape: must have no negative dimension"),
        (changed(request(), input_shape=[2**61, 4]), "inputs[0].shape: must describe fewer than 2^60 elements"),
        (changed(request(), input_shape=[2**40, 4]), "raw_input_contents[0]: must have 17592186044416 bytes"),
        (changed(request(), input_shape=[0, 4], raw_input_contents=[b""]), "must have between 1 and 64 rows, got 0"),
        (changed(request(), raw_input_contents=[b"1234"]), "raw_input_contents[0]: must have 16 bytes"),
        (changed(request(), raw_input_contents=[b""] * 2), "raw_input_contents: must have one entry an input or none"),
        (changed(request(), raw_input_contents=[]), "inputs[0].contents: must have 4 elements, got 0"),
        (changed(typed(), raw_input_contents=[bytes(16)]), "inputs[0].contents: must be absent where raw"),
        (changed(typed(), input_shape=[2**40, 4]), "inputs[0].contents: must have 4398046511104 elements, got 4"),
        (changed(request(), outputs=[OUTPUT(name="x")]), "outputs[0].name: must be one of probabilities, "),
        (
            changed(request(), raw_input_contents=[np.full(4, np.inf, "f4").tobytes()]),
            "must be finite, got inf at [0, 0]",
        ),
        (
            changed(request(), parameters={"timeout": PARAMETER(int64_param=-1)}),
            "timeout: must not be negative, got -1",
        ),
        (
            changed(request(), parameters={"timeout": PARAMETER(string_param="1")}),
            "timeout: must be int64_param or",
        ),
        (changed(request(), parameters={"priority": PARAMETER()}), "parameters.priority: must be uint64_param or"),
        (changed(request(), parameters={"sequence_end": PARAMETER(int64_param=1)}), "sequence_end: must be bool_param"),
        (changed(request(), parameters={"triton_x": PARAMETER(bool_param=True)}), "must not begin with triton_"),
        (
            changed(request(), input_parameters={"shared_memory_region": PARAMETER(string_param="r")}),
            "inputs[0].parameters.shared_memory_region: must be absent",
        ),
        (
            changed(request(), outputs=[OUTPUT(name="entropy", parameters={"classification": PARAMETER()})]),
            "outputs[0].parameters.classification: must be absent",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_bad_request_is_an_invalid_argument_that_names_field_rule_and_value(
    served: Any, bad: oip.ModelInferRequest, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        infer(served, bad)
    error: Any = raised.value
    assert error.code() is CODES.INVALID_ARGUMENT
    assert words in error.details()
    assert infer(served, request()).outputs


@pytest.mark.parametrize("name", ["nobody", "", "../tiny", "models/tiny", "t" * 100_000])
def test_unknown_model_is_not_found(served: Any, name: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        infer(served, changed(request(), model_name=name))
    assert raised.value.code() is CODES.NOT_FOUND


def test_typed_contents_of_another_type_are_refused(served: Any) -> None:
    wrong = typed()
    wrong.inputs[0].contents.int64_contents.append(1)
    with pytest.raises(grpc.RpcError, match="must be fp32_contents, which goes with FP32, got int64_contents"):
        infer(served, wrong)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), raw=st.booleans())
def test_mutated_request_is_answered_or_refused_and_never_breaks_the_server(
    served: Any, data: st.DataObject, raw: bool
) -> None:
    wire = bytearray((request() if raw else typed()).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    call: Any = served.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    error = call.future(bytes(wire), timeout=10).exception()
    assert error is None or error.code() in (CODES.INVALID_ARGUMENT, CODES.NOT_FOUND)


@pytest.mark.parametrize(
    ("first", "second"), [("tritonclient.grpc", "bll_proto.oip"), ("bll_proto.oip", "tritonclient.grpc")]
)
def test_tritonclient_may_be_imported_before_or_after_in_one_process(served: Any, first: str, second: str) -> None:
    """Each then makes a real call with its own messages."""
    code = f"""
import {first}, {second}
import grpc
from bll_proto import oip
import tritonclient.grpc as triton
client = triton.InferenceServerClient({served.address!r})
assert client.get_model_metadata("tiny").inputs[0].shape == [-1, 4]
client.close()
with grpc.insecure_channel({served.address!r}) as channel:
    call = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata",
        oip.ModelMetadataRequest.SerializeToString, oip.ModelMetadataResponse.FromString)
    assert call(oip.ModelMetadataRequest(name="tiny"), timeout=10).inputs[0].shape == [-1, 4]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
