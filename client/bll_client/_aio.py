"""The client for asyncio: the methods of `Client`, awaited. What each takes, answers and raises is written there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from bll_client import _calls
from bll_client._calls import Call, Page, Stubs
from bll_client._channel import (
    DEFAULT_DOWNLOAD_TIMEOUT,
    DEFAULT_RECONNECT,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT,
    TLS,
    open_aio_channel,
)
from bll_client._download import Download
from bll_client._errors import call_error
from bll_client._types import Array, Head, Job, JobEvent, Model, Prediction
from bll_client._watch import Watch
from bll_proto.v1.models_pb2 import DownloadModelRequest
from bll_proto.v1.training_pb2 import JobSpec

Result = TypeVar("Result")


class AsyncClient:
    """Talks to one bll server from one event loop. Close it, or use it in an `async with` statement.

    See `Client`, of which this is the twin.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TLS | None = None,
        timeout: timedelta = DEFAULT_TIMEOUT,
        reconnect: timedelta = DEFAULT_RECONNECT,
    ) -> None:
        """As `Client`; to be made inside the event loop."""
        self._channel = open_aio_channel(target, tls)
        # The stubs' calls are typed as blocking ones; over this channel they return awaitables.
        self._stubs: Any = Stubs(self._channel)
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

    async def create_job(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        job_id: str | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        labels: Mapping[str, str] | None = None,
        display_name: str | None = None,
        priority: int | None = None,
    ) -> Job:
        """As `Client.create_job`."""
        metadata = {"labels": labels, "display_name": display_name, "priority": priority}
        return await self._send(_calls.create_job(spec, job_id, request_id, validate_only, metadata))

    async def get_job(self, name: str) -> Job:
        """As `Client.get_job`."""
        return await self._send(_calls.get_job(name))

    def list_jobs(self) -> AsyncIterator[Job]:
        """As `Client.list_jobs`."""
        return self._pages(_calls.list_jobs)

    async def cancel_job(self, name: str) -> Job:
        """As `Client.cancel_job`."""
        return await self._send(_calls.cancel_job(name))

    async def pause_job(self, name: str) -> Job:
        """As `Client.pause_job`."""
        return await self._send(_calls.pause_job(name))

    async def resume_job(self, name: str) -> Job:
        """As `Client.resume_job`."""
        return await self._send(_calls.resume_job(name))

    async def retry_job(self, name: str) -> Job:
        """As `Client.retry_job`."""
        return await self._send(_calls.retry_job(name))

    async def update_job(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        display_name: str | None = None,
        priority: int | None = None,
        etag: str = "",
    ) -> Job:
        """As `Client.update_job`."""
        metadata = {"labels": labels, "display_name": display_name, "priority": priority}
        return await self._send(_calls.update_job(name, metadata, etag))

    async def delete_job(self, name: str, *, etag: str = "") -> None:
        """As `Client.delete_job`."""
        await self._send(_calls.delete_job(name, etag))

    async def watch_job(
        self, name: str, after_event: int = 0, *, timeout: timedelta | None = None
    ) -> AsyncIterator[JobEvent]:
        """As `Client.watch_job`."""
        watch = Watch(name, after_event, self._reconnect, timeout)
        while True:
            stream = self._stubs.training.WatchJob(watch.request(), timeout=watch.deadline_s())
            try:
                async for response in stream:
                    event = watch.accept(response)
                    if event is not None:
                        yield event
                return
            except grpc.RpcError as error:
                delay_s = watch.delay_s(error)
            finally:
                stream.cancel()
            await asyncio.sleep(delay_s)

    async def wait_for_job(self, name: str, *, timeout: timedelta | None = None) -> Job:
        """As `Client.wait_for_job`."""
        job = await self.get_job(name)
        async for _ in self.watch_job(name, job.last_event, timeout=timeout):
            pass
        return await self.get_job(name)

    def list_models(self) -> AsyncIterator[Model]:
        """As `Client.list_models`."""
        return self._pages(_calls.list_models)

    async def get_model(self, name: str) -> Model:
        """As `Client.get_model`."""
        return await self._send(_calls.get_model(name))

    async def download_model(
        self, name: str, directory: Path | str, *, timeout: timedelta = DEFAULT_DOWNLOAD_TIMEOUT
    ) -> tuple[Path, ...]:
        """As `Client.download_model`."""
        request = DownloadModelRequest(name=_calls.model_name(name))
        with Download(Path(directory)) as download:
            stream = self._stubs.models.DownloadModel(request, timeout=timeout.total_seconds())
            try:
                async for response in stream:
                    await asyncio.to_thread(download.write, response)
            except grpc.RpcError as error:
                raise call_error(error) from error
            finally:
                stream.cancel()
            return download.finish()

    async def predict(self, model: str, inputs: Array, head: Head | str = Head.MIXTURE) -> Prediction:
        """As `Client.predict`."""
        return await self._send(_calls.predict(model, inputs, head))

    async def _send(self, call: Call[Any, Any, Result]) -> Result:
        try:
            response = await call.method(self._stubs)(call.request, timeout=self._timeout_s)
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
