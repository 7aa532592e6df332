"""What one client, or one owner, can take from a server."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bll_client import Client, ResourceExhausted
from bll_server.app import Server
from bll_server.auth.roles import Role
from bll_server.auth.tokens import TOKENS, Tokens
from bll_server.settings import Settings

from .jobs import SPEC, WAIT


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One for each test: calls that were cut off count for a moment longer."""
    limits: dict[str, Any] = {"max_calls": 2, "max_streams": 1, "max_owner_jobs": 1}
    server = Server(Settings(port=0, metrics_port=0, data_dir=tmp_path, drain_s=5, **limits), WAIT)
    yield server
    server.stop()


def connection(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


def open_stream(channel: grpc.Channel, token: str) -> Any:
    """A stream that has been answered once, and whose client may ask more."""
    questions: queue.Queue[reflection_pb2.ServerReflectionRequest] = queue.Queue()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    metadata = (("authorization", f"Bearer {token}"),)
    stream = stub.ServerReflectionInfo(iter(questions.get, None), timeout=60, metadata=metadata)
    questions.put(reflection_pb2.ServerReflectionRequest(list_services=""))
    next(stream)
    stream.add_done_callback(lambda _: questions.put(None))  # type: ignore[arg-type]  # ends the reader
    return stream


def check(channel: grpc.Channel, timeout_s: float) -> grpc.StatusCode:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    try:
        stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_connection_and_the_server_have_room_for_so_many_calls(server: Server, tmp_path: Path) -> None:
    _, token = Tokens(tmp_path / TOKENS).create("vic", Role.VIEWER, None)
    with ExitStack() as opened:
        first, second, third = (opened.enter_context(connection(server.address)) for _ in range(3))
        streams = [open_stream(first, token)]
        assert check(first, 0.5) is grpc.StatusCode.DEADLINE_EXCEEDED  # it never left the client
        assert check(second, 30) is grpc.StatusCode.OK
        streams.append(open_stream(second, token))
        assert check(third, 30) is grpc.StatusCode.RESOURCE_EXHAUSTED
        for stream in streams:
            stream.cancel()


def test_an_owner_with_too_many_unfinished_jobs_is_refused_and_told_how_many(server: Server, tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / TOKENS)

    def client(owner: str) -> Client:
        _, text = tokens.create(owner, Role.TRAINER, None)
        return Client(server.address, token=text, timeout=timedelta(seconds=90))

    with client("ann") as ann:
        ann.create_job(SPEC)
        with pytest.raises(ResourceExhausted, match="ann may have 1 jobs that are not over, and has 1") as caught:
            ann.create_job(SPEC)
        assert caught.value.reason == "QUOTA_EXCEEDED"
    with client("bob") as bob:
        bob.create_job(SPEC)
