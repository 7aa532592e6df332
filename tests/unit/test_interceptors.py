import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server import logs
from bll_server.auth.audit import AUDIT, Audit
from bll_server.auth.gate import Gate
from bll_server.auth.tokens import Tokens
from bll_server.errors import Busy, NotFound
from bll_server.interceptors import Boundary
from bll_server.metrics import Metrics
from bll_server.threads import BoundedThreads

GET = "/bll.v1.TrainingService/GetJob"


class Servicer(training_pb2_grpc.TrainingServiceServicer):
    def GetJob(self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext) -> training_pb2.GetJobResponse:
        if request.name == "none":
            raise NotFound("no job is named 'none'")
        if request.name == "bug":
            raise KeyError("a secret")
        if request.name == "busy":
            raise Busy("too many are here", 0.25)
        if request.name == "own":
            context.abort(grpc.StatusCode.DATA_LOSS, "said by the method")
        return training_pb2.GetJobResponse(job=training_pb2.Job(name=request.name))

    def WatchJob(
        self, request: training_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.WatchJobResponse]:
        yield training_pb2.WatchJobResponse()
        raise NotFound("gone in between")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Tokens(tmp_path), {}, always=False)


@pytest.fixture
def audit(tmp_path: Path) -> Audit:
    return Audit(tmp_path / AUDIT)


@pytest.fixture
def channel(metrics: Metrics, gate: Gate, audit: Audit) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Boundary(metrics, gate, audit, {})])
    training_pb2_grpc.add_TrainingServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


def get(channel: grpc.Channel, name: str, **more: Any) -> training_pb2.GetJobResponse:
    stub = training_pb2_grpc.TrainingServiceStub(channel)
    return stub.GetJob(training_pb2.GetJobRequest(name=name), timeout=10, **more)


def raw(channel: grpc.Channel, method: str, data: bytes) -> None:
    call: Any = channel.unary_unary(method)
    call(data, timeout=10)


def counted(metrics: Metrics, code: str, method: str = "GetJob", kind: str = "unary") -> float:
    labels = {"grpc_type": kind, "grpc_service": "bll.v1.TrainingService", "grpc_method": method, "grpc_code": code}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0


def test_a_domain_error_leaves_as_its_status_and_is_counted(channel: grpc.Channel, metrics: Metrics) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        get(channel, "none")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.reason == "NOT_FOUND"
    assert counted(metrics, "NOT_FOUND") == 1


def test_an_unexpected_error_is_logged_and_leaves_without_its_text(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        get(channel, "bug", metadata=[("x-request-id", "mine-1")])
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    details = caught.value.details() or ""
    assert "secret" not in details
    assert "mine-1" in details
    assert any(record.exc_info and "a secret" in str(record.exc_info[1]) for record in caplog.records)


def test_a_busy_model_asks_its_callers_to_wait_in_details_and_in_what_grpc_reads(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        get(channel, "busy")
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    status = rpc_status.from_call(error)
    assert status is not None
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToMilliseconds() == 250


def test_a_call_too_many_is_refused_at_once_while_the_others_go_on(metrics: Metrics, gate: Gate, audit: Audit) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def hold(request: bytes, context: grpc.ServicerContext) -> bytes:
        entered.release()
        assert leave.wait(20)
        return request

    pool = BoundedThreads(2, "held")
    boundary = Boundary(metrics, gate, audit, {"/bll.v1.InferenceService/Predict": pool})
    handlers: dict[str, Any] = {"Predict": grpc.unary_unary_rpc_method_handler(hold)}
    # No thread of the server's own: what is refused needs none.
    server = grpc.server(ThreadPoolExecutor(1), interceptors=[boundary])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bll.v1.InferenceService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/bll.v1.InferenceService/Predict")
        held = [call.future(b"x", timeout=20) for _ in range(2)]
        for _ in held:
            assert entered.acquire(timeout=20)
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                call(b"y" * 100_000, timeout=20)
            error: Any = caught.value
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "grpc-retry-pushback-ms" in dict(error.trailing_metadata())
        leave.set()
        assert [future.result() for future in held] == [b"x", b"x"]
        assert call(b"z", timeout=20) == b"z"
    server.stop(None).wait()
    pool.shutdown()
    labels = {"grpc_type": "unary", "grpc_service": "bll.v1.InferenceService", "grpc_method": "Predict"}
    counts = {
        code: metrics.registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": code})
        for code in ("OK", "UNAVAILABLE")
    }
    assert counts == {"OK": 3, "UNAVAILABLE": 3}


@pytest.mark.parametrize(("fraction", "lines"), [(0.0, []), (1.0, ["GetJob OK", "GetJob NOT_FOUND"])])
def test_calls_are_in_the_log_where_it_is_asked_for(
    fraction: float, lines: list[str], metrics: Metrics, gate: Gate, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Boundary(metrics, gate, audit, {}, fraction)])
    training_pb2_grpc.add_TrainingServiceServicer_to_server(Servicer(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        get(channel, "a")
        with pytest.raises(grpc.RpcError):
            get(channel, "none")
    server.stop(None).wait()
    assert [" ".join(message.split()[:2]) for message in caplog.messages] == lines


def test_a_status_that_the_method_chose_is_left_alone(channel: grpc.Channel, metrics: Metrics) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        get(channel, "own")
    assert caught.value.details() == "said by the method"
    assert counted(metrics, "DATA_LOSS") == 1


def test_the_answer_carries_the_callers_request_id_or_a_new_one(channel: grpc.Channel) -> None:
    stub = training_pb2_grpc.TrainingServiceStub(channel)
    for given, expected in (("mine", "mine"), ("x" * 65, None), ("no spaces", None)):
        _, call = stub.GetJob.with_call(
            training_pb2.GetJobRequest(name="a"), timeout=10, metadata=(("x-request-id", given),)
        )
        returned = dict(call.trailing_metadata())["x-request-id"]
        assert returned == expected if expected else returned != given


def test_bytes_that_are_no_message_are_the_callers_fault(channel: grpc.Channel, metrics: Metrics) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(channel, GET, b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert counted(metrics, "INVALID_ARGUMENT") == 1


def test_an_error_in_the_middle_of_a_stream_ends_it_with_its_status(channel: grpc.Channel, metrics: Metrics) -> None:
    stream = training_pb2_grpc.TrainingServiceStub(channel).WatchJob(training_pb2.WatchJobRequest(), timeout=10)
    assert next(stream) == training_pb2.WatchJobResponse()
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert counted(metrics, "NOT_FOUND", "WatchJob", "server_stream") == 1


def test_a_caller_who_leaves_is_counted_as_cancelled_and_is_no_fault(
    metrics: Metrics, gate: Gate, audit: Audit, caplog: pytest.LogCaptureFixture
) -> None:
    boundary, left = Boundary(metrics, gate, audit, {}), threading.Event()

    def talk(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(left.set)
        yield next(requests)
        left.wait(10)
        yield next(requests)  # grpc raises here: the caller has gone

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(talk)
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[boundary])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Talk": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream("/a.Service/Talk")
            replies = call(iter([b"hello"]), timeout=10)
            assert next(replies) == b"hello"
            replies.cancel()
            assert left.wait(10)
        server.stop(None).wait()
    labels = {"grpc_type": "bidi_stream", "grpc_service": "a.Service", "grpc_method": "Talk"}
    assert metrics.registry.get_sample_value("grpc_server_handled_total", labels | {"grpc_code": "CANCELLED"}) == 1
    assert not caplog.records


def test_messages_both_ways_and_calls_in_flight_are_counted(metrics: Metrics, gate: Gate, audit: Audit) -> None:
    def echo(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield from (request, request)

    def value(name: str) -> float | None:
        labels = {"grpc_type": "bidi_stream", "grpc_service": "a.Service", "grpc_method": "Echo"}
        return metrics.registry.get_sample_value(f"grpc_server_{name}", labels)

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(echo)
    go_on = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"a"
        assert go_on.wait(10)
        yield b"b"

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool, interceptors=[Boundary(metrics, gate, audit, {})])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Echo": handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.stream_stream("/a.Service/Echo")
            replies = call(requests(), timeout=10)
            assert next(replies) == b"a"
            assert (value("started_total"), value("in_flight"), value("msg_received_total")) == (1, 1, 1)
            go_on.set()
            assert list(replies) == [b"a", b"b", b"b"]
        server.stop(None).wait()
    assert (value("in_flight"), value("msg_received_total"), value("msg_sent_total")) == (0, 2, 4)
    assert value("handling_seconds_count") == 1


def test_methods_that_do_not_exist_make_no_series(channel: grpc.Channel, metrics: Metrics) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(channel, "/bll.v1.TrainingService/Invented", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "Invented" not in str(list(metrics.registry.collect()))


@pytest.mark.parametrize("form", ["json", "console"])
def test_every_line_of_the_log_says_what_it_belongs_to(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        logs.configure(form)
        with logs.bound(request_id="r1"), logs.bound(job_id="j1"):
            logging.getLogger("bll_server.test").warning("it is %s", "so")
    finally:
        root.handlers[:], root.level = handlers, level
    line = capsys.readouterr().err
    assert all(part in line for part in ("it is so", "r1", "j1"))
    if form == "json":
        entry = json.loads(line)
        assert (entry["event"], entry["level"], entry["job_id"]) == ("it is so", "warning", "j1")
