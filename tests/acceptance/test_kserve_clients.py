"""tritonclient, which knows nothing of this project, against a model that a job has trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from bll_proto.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2, training_pb2


@pytest.fixture
def client(server: Any) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(server.address)
    yield client
    client.close()


def digits(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((rows, 1, 8, 8), dtype=np.float32)


def as_input(values: np.ndarray[Any, Any], datatype: str = "FP32") -> triton.InferInput:
    tensor = triton.InferInput("input", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def test_server_and_model_are_live_and_ready(client: triton.InferenceServerClient, job: training_pb2.Job) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("nobody")


def test_metadata_names_the_input_and_every_uncertainty(
    client: triton.InferenceServerClient, job: training_pb2.Job
) -> None:
    metadata = client.get_model_metadata("digits")
    assert list(metadata.versions) == ["1"]
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("input", "FP32", [-1, 1, 8, 8])]
    shapes = {output.name: list(output.shape) for output in metadata.outputs}
    assert shapes["probabilities"] == [-1, 10]
    assert shapes["exit_probabilities"] == [-1, 4, 10]
    assert shapes["posterior_variance"] == [-1, 4]
    assert shapes["output_variance"] == [-1]
    assert {output.datatype for output in metadata.outputs} == {"FP32"}


def test_inference_returns_distributions_with_a_variance_for_every_sample(
    client: triton.InferenceServerClient, job: training_pb2.Job
) -> None:
    names = ["probabilities", "posterior_variance", "output_variance"]
    outputs = [triton.InferRequestedOutput(name) for name in names]
    result = client.infer("digits", [as_input(digits(5))], outputs=outputs, request_id="a request")
    probabilities_BC = result.as_numpy("probabilities")
    assert result.get_response().id == "a request"
    assert probabilities_BC.shape == (5, 10)
    np.testing.assert_allclose(probabilities_BC.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        result.as_numpy("output_variance"), 1 - np.square(probabilities_BC).sum(axis=1), atol=1e-5
    )
    assert (result.as_numpy("posterior_variance") > 0).all()
    assert result.as_numpy("entropy") is None


def test_both_protocols_give_the_same_answer(
    client: triton.InferenceServerClient, channel: grpc.Channel, job: training_pb2.Job
) -> None:
    values = digits(3)
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=values.shape, data=values.tobytes())
    request = inference_pb2.PredictRequest(model="models/digits", input=tensor)
    native = inference_pb2_grpc.InferenceServiceStub(channel).Predict(request, timeout=10)
    kserve = client.infer("digits", [as_input(values)])
    assert native.model_version == job.model_version == "models/digits/versions/1"
    assert native.probabilities.data == kserve.as_numpy("probabilities").tobytes()
    assert native.posterior_variance.data == kserve.as_numpy("posterior_variance").tobytes()


def test_unknown_model_is_not_found(client: triton.InferenceServerClient, job: training_pb2.Job) -> None:
    with pytest.raises(InferenceServerException, match="nobody") as error:
        client.infer("nobody", [as_input(digits(1))])
    assert error.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (as_input(np.zeros((2, 7), np.float32)), "shape"),
        (as_input(digits(1).astype(np.float64), "FP64"), "FP32"),
        (as_input(np.full((1, 1, 8, 8), np.nan, np.float32)), "finite"),
    ],
)
def test_input_that_does_not_fit_is_an_invalid_argument_and_the_server_goes_on(
    client: triton.InferenceServerClient, job: training_pb2.Job, tensor: triton.InferInput, words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words) as error:
        client.infer("digits", [tensor])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.infer("digits", [as_input(digits(1))]).as_numpy("probabilities").shape == (1, 10)
