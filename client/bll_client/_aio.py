"""The client for asyncio: the methods of `Client`, awaited. What each takes, answers and raises is written there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import grpc

from bll_client import _calls
from bll_client._channel import DEFAULT_DOWNLOAD_TIMEOUT, DEFAULT_UPLOAD_TIMEOUT
from bll_client._download import Download
from bll_client._errors import call_error
from bll_client._study_client import AsyncStudyClient
from bll_client._types import (
    Array,
    BlockStatus,
    Dataset,
    DatasetFormat,
    DatasetState,
    Head,
    Job,
    JobEvent,
    JobMetadata,
    JobMetrics,
    LogChunk,
    Model,
    Prediction,
)
from bll_client._upload import Outgoing, Progress, poll_delays
from bll_client._watch import Tail, Watch
from bll_proto.v1.datasets_pb2 import Upload
from bll_proto.v1.models_pb2 import DownloadModelRequest
from bll_proto.v1.training_pb2 import JobSpec

Result = TypeVar("Result")


class AsyncClient(AsyncStudyClient):
    """Talks to one bll server from one event loop. Close it, or use it in an `async with` statement.

    See `Client`, of which this is the twin.
    """

    async def create_job(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        job_id: str | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        **metadata: Unpack[JobMetadata],
    ) -> Job:
        """As `Client.create_job`."""
        return await self._send(_calls.create_job(spec, job_id, request_id, validate_only, metadata))

    async def get_job(self, name: str) -> Job:
        """As `Client.get_job`."""
        return await self._send(_calls.get_job(name))

    def list_jobs(self, filter: str = "", order_by: str = "") -> AsyncIterator[Job]:
        """As `Client.list_jobs`."""
        return self._pages(partial(_calls.list_jobs, filter=filter, order_by=order_by))

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

    async def update_job(self, name: str, *, etag: str = "", **metadata: Unpack[JobMetadata]) -> Job:
        """As `Client.update_job`."""
        return await self._send(_calls.update_job(name, metadata, etag))

    async def delete_job(self, name: str, *, etag: str = "") -> None:
        """As `Client.delete_job`."""
        await self._send(_calls.delete_job(name, etag))

    async def list_blocks(self, name: str) -> tuple[BlockStatus, ...]:
        """As `Client.list_blocks`."""
        return await self._send(_calls.list_blocks(name))

    async def get_job_metrics(self, name: str, *, max_points: int = 0) -> JobMetrics:
        """As `Client.get_job_metrics`."""
        return await self._send(_calls.get_job_metrics(name, max_points))

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

    async def tail_logs(
        self, name: str, offset: int = 0, *, follow: bool = False, timeout: timedelta | None = None
    ) -> AsyncIterator[LogChunk]:
        """As `Client.tail_logs`."""
        tail = Tail(name, offset, follow, self._reconnect, timeout)
        while True:
            stream = self._stubs.training.TailLogs(tail.log_request(), timeout=tail.deadline_s())
            try:
                async for response in stream:
                    chunk = tail.accept_log(response)
                    if chunk is not None:
                        yield chunk
                return
            except grpc.RpcError as error:
                delay_s = tail.delay_s(error)
            finally:
                stream.cancel()
            await asyncio.sleep(delay_s)

    async def wait_for_job(self, name: str, *, timeout: timedelta | None = None) -> Job:
        """As `Client.wait_for_job`."""
        job = await self.get_job(name)
        async for _ in self.watch_job(name, job.last_event, timeout=timeout):
            pass
        return await self.get_job(name)

    async def upload_dataset(
        self,
        path: Path | str,
        dataset_id: str | None = None,
        *,
        format: DatasetFormat | str | None = None,
        on_progress: Progress | None = None,
        wait: bool = True,
        timeout: timedelta = DEFAULT_UPLOAD_TIMEOUT,
    ) -> Dataset:
        """As `Client.upload_dataset`."""
        end = time.monotonic() + timeout.total_seconds()
        make = partial(Outgoing, Path(path), dataset_id, format, on_progress, self._reconnect)
        with await asyncio.to_thread(make) as outgoing:
            while True:
                try:
                    offset = outgoing.offset(await self._unfinished(outgoing.header.dataset_id))
                    requests = _in_threads(outgoing.requests(offset))
                    await self._stubs.datasets.UploadDataset(requests, timeout=max(0.0, end - time.monotonic()))
                    break
                except grpc.RpcError as error:
                    await asyncio.sleep(outgoing.delay_s(error))
        dataset = await self.get_dataset(outgoing.header.dataset_id)
        for delay_s in poll_delays(end) if wait else ():
            if dataset.state is not DatasetState.VALIDATING:
                break
            await asyncio.sleep(delay_s)
            dataset = await self.get_dataset(dataset.name)
        return dataset

    def list_datasets(self) -> AsyncIterator[Dataset]:
        """As `Client.list_datasets`."""
        return self._pages(_calls.list_datasets)

    async def get_dataset(self, name: str) -> Dataset:
        """As `Client.get_dataset`."""
        return await self._send(_calls.get_dataset(name))

    async def delete_dataset(self, name: str) -> None:
        """As `Client.delete_dataset`."""
        await self._send(_calls.delete_dataset(name))

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

    async def predict(
        self, model: str, inputs: Array, head: Head | str = Head.MIXTURE, *, priority: int | None = None
    ) -> Prediction:
        """As `Client.predict`."""
        return await self._send(_calls.predict(model, inputs, head, priority))

    async def _unfinished(self, dataset_id: str) -> Upload | None:
        call = _calls.get_upload(dataset_id)
        try:
            return call.read(await cast(Any, call.method(self._stubs)(call.request, timeout=self._timeout_s)))
        except grpc.RpcError as error:
            # A bad id is refused by the upload itself, under the name of its field.
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise


async def _in_threads(items: Iterator[Result]) -> AsyncIterator[Result]:
    """`items`, each taken on a thread: they are read from a disk."""
    while (item := await asyncio.to_thread(next, items, None)) is not None:
        yield item
