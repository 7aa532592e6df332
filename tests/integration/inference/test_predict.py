"""InferenceService.Predict over a socket."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import grpc
import numpy as np
import onnxruntime
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bll_proto.tensors import to_array, to_tensor
from bll_proto.v1.inference_pb2 import Head, PredictRequest
from bll_proto.v1.tensor_pb2 import DATA_TYPE_FLOAT32, Tensor
from bll_server.models.session import ModelSession

CODES = grpc.StatusCode


def images(rows: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random((rows, 1, 8, 8), dtype=np.float32)


def request(
    values: np.ndarray[Any, Any], model: str = "models/fashion", head: Head.ValueType = Head.HEAD_MIXTURE
) -> PredictRequest:
    return PredictRequest(model=model, input=to_tensor(values), head=head)


def claim(*shape: int) -> PredictRequest:
    return PredictRequest(model="models/fashion", input=Tensor(dtype=DATA_TYPE_FLOAT32, shape=shape))


def violations(error: grpc.RpcError) -> dict[str, str]:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    for detail in status.details:
        bad_request = error_details_pb2.BadRequest()
        if detail.Unpack(bad_request):
            return {violation.field: violation.description for violation in bad_request.field_violations}
    return {}


def test_every_field_of_the_answer_is_the_graphs_output(served: Any) -> None:
    response = served.inference.Predict(request(images(3)), timeout=10)
    directory = served.registry.version("fashion", 2).directory
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"input": images(3)}), strict=True))
    assert response.model_version == "models/fashion/versions/2"
    assert list(response.class_names) == [f"class {i}" for i in range(10)]
    renamed = {"entropy_nats": "entropy", "exit_disagreement_nats": "exit_disagreement"}
    fields = [f.name for f in response.DESCRIPTOR.fields if f.name not in ("model_version", "class_names")]
    assert len(fields) == 8
    for field in fields:
        np.testing.assert_array_equal(to_array(getattr(response, field)), expected[renamed.get(field, field)], field)


@pytest.mark.parametrize(
    ("head", "output"),
    [(Head.HEAD_UNSPECIFIED, 0), (Head.HEAD_MIXTURE, 0), (Head.HEAD_PRODUCT, 1)],
)
def test_head_selects_the_distribution(served: Any, head: Head.ValueType, output: int) -> None:
    response = served.inference.Predict(request(images(2), head=head), timeout=10)
    exits_BNC = to_array(response.exit_probabilities)
    product_BC = exits_BNC.prod(axis=1)
    expected_BC = [exits_BNC.mean(axis=1), product_BC / product_BC.sum(axis=1, keepdims=True)][output]
    np.testing.assert_allclose(to_array(response.probabilities), expected_BC, rtol=1e-4)


def test_last_exit_is_the_exit_of_the_last_block(served: Any) -> None:
    response = served.inference.Predict(request(images(2), head=Head.HEAD_LAST_EXIT), timeout=10)
    np.testing.assert_array_equal(to_array(response.probabilities), to_array(response.exit_probabilities)[:, -1])


def test_older_version_answers_when_it_is_asked_for(served: Any) -> None:
    newest = served.inference.Predict(request(images(1)), timeout=10)
    older = served.inference.Predict(request(images(1), model="models/fashion/versions/1"), timeout=10)
    assert older.model_version == "models/fashion/versions/1"
    assert older.probabilities != newest.probabilities


def with_value(value: float, *index: int) -> np.ndarray[Any, Any]:
    values = images(3)
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("bad", "code", "field", "words"),
    [
        (request(images(1), model="fashion"), CODES.INVALID_ARGUMENT, "model", "must be models/{model} or"),
        (request(images(1), model="models/../x"), CODES.INVALID_ARGUMENT, "model", "must be models/{model} or"),
        (request(images(1), model="models/nobody"), CODES.NOT_FOUND, None, "there is no model 'nobody'"),
        (request(images(1), model="models/fashion/versions/9"), CODES.NOT_FOUND, None, "has no version 9"),
        (PredictRequest(model="models/fashion"), CODES.INVALID_ARGUMENT, "input.dtype", "got DATA_TYPE_UNSPECIFIED"),
        (request(images(1).astype(float)), CODES.INVALID_ARGUMENT, "input.dtype", "must be float32, got float64"),
        (request(images(1).astype("u1")), CODES.INVALID_ARGUMENT, "input.dtype", "must be float32, got uint8"),
        (request(images(1)[0]), CODES.INVALID_ARGUMENT, "input.shape", "must be [rows, 1, 8, 8], got [1, 8, 8]"),
        (request(np.array(1, np.float32)), CODES.INVALID_ARGUMENT, "input.shape", "must be [rows, 1, 8, 8], got []"),
        (request(images(0)), CODES.INVALID_ARGUMENT, "input.shape", "must have between 1 and 64 rows, got 0"),
        (request(images(65)), CODES.INVALID_ARGUMENT, "input.shape", "must have between 1 and 64 rows, got 65"),
        (request(with_value(np.nan, 2, 0, 7, 1)), CODES.INVALID_ARGUMENT, "input.data", "got nan at [2, 0, 7, 1]"),
        (request(with_value(-np.inf, 0, 0, 0, 3)), CODES.INVALID_ARGUMENT, "input.data", "got -inf at [0, 0, 0, 3]"),
        (claim(2**40), CODES.INVALID_ARGUMENT, "input.data", "got 0"),
        (claim(-1), CODES.INVALID_ARGUMENT, "input.shape", "got [-1]"),
        (request(images(1), head=cast(Head.ValueType, 7)), CODES.INVALID_ARGUMENT, "head", "must be one of HEAD_MIX"),
    ],
)  # fmt: skip
def test_bad_request_names_field_rule_and_value_and_the_server_goes_on(
    served: Any, bad: PredictRequest, code: grpc.StatusCode, field: str | None, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        served.inference.Predict(bad, timeout=10)
    error: Any = raised.value
    assert error.code() is code
    assert words in error.details()
    assert list(violations(error)) == ([field] if field else [])
    served.inference.Predict(request(images(1)), timeout=10)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_request_is_answered_or_refused_and_never_breaks_the_server(served: Any, data: st.DataObject) -> None:
    wire = bytearray(request(np.ones((1, 4), np.float32), model="models/tiny").SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    call: Any = served.channel.unary_unary("/bll.v1.InferenceService/Predict")
    error = call.future(bytes(wire), timeout=10).exception()
    assert error is None or error.code() in (CODES.INVALID_ARGUMENT, CODES.NOT_FOUND)


def test_request_that_expired_while_it_waited_is_not_run(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served.inference.Predict(request(images(1)), timeout=10)
    started, go_on = threading.Event(), threading.Event()
    ran: list[int] = []
    infer: Callable[..., Any] = ModelSession.infer

    def wait_and_infer(self: ModelSession, rows: np.ndarray[Any, Any]) -> Any:
        ran.append(len(rows))
        started.set()
        assert go_on.wait(10)
        return infer(self, rows)

    monkeypatch.setattr(ModelSession, "infer", wait_and_infer)
    first = served.inference.Predict.future(request(images(1)), timeout=10)
    assert started.wait(10)
    with pytest.raises(grpc.RpcError) as raised:
        served.inference.Predict(request(images(2)), timeout=0.05)
    error: Any = raised.value
    assert error.code() is CODES.DEADLINE_EXCEEDED
    go_on.set()
    assert first.result(timeout=10).model_version
    served.inference.Predict(request(images(3)), timeout=10)
    assert ran == [1, 3]


def test_metrics_count_every_run_by_model_and_version(served: Any) -> None:
    for rows in (1, 3):
        served.inference.Predict(request(images(rows)), timeout=10)
    labels = {"model": "fashion", "version": "2"}

    def value(name: str, **more: str) -> float | None:
        found: float | None = served.metrics.registry.get_sample_value(name, labels | more)
        return found

    assert value("bll_inference_request_seconds_count") == 2
    assert value("bll_inference_compute_seconds_count") == 2
    assert value("bll_inference_batch_rows_sum") == 4
    assert value("bll_inference_predictive_entropy_nats_count") == 4
    assert value("bll_inference_predictive_entropy_nats_bucket", le="+Inf") == 4
    assert value("bll_inference_posterior_variance_count") == 16
