"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import grpc

from bll_client import _calls
from bll_client._channel import DEFAULT_DOWNLOAD_TIMEOUT, DEFAULT_UPLOAD_TIMEOUT
from bll_client._download import Download
from bll_client._errors import call_error
from bll_client._study_client import StudyClient
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


class Client(StudyClient):
    """Talks to one bll server. Safe to share among threads; close it, or use it in a `with` statement.

    Calls that find the server unavailable are tried again a few times, which is safe for every one of them.
    Every method raises a CallError when the server refuses or does not answer in time.
    """

    def create_job(
        self,
        spec: JobSpec | Mapping[str, Any],
        *,
        job_id: str | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
        **metadata: Unpack[JobMetadata],
    ) -> Job:
        """The new job, queued, its spec resolved and its blocks planned.

        A mapping has the fields of `JobSpec`, enum values short and in lower case. The server chooses a job id where
        none is given. A call that is repeated with the same `request_id`, a UUID, returns the same job; by default
        each call has its own. `validate_only` stores nothing. What else may be said of it is in
        `JobMetadata`. Raises InvalidSpec, InvalidArgument, AlreadyExists, ResourceExhausted.
        """
        return self._send(_calls.create_job(spec, job_id, request_id, validate_only, metadata))

    def get_job(self, name: str) -> Job:
        """The job as it stands. `name` is `jobs/{id}` or the bare id, here and below. Raises NotFound."""
        return self._send(_calls.get_job(name))

    def list_jobs(self, filter: str = "", order_by: str = "") -> Iterator[Job]:
        """Jobs, newest first, without plans, evaluations and resolved specs; pages are fetched as they are read.

        `filter` is terms that all hold, such as `state=QUEUED,RUNNING model_id=digits labels.team=x`; `order_by` is
        `create_time`, `priority` or `model_id`, with or without ` desc`. Raises InvalidArgument.
        """
        return self._pages(partial(_calls.list_jobs, filter=filter, order_by=order_by))

    def cancel_job(self, name: str) -> Job:
        """The job, asked to stop for good: CANCELLED, or CANCELLING until its workers have ended.

        Raises NotFound, and FailedPrecondition for a job that has succeeded or failed.
        """
        return self._send(_calls.cancel_job(name))

    def pause_job(self, name: str) -> Job:
        """The job, asked to give its slot back: PAUSED, or PAUSING until its blocks are safe on disk.

        One that has nothing left to train goes on to its end. Raises NotFound, and FailedPrecondition for a job that
        is being cancelled or is over.
        """
        return self._send(_calls.pause_job(name))

    def resume_job(self, name: str) -> Job:
        """The paused job, queued again, to go on from its newest checkpoint. Raises NotFound, FailedPrecondition."""
        return self._send(_calls.resume_job(name))

    def retry_job(self, name: str) -> Job:
        """The failed or cancelled job, queued again under its name, to go on from its newest checkpoint.

        Raises NotFound, FailedPrecondition.
        """
        return self._send(_calls.retry_job(name))

    def update_job(self, name: str, *, etag: str = "", **metadata: Unpack[JobMetadata]) -> Job:
        """The job with what `metadata` names replaced; a duration of 0 takes the limit away.

        Labels are replaced as a whole. With `etag`, that of a job as it was read, nothing that came in between is
        overwritten. Raises NotFound, InvalidArgument, Aborted.
        """
        return self._send(_calls.update_job(name, metadata, etag))

    def delete_job(self, name: str, *, etag: str = "") -> None:
        """Forget a job that is over or paused, with its events, checkpoints and log; models stay.

        Raises NotFound, FailedPrecondition for a job that is queued or runs, and Aborted if `etag` is not the job's.
        """
        self._send(_calls.delete_job(name, etag))

    def list_blocks(self, name: str) -> tuple[BlockStatus, ...]:
        """How each block of the job stands, by the newest that was told of it. Raises NotFound."""
        return self._send(_calls.list_blocks(name))

    def get_job_metrics(self, name: str, *, max_points: int = 0) -> JobMetrics:
        """How the job's blocks and network fared over the steps, without what a roll-back or resumption has undone.

        Of more than `max_points` reports of a block, so many are returned, evenly spread; 0 lets the server choose.
        Raises NotFound, InvalidArgument.
        """
        return self._send(_calls.get_job_metrics(name, max_points))

    def watch_job(self, name: str, after_event: int = 0, *, timeout: timedelta | None = None) -> Iterator[JobEvent]:
        """The job's events after number `after_event`, from the past into the future, each once.

        Ends after the event that makes the state final. A lost connection is taken up again where it broke, for as
        long as the client's `reconnect`. Raises NotFound, Unavailable, and DeadlineExceeded after `timeout`.
        """
        watch = Watch(name, after_event, self._reconnect, timeout)
        while True:
            stream = self._stubs.training.WatchJob(watch.request(), timeout=watch.deadline_s())
            try:
                for response in stream:
                    event = watch.accept(response)
                    if event is not None:
                        yield event
                return
            except grpc.RpcError as error:
                delay_s = watch.delay_s(error)
            finally:
                stream.cancel()
            time.sleep(delay_s)

    def tail_logs(
        self, name: str, offset: int = 0, *, follow: bool = False, timeout: timedelta | None = None
    ) -> Iterator[LogChunk]:
        """What the job's training process has written, after the first `offset` bytes.

        Ends at the end of what there is; with `follow`, when the job is over. A lost connection is taken up again where
        it broke, as in `watch_job`. Raises NotFound, InvalidArgument for an `offset` beyond the log, Unavailable, and
        DeadlineExceeded after `timeout`.
        """
        tail = Tail(name, offset, follow, self._reconnect, timeout)
        while True:
            stream = self._stubs.training.TailLogs(tail.log_request(), timeout=tail.deadline_s())
            try:
                for response in stream:
                    chunk = tail.accept_log(response)
                    if chunk is not None:
                        yield chunk
                return
            except grpc.RpcError as error:
                delay_s = tail.delay_s(error)
            finally:
                stream.cancel()
            time.sleep(delay_s)

    def wait_for_job(self, name: str, *, timeout: timedelta | None = None) -> Job:
        """The job in its final state: SUCCEEDED, FAILED or CANCELLED.

        Raises as `watch_job` does.
        """
        # One event is enough to go on from: a watcher of the whole past would read all of it.
        for _ in self.watch_job(name, self.get_job(name).last_event, timeout=timeout):
            pass
        return self.get_job(name)

    def upload_dataset(
        self,
        path: Path | str,
        dataset_id: str | None = None,
        *,
        format: DatasetFormat | str | None = None,
        on_progress: Progress | None = None,
        wait: bool = True,
        timeout: timedelta = DEFAULT_UPLOAD_TIMEOUT,
    ) -> Dataset:
        """The data set that the file or folder at `path` holds, READY, or FAILED with its error.

        A `.npz` file says what it is, and so does a folder, which is packed into a tar; of other files `format` must.
        `dataset_id` is the name of the file up to its first dot unless it is given. A stream that breaks, or an earlier
        upload of the same file that did, is taken up where it broke; a connection that is lost for longer than the
        client's `reconnect` ends the call. With `wait=False` the data set may still be VALIDATING.
        Raises InvalidInput, InvalidArgument, AlreadyExists, ResourceExhausted, Aborted, Unavailable, DeadlineExceeded.
        """
        end = time.monotonic() + timeout.total_seconds()
        with Outgoing(Path(path), dataset_id, format, on_progress, self._reconnect) as outgoing:
            while True:
                try:
                    requests = outgoing.requests(outgoing.offset(self._unfinished(outgoing.header.dataset_id)))
                    self._stubs.datasets.UploadDataset(requests, timeout=max(0.0, end - time.monotonic()))
                    break
                except grpc.RpcError as error:
                    time.sleep(outgoing.delay_s(error))
        dataset = self.get_dataset(outgoing.header.dataset_id)
        for delay_s in poll_delays(end) if wait else ():
            if dataset.state is not DatasetState.VALIDATING:
                break
            time.sleep(delay_s)
            dataset = self.get_dataset(dataset.name)
        return dataset

    def list_datasets(self) -> Iterator[Dataset]:
        """Built-in and uploaded data sets, by name, without the classes of their reports; pages are fetched as read."""
        return self._pages(_calls.list_datasets)

    def get_dataset(self, name: str) -> Dataset:
        """The data set with its report. `name` is `datasets/{id}` or the bare id. Raises NotFound."""
        return self._send(_calls.get_dataset(name))

    def delete_dataset(self, name: str) -> None:
        """Remove an uploaded data set, or what there is of an unfinished upload.

        Raises NotFound, and FailedPrecondition while a job that is not over learns from it.
        """
        self._send(_calls.delete_dataset(name))

    def list_models(self) -> Iterator[Model]:
        """Every model with its newest version, by name; pages are fetched as they are read."""
        return self._pages(_calls.list_models)

    def get_model(self, name: str) -> Model:
        """The model with all its versions. `name` is `models/{id}` or the bare id. Raises NotFound."""
        return self._send(_calls.get_model(name))

    def download_model(
        self, name: str, directory: Path | str, *, timeout: timedelta = DEFAULT_DOWNLOAD_TIMEOUT
    ) -> tuple[Path, ...]:
        """The files of one version, `model.onnx` and `manifest.json`, now in `directory`.

        `name` is `models/{id}/versions/{version}`, or `models/{id}` or the bare id for the newest version. The
        directory must not exist or be empty; it appears whole and verified by SHA-256, or not at all.
        Raises NotFound, DamagedDownload, and OSError where the files cannot be written.
        """
        request = DownloadModelRequest(name=_calls.model_name(name))
        with Download(Path(directory)) as download:
            stream = self._stubs.models.DownloadModel(request, timeout=timeout.total_seconds())
            try:
                for response in stream:
                    download.write(response)
            except grpc.RpcError as error:
                raise call_error(error) from error
            finally:
                stream.cancel()
            return download.finish()

    def predict(
        self, model: str, inputs: Array, head: Head | str = Head.MIXTURE, *, priority: int | None = None
    ) -> Prediction:
        """A distribution over classes with its uncertainties, for each row of `inputs`.

        `model` is `models/{id}` or the bare id for the newest version, or `models/{id}/versions/{version}`. `inputs`
        has shape (rows, *input shape) and the dtype that the model's metadata names. Of the calls that wait for a
        model, `priority` 1 goes first; None means 100.
        Raises NotFound, InvalidArgument, InvalidInput, Unavailable.
        """
        return self._send(_calls.predict(model, inputs, head, priority))

    def _unfinished(self, dataset_id: str) -> Upload | None:
        """Raises grpc.RpcError, since the caller may try again."""
        call = _calls.get_upload(dataset_id)
        try:
            return call.read(call.method(self._stubs)(call.request, timeout=self._timeout_s))
        except grpc.RpcError as error:
            # A bad id is refused by the upload itself, under the name of its field.
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
                return None
            raise
