"""InferenceService: one model on one batch, with every uncertainty that the graph computes."""

from __future__ import annotations

import time

import grpc

from bll.errors import Violation
from bll_proto.tensors import InvalidTensor, fill, to_array
from bll_proto.v1 import inference_pb2, inference_pb2_grpc
from bll_proto.v1.inference_pb2 import Head
from bll_server.errors import InvalidRequest
from bll_server.models.batcher import Batcher, Terms
from bll_server.models.queue import DEFAULT_PRIORITY
from bll_server.models.registry import parse_name
from bll_server.models.session import Array, Sessions

OUTPUTS = {
    "exit_probabilities": "exit_probabilities",
    "posterior_variance": "posterior_variance",
    "posterior_variance_between": "posterior_variance_between",
    "forward_variance": "forward_variance",
    "output_variance": "output_variance",
    "entropy_nats": "entropy",
    "exit_disagreement_nats": "exit_disagreement",
}
"""Fields of PredictResponse, and the outputs of the graph that they carry."""


HEADS = frozenset(Head.values())


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """See `inference.proto`."""

    def __init__(self, sessions: Sessions, batcher: Batcher) -> None:
        self._sessions = sessions
        self._batcher = batcher

    def Predict(
        self, request: inference_pb2.PredictRequest, context: grpc.ServicerContext
    ) -> inference_pb2.PredictResponse:
        started = time.perf_counter()
        session = self._sessions.get(*parse_name(request.model, "model"))
        try:
            rows = to_array(request.input)
        except InvalidTensor as error:
            raise InvalidRequest(Violation(f"input.{error.field}", error.description)) from error
        session.check(rows, dtype="input.dtype", shape="input.shape", data="input.data")
        if request.head not in HEADS:
            raise InvalidRequest(Violation("head", f"must be one of {', '.join(Head.keys()[1:])}, got {request.head}"))
        response = inference_pb2.PredictResponse(
            model_version=session.version.name, class_names=session.version.manifest.class_names
        )
        outputs = self._batcher.infer(session, rows, terms(self._batcher, context, request.priority))
        fill(response.probabilities, _distribution(outputs, request.head))
        for field, output in OUTPUTS.items():
            fill(getattr(response, field), outputs[output])
        session.request_seconds.observe(time.perf_counter() - started)
        return response


def terms(batcher: Batcher, context: grpc.ServicerContext, priority: int = 0, timeout_s: float | None = None) -> Terms:
    """What the caller wants: its deadline or `timeout_s`, whichever is sooner, and its priority, 0 for none."""
    remaining_s = context.time_remaining()  # without a deadline, very long
    wait_s = remaining_s if timeout_s is None else min(remaining_s, timeout_s)
    return Terms(batcher.clock() + wait_s, priority or DEFAULT_PRIORITY, context.add_callback)


def _distribution(outputs: dict[str, Array], head: Head.ValueType) -> Array:
    """The probabilities (rows, classes) of `head`."""
    if head == Head.HEAD_PRODUCT:
        return outputs["product_probabilities"]
    if head == Head.HEAD_LAST_EXIT:
        return outputs["exit_probabilities"][:, -1]
    return outputs["probabilities"]
