"""Both clients with one face, and the canned server that they talk to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bll_client import AsyncClient, Client

from .canned_server import CannedServer


class BlockingAsyncClient:
    """An AsyncClient on an event loop of its own, with the face of Client, so that one suite serves both."""

    def __init__(self, target: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = self._runner.run(self._open(target, options))

    @staticmethod
    async def _open(target: str, options: dict[str, Any]) -> AsyncClient:
        return AsyncClient(target, **options)

    def __enter__(self) -> BlockingAsyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self._client, name)(*args, **kwargs)
            return self._iterate(result) if hasattr(result, "__anext__") else self._runner.run(result)

        return call

    def _iterate(self, iterator: Any) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(iterator)

        try:
            while True:
                try:
                    yield self._runner.run(step())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(iterator.aclose())


@pytest.fixture
def server() -> Iterator[CannedServer]:
    canned = CannedServer()
    canned.start()
    yield canned
    canned.stop()


@pytest.fixture(params=[Client, BlockingAsyncClient], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Opens either client."""
    kind: Callable[..., Any] = request.param
    return kind


@pytest.fixture
def client(connect: Callable[..., Any], server: CannedServer) -> Iterator[Any]:
    with connect(server.target) as opened:
        yield opened
