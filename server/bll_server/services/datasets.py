"""DatasetService: takes files in chunks, and shows what is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator

import grpc

from bll.choices import BUILT_IN_DATA
from bll.data.stored import ID
from bll.errors import Violation
from bll_proto.v1 import datasets_pb2, datasets_pb2_grpc
from bll_server.auth.caller import caller
from bll_server.datasets.records import Dataset
from bll_server.datasets.store import Datasets
from bll_server.datasets.uploads import Upload
from bll_server.errors import InvalidRequest
from bll_server.metrics import DatasetMetrics
from bll_server.services.dataset_messages import built_in_message, dataset_message, format_number, header_from_message
from bll_server.silence import heard

SILENCE_S = 60.0
"""An upload that brings nothing for so long loses its thread, of which there are few; it can be taken up again."""
_LARGEST_PAGE = 1000
_DEFAULT_PAGE = 50
_NAME = re.compile(rf"datasets/({ID.pattern})")
_UPLOAD_NAME = re.compile(rf"datasets/({ID.pattern})/upload")


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """See `datasets.proto`."""

    def __init__(self, datasets: Datasets, metrics: DatasetMetrics) -> None:
        self._datasets = datasets
        self._metrics = metrics

    def UploadDataset(
        self, request_iterator: Iterator[datasets_pb2.UploadDatasetRequest], context: grpc.ServicerContext
    ) -> datasets_pb2.UploadDatasetResponse:
        requests = heard(request_iterator, SILENCE_S, context.cancel)
        first = next(requests, datasets_pb2.UploadDatasetRequest())
        if first.WhichOneof("part") != "header":
            raise InvalidRequest(Violation("header", "must be the first message of an upload"))
        begun = self._datasets.begin(header_from_message(first.header), caller().owner)
        dataset = begun if isinstance(begun, Dataset) else self._receive(begun, requests)
        return datasets_pb2.UploadDatasetResponse(dataset=dataset_message(dataset))

    def GetUpload(
        self, request: datasets_pb2.GetUploadRequest, context: grpc.ServicerContext
    ) -> datasets_pb2.GetUploadResponse:
        dataset_id = _parsed(_UPLOAD_NAME, request.name, "datasets/{dataset_id}/upload")
        header, committed_bytes = self._datasets.progress(dataset_id)
        upload = datasets_pb2.Upload(
            name=request.name,
            format=format_number(header.format),
            total_bytes=header.total_bytes,
            sha256=header.sha256,
            committed_bytes=committed_bytes,
        )
        return datasets_pb2.GetUploadResponse(upload=upload)

    def GetDataset(
        self, request: datasets_pb2.GetDatasetRequest, context: grpc.ServicerContext
    ) -> datasets_pb2.GetDatasetResponse:
        dataset_id = _parsed(_NAME, request.name, "datasets/{dataset_id}")
        if dataset_id in BUILT_IN_DATA:
            return datasets_pb2.GetDatasetResponse(dataset=built_in_message(dataset_id))
        return datasets_pb2.GetDatasetResponse(dataset=dataset_message(self._datasets.get(dataset_id)))

    def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: grpc.ServicerContext
    ) -> datasets_pb2.ListDatasetsResponse:
        if not 0 <= request.page_size <= _LARGEST_PAGE:
            rule = f"must be between 0 and {_LARGEST_PAGE}, got {request.page_size}"
            raise InvalidRequest(Violation("page_size", rule))
        # The token is the last id of the page before, so a page stays right when data sets come in between.
        if request.page_token and not ID.fullmatch(request.page_token):
            rule = f"must come from a page before, got {request.page_token!r:.200}"
            raise InvalidRequest(Violation("page_token", rule))
        uploaded = self._datasets.all()
        size = request.page_size or _DEFAULT_PAGE
        ids = sorted(i for i in {*uploaded, *BUILT_IN_DATA} if i > request.page_token)
        return datasets_pb2.ListDatasetsResponse(
            datasets=[
                dataset_message(uploaded[i], classes=False) if i in uploaded else built_in_message(i)
                for i in ids[:size]
            ],
            next_page_token=ids[size - 1] if len(ids) > size else "",
        )

    def DeleteDataset(
        self, request: datasets_pb2.DeleteDatasetRequest, context: grpc.ServicerContext
    ) -> datasets_pb2.DeleteDatasetResponse:
        self._datasets.delete(_parsed(_NAME, request.name, "datasets/{dataset_id}"), caller().sees_only)
        return datasets_pb2.DeleteDatasetResponse()

    def _receive(self, upload: Upload, requests: Iterator[datasets_pb2.UploadDatasetRequest]) -> Dataset:
        try:
            with self._metrics.upload():
                for request in requests:
                    if request.WhichOneof("part") != "chunk":
                        raise InvalidRequest(Violation("chunk", "must be each message after the first"))
                    self._datasets.append(upload, request.chunk.offset, request.chunk.data)
                    self._metrics.upload_bytes.inc(len(request.chunk.data))
                return self._datasets.finish(upload)
        finally:
            self._datasets.release(upload)


def _parsed(pattern: re.Pattern[str], name: str, form: str) -> str:
    match = pattern.fullmatch(name)
    if match is None:
        raise InvalidRequest(Violation("name", f"must be {form}, got {name!r:.200}"))
    return match[1]
