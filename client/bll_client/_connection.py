"""What both clients have in common below their methods: one connection, and how a call is sent over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from bll_client._calls import Call, Page, Stubs
from bll_client._channel import (
    DEFAULT_RECONNECT,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    TLS,
    metadata,
    open_aio_channel,
    open_channel,
)
from bll_client._errors import call_error

Result = TypeVar("Result")


class Connection:
    """Of the blocking client."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TLS | None = None,
        token: str | None = None,
        insecure: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        reconnect: timedelta = DEFAULT_RECONNECT,
    ) -> None:
        """Connects when the first call is made, in plain text unless `tls` says how to encrypt.

        `target` is `host:port`, `timeout` the deadline of every call that has one answer (its retries included), and
        `reconnect` how long a watcher tries to get back to a server that has gone. The `token` goes with every call;
        without `tls` it is sent to this machine alone, unless `insecure` accepts that others may read it.
        Raises PlaintextToken.
        """
        carried = metadata(target, tls, token, insecure)
        self._channel = open_channel(target, tls)
        self._stubs = Stubs(self._channel, carried)
        self._timeout_s = timeout.total_seconds()
        self._reconnect = reconnect

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls and close the connection."""
        self._channel.close()

    def _send(self, call: Call[Any, Any, Result], timeout: timedelta | None = None) -> Result:
        """The answer, within `timeout` or else that of every call. Raises the client's error."""
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        try:
            response = call.method(self._stubs)(call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise call_error(error) from error
        return call.read(response)

    def _pages(self, call: Callable[[str], Call[Any, Any, Page[Result]]]) -> Iterator[Result]:
        page = self._send(call(""))
        yield from page.items
        while page.next_token:
            page = self._send(call(page.next_token))
            yield from page.items


class AsyncConnection:
    """Of the client for asyncio."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TLS | None = None,
        token: str | None = None,
        insecure: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        reconnect: timedelta = DEFAULT_RECONNECT,
    ) -> None:
        """As `Client`; to be made inside the event loop."""
        carried = metadata(target, tls, token, insecure)
        self._channel = open_aio_channel(target, tls)
        # The stubs' calls are typed as blocking ones; over this channel they return awaitables.
        self._stubs: Any = Stubs(self._channel, carried)
        self._timeout_s = timeout.total_seconds()
        self._reconnect = reconnect

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and close the connection."""
        await self._channel.close()

    async def _send(self, call: Call[Any, Any, Result], timeout: timedelta | None = None) -> Result:
        """The answer, within `timeout` or else that of every call. Raises the client's error."""
        timeout_s = self._timeout_s if timeout is None else timeout.total_seconds()
        try:
            response = await call.method(self._stubs)(call.request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise call_error(error) from error
        return call.read(response)

    async def _pages(self, call: Callable[[str], Call[Any, Any, Page[Result]]]) -> AsyncIterator[Result]:
        token, first = "", True
        while first or token:
            page = await self._send(call(token))
            for item in page.items:
                yield item
            token, first = page.next_token, False
