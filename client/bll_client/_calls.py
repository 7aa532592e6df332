"""Every unary call, described once for both clients: which method, what is sent, how the answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar, cast
from uuid import uuid4

import grpc
import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from bll_client._convert import read
from bll_client._errors import InvalidInput
from bll_client._spec import parse_spec
from bll_client._types import Array, BlockStatus, Dataset, Head, Job, JobMetrics, Model, Prediction
from bll_proto import tensors
from bll_proto.v1 import datasets_pb2, inference_pb2, models_pb2, training_pb2
from bll_proto.v1.datasets_pb2_grpc import DatasetServiceStub
from bll_proto.v1.inference_pb2_grpc import InferenceServiceStub
from bll_proto.v1.models_pb2_grpc import ModelServiceStub
from bll_proto.v1.studies_pb2_grpc import StudyServiceStub
from bll_proto.v1.training_pb2_grpc import TrainingServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")


Metadata = tuple[tuple[str, str], ...]


class _Carrying:
    """A channel whose calls all carry the same metadata: an interceptor would change what the calls return."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: Metadata) -> None:
        self._channel = channel
        self._metadata = metadata

    def __getattr__(self, kind: str) -> Callable[..., Any]:
        make = getattr(self._channel, kind)
        return lambda *arguments, **more: partial(make(*arguments, **more), metadata=self._metadata)


class Stubs:
    """The generated stubs over one channel. Over an aio channel, their calls have to be awaited."""

    def __init__(self, channel: grpc.Channel | grpc.aio.Channel, metadata: Metadata) -> None:
        """Every call carries the `metadata`."""
        channel = cast(grpc.Channel, _Carrying(channel, metadata))
        self.training = TrainingServiceStub(channel)
        self.models = ModelServiceStub(channel)
        self.inference = InferenceServiceStub(channel)
        self.datasets = DatasetServiceStub(channel)
        self.studies = StudyServiceStub(channel)


@dataclass(frozen=True)
class Call(Generic[Request, Response, Result]):
    """One call that is yet to be sent."""

    method: Callable[[Stubs], grpc.UnaryUnaryMultiCallable[Request, Response]]
    request: Request
    read: Callable[[Response], Result]


@dataclass(frozen=True)
class Page(Generic[Result]):
    """Part of a list; an empty `next_token` marks the last."""

    items: tuple[Result, ...]
    next_token: str


def job_name(name: str) -> str:
    """`jobs/{id}`, from that or from the bare id."""
    return name if name.startswith("jobs/") else f"jobs/{name}"


def model_name(name: str) -> str:
    """`models/{id}` and what follows it, from that or from the bare id."""
    return name if name.startswith("models/") else f"models/{name}"


def create_job(
    spec: training_pb2.JobSpec | Mapping[str, Any],
    job_id: str | None,
    request_id: str | None,
    validate_only: bool,
    metadata: Mapping[str, Any],
) -> Call[training_pb2.CreateJobRequest, training_pb2.CreateJobResponse, Job]:
    """Raises InvalidSpec."""
    request = training_pb2.CreateJobRequest(
        job=training_pb2.Job(
            spec=spec if isinstance(spec, training_pb2.JobSpec) else parse_spec(spec), **given(metadata)
        ),
        job_id=job_id or "",
        request_id=request_id or str(uuid4()),
        validate_only=validate_only,
    )
    return Call(lambda stubs: stubs.training.CreateJob, request, lambda response: read(Job, response.job))


def get_job(name: str) -> Call[training_pb2.GetJobRequest, training_pb2.GetJobResponse, Job]:
    request = training_pb2.GetJobRequest(name=job_name(name))
    return Call(lambda stubs: stubs.training.GetJob, request, lambda response: read(Job, response.job))


def list_jobs(
    page_token: str, filter: str, order_by: str
) -> Call[training_pb2.ListJobsRequest, training_pb2.ListJobsResponse, Page[Job]]:
    return Call(
        lambda stubs: stubs.training.ListJobs,
        training_pb2.ListJobsRequest(page_token=page_token, filter=filter, order_by=order_by),
        lambda response: Page(tuple(read(Job, job) for job in response.jobs), response.next_page_token),
    )


def cancel_job(name: str) -> Call[training_pb2.CancelJobRequest, training_pb2.CancelJobResponse, Job]:
    request = training_pb2.CancelJobRequest(name=job_name(name))
    return Call(lambda stubs: stubs.training.CancelJob, request, lambda response: read(Job, response.job))


def pause_job(name: str) -> Call[training_pb2.PauseJobRequest, training_pb2.PauseJobResponse, Job]:
    request = training_pb2.PauseJobRequest(name=job_name(name))
    return Call(lambda stubs: stubs.training.PauseJob, request, lambda response: read(Job, response.job))


def resume_job(name: str) -> Call[training_pb2.ResumeJobRequest, training_pb2.ResumeJobResponse, Job]:
    request = training_pb2.ResumeJobRequest(name=job_name(name))
    return Call(lambda stubs: stubs.training.ResumeJob, request, lambda response: read(Job, response.job))


def retry_job(name: str) -> Call[training_pb2.RetryJobRequest, training_pb2.RetryJobResponse, Job]:
    request = training_pb2.RetryJobRequest(name=job_name(name))
    return Call(lambda stubs: stubs.training.RetryJob, request, lambda response: read(Job, response.job))


def update_job(
    name: str, metadata: Mapping[str, Any], etag: str
) -> Call[training_pb2.UpdateJobRequest, training_pb2.UpdateJobResponse, Job]:
    changes = given(metadata)
    request = training_pb2.UpdateJobRequest(
        job=training_pb2.Job(name=job_name(name), etag=etag, **changes), update_mask=FieldMask(paths=list(changes))
    )
    return Call(lambda stubs: stubs.training.UpdateJob, request, lambda response: read(Job, response.job))


def delete_job(name: str, etag: str) -> Call[training_pb2.DeleteJobRequest, training_pb2.DeleteJobResponse, None]:
    request = training_pb2.DeleteJobRequest(name=job_name(name), etag=etag)
    return Call(lambda stubs: stubs.training.DeleteJob, request, lambda response: None)


def list_blocks(
    name: str,
) -> Call[training_pb2.ListBlocksRequest, training_pb2.ListBlocksResponse, tuple[BlockStatus, ...]]:
    request = training_pb2.ListBlocksRequest(parent=job_name(name))
    return Call(
        lambda stubs: stubs.training.ListBlocks,
        request,
        lambda response: tuple(read(BlockStatus, block) for block in response.blocks),
    )


def get_job_metrics(
    name: str, max_points: int
) -> Call[training_pb2.GetJobMetricsRequest, training_pb2.GetJobMetricsResponse, JobMetrics]:
    request = training_pb2.GetJobMetricsRequest(name=job_name(name), max_points=max_points)
    return Call(lambda stubs: stubs.training.GetJobMetrics, request, lambda response: read(JobMetrics, response))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None, as a message takes it."""
    return {name: _sent(value) for name, value in values.items() if value is not None}


def _sent(value: Any) -> Any:
    if not isinstance(value, timedelta):
        return value
    duration = Duration()
    duration.FromTimedelta(value)
    return duration


def list_models(page_token: str) -> Call[models_pb2.ListModelsRequest, models_pb2.ListModelsResponse, Page[Model]]:
    return Call(
        lambda stubs: stubs.models.ListModels,
        models_pb2.ListModelsRequest(page_token=page_token),
        lambda response: Page(tuple(read(Model, model) for model in response.models), response.next_page_token),
    )


def get_model(name: str) -> Call[models_pb2.GetModelRequest, models_pb2.GetModelResponse, Model]:
    request = models_pb2.GetModelRequest(name=model_name(name))
    return Call(lambda stubs: stubs.models.GetModel, request, lambda response: read(Model, response.model))


def dataset_name(name: str) -> str:
    """`datasets/{id}`, from that or from the bare id."""
    return name if name.startswith("datasets/") else f"datasets/{name}"


def list_datasets(
    page_token: str,
) -> Call[datasets_pb2.ListDatasetsRequest, datasets_pb2.ListDatasetsResponse, Page[Dataset]]:
    return Call(
        lambda stubs: stubs.datasets.ListDatasets,
        datasets_pb2.ListDatasetsRequest(page_token=page_token),
        lambda response: Page(tuple(read(Dataset, item) for item in response.datasets), response.next_page_token),
    )


def get_dataset(name: str) -> Call[datasets_pb2.GetDatasetRequest, datasets_pb2.GetDatasetResponse, Dataset]:
    request = datasets_pb2.GetDatasetRequest(name=dataset_name(name))
    return Call(lambda stubs: stubs.datasets.GetDataset, request, lambda response: read(Dataset, response.dataset))


def get_upload(
    dataset_id: str,
) -> Call[datasets_pb2.GetUploadRequest, datasets_pb2.GetUploadResponse, datasets_pb2.Upload]:
    request = datasets_pb2.GetUploadRequest(name=f"datasets/{dataset_id}/upload")
    return Call(lambda stubs: stubs.datasets.GetUpload, request, lambda response: response.upload)


def delete_dataset(name: str) -> Call[datasets_pb2.DeleteDatasetRequest, datasets_pb2.DeleteDatasetResponse, None]:
    request = datasets_pb2.DeleteDatasetRequest(name=dataset_name(name))
    return Call(lambda stubs: stubs.datasets.DeleteDataset, request, lambda response: None)


def predict(
    model: str, inputs: Array, head: Head | str, priority: int | None
) -> Call[inference_pb2.PredictRequest, inference_pb2.PredictResponse, Prediction]:
    """Raises InvalidInput."""
    try:
        head = Head(head)
        request = inference_pb2.PredictRequest(
            model=model_name(model),
            input=tensors.to_tensor(np.asarray(inputs)),
            head=inference_pb2.Head.Value(f"HEAD_{head.name}"),
            priority=priority or 0,
        )
    except ValueError as error:
        raise InvalidInput(str(error)) from error
    return Call(lambda stubs: stubs.inference.Predict, request, lambda response: read(Prediction, response))
