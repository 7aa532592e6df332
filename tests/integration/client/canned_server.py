"""A real gRPC server on loopback with canned answers, for the clients and the command line.

It implements the generated servicers in the simplest way that a client can tell from nothing: jobs and events are
lists that a test fills, and failures are queued by the test.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from bll_client._spec import parse_spec
from bll_proto import tensors
from bll_proto.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    studies_pb2_grpc,
    tensor_pb2,
    training_pb2,
    training_pb2_grpc,
)

from .canned_studies import CannedStudies

State = training_pb2.JobState
LOG = b"first line\nlast line\n"
TIME = Timestamp(seconds=1_700_000_000)
SPEC = {"model_id": "fashion", "data": {"name": "digits"}, "epochs": 2, "batch_size": 100}


def rich_status(code: int, message: str, *details: Any) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


UNAVAILABLE = rich_status(code_pb2.UNAVAILABLE, "the server is draining")


class CannedServer(
    training_pb2_grpc.TrainingServiceServicer,
    models_pb2_grpc.ModelServiceServicer,
    inference_pb2_grpc.InferenceServiceServicer,
):
    """Canned answers, and the requests that asked for them."""

    def __init__(self) -> None:
        self.jobs: dict[str, training_pb2.Job] = {}
        self.events: list[training_pb2.JobEvent | None] = []
        """Of every job; None is a keep-alive."""
        self.models = [model(f"models/m{i}") for i in range(5)] + [model("models/fashion")]
        self.studies = CannedStudies(self._enter)
        self.download: list[models_pb2.DownloadModelResponse] = []
        self.failures: defaultdict[str, list[status_pb2.Status]] = defaultdict(list)
        """By method: what its next calls answer instead."""
        self.drop_after: list[int] = []
        """Numbers of events after which a watch stream breaks, once each."""
        self.hang_after: int | None = None
        """Number of the event after which a watch stream says no more, until the client leaves."""
        self.log_breaks = 0
        """How many streams of the log break after their first piece."""
        self.requests: list[Any] = []
        self.watched = threading.Event()
        """Set when a watcher hangs."""
        self.left = threading.Event()
        """Set when a hanging watcher has gone."""

    def start(self, port: int = 0) -> int:
        options = [("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(8, thread_name_prefix="canned"), options=options)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(self, self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        studies_pb2_grpc.add_StudyServiceServicer_to_server(self.studies, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        return self.port

    def stop(self) -> None:
        self._server.stop(0).wait()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def sent(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        if self.failures[method]:
            context.abort_with_status(rpc_status.to_status(self.failures[method].pop(0)))

    def _job(self, name: str, context: grpc.ServicerContext) -> training_pb2.Job:
        if name not in self.jobs:
            status = rich_status(
                code_pb2.NOT_FOUND, f"no job {name!r}", error_details_pb2.ErrorInfo(reason="NOT_FOUND", domain="bll")
            )
            context.abort_with_status(rpc_status.to_status(status))
        return self.jobs[name]

    def CreateJob(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("CreateJob", request, context)
        name = f"jobs/{request.job_id or 'chosen'}"
        created = job(name, request.job.spec)
        if not request.validate_only:
            self.jobs[name] = created
        return training_pb2.CreateJobResponse(job=created)

    def GetJob(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("GetJob", request, context)
        return training_pb2.GetJobResponse(job=self._job(request.name, context))

    def ListJobs(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("ListJobs", request, context)
        jobs, token = page(list(self.jobs.values()), request.page_token)
        return training_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    def _change(self, method, request, context, state):  # type: ignore[no-untyped-def]
        self._enter(method, request, context)
        found = self._job(request.name, context)
        found.state = state
        return found

    def CancelJob(self, request, context):  # type: ignore[no-untyped-def]
        found = self._change("CancelJob", request, context, State.JOB_STATE_CANCELLED)  # type: ignore[no-untyped-call]
        return training_pb2.CancelJobResponse(job=found)

    def PauseJob(self, request, context):  # type: ignore[no-untyped-def]
        found = self._change("PauseJob", request, context, State.JOB_STATE_PAUSED)  # type: ignore[no-untyped-call]
        return training_pb2.PauseJobResponse(job=found)

    def ResumeJob(self, request, context):  # type: ignore[no-untyped-def]
        found = self._change("ResumeJob", request, context, State.JOB_STATE_QUEUED)  # type: ignore[no-untyped-call]
        return training_pb2.ResumeJobResponse(job=found)

    def RetryJob(self, request, context):  # type: ignore[no-untyped-def]
        found = self._change("RetryJob", request, context, State.JOB_STATE_QUEUED)  # type: ignore[no-untyped-call]
        return training_pb2.RetryJobResponse(job=found)

    def UpdateJob(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("UpdateJob", request, context)
        found = self._job(request.job.name, context)
        for name in request.update_mask.paths:
            found.ClearField(name)
            found.MergeFrom(training_pb2.Job(**{name: getattr(request.job, name)}))
        return training_pb2.UpdateJobResponse(job=found)

    def DeleteJob(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("DeleteJob", request, context)
        del self.jobs[self._job(request.name, context).name]
        return training_pb2.DeleteJobResponse()

    def ListBlocks(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("ListBlocks", request, context)
        self._job(request.parent, context)
        blocks = [
            training_pb2.BlockStatus(
                block=0,
                state=training_pb2.BLOCK_STATE_TRAINING,
                device="cpu",
                worker=0,
                progress=training_pb2.BlockProgress(block=0, step=10, samples_per_s=100, wait_s=0.25),
                checkpoint_step=10,
                checkpoint_time=TIME,
            ),
            training_pb2.BlockStatus(block=1, state=training_pb2.BLOCK_STATE_IDLE, device="cuda:1"),
        ]
        return training_pb2.ListBlocksResponse(blocks=blocks)

    def GetJobMetrics(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("GetJobMetrics", request, context)
        self._job(request.name, context)
        reports = [training_pb2.BlockProgress(block=0, step=step, loss_nats=1.5) for step in (5, 10)]
        series = training_pb2.BlockSeries(block=0, reports=reports)
        return training_pb2.GetJobMetricsResponse(blocks=[series], evaluations=[evaluation("validation")])

    def TailLogs(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("TailLogs", request, context)
        self._job(request.name, context)
        yield training_pb2.TailLogsResponse(next_offset=request.offset)
        for offset in range(request.offset, len(LOG), 4):
            data = LOG[offset : offset + 4]
            yield training_pb2.TailLogsResponse(data=data, next_offset=offset + len(data))
            if self.log_breaks:
                self.log_breaks -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")

    def WatchJob(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("WatchJob", request, context)
        watched = self._job(request.name, context)
        for event in self.events:
            if event is None:
                yield training_pb2.WatchJobResponse()
                continue
            if event.number <= request.after_event:
                continue
            yield training_pb2.WatchJobResponse(event=event)
            if event.HasField("state_change"):
                watched.state = event.state_change.state
            if event.number in self.drop_after:
                self.drop_after.remove(event.number)
                context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
            if event.number == self.hang_after:
                self.left.clear()
                context.add_callback(self.left.set)
                self.watched.set()
                self.left.wait()
                return

    def ListModels(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("ListModels", request, context)
        models, token = page(self.models, request.page_token)
        return models_pb2.ListModelsResponse(models=models, next_page_token=token)

    def GetModel(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("GetModel", request, context)
        for found in self.models:
            if found.name == request.name:
                return models_pb2.GetModelResponse(model=found)
        return context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r}")

    def DownloadModel(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("DownloadModel", request, context)
        yield from self.download

    def Predict(self, request, context):  # type: ignore[no-untyped-def]
        self._enter("Predict", request, context)
        rows = request.input.shape[0]
        probabilities = np.tile(np.array([0.25, 0.75], np.float32), (rows, 1))
        per_block = tensors.to_tensor(np.full((rows, 3), 0.125, np.float32))
        per_row = tensors.to_tensor(np.full(rows, 0.5, np.float32))
        return inference_pb2.PredictResponse(
            model_version="models/fashion/versions/2",
            class_names=["shirt", "boot"],
            probabilities=tensors.to_tensor(probabilities),
            exit_probabilities=tensors.to_tensor(np.repeat(probabilities[:, None], 3, axis=1)),
            posterior_variance=per_block,
            posterior_variance_between=per_block,
            forward_variance=per_block,
            output_variance=per_row,
            entropy_nats=per_row,
            exit_disagreement_nats=per_row,
        )


def page(items: list[Any], token: str) -> tuple[list[Any], str]:
    """Two items from `token` on, and the token of what follows."""
    start = int(token or 0)
    return items[start : start + 2], str(start + 2) if start + 2 < len(items) else ""


def job(name: str, spec: training_pb2.JobSpec | None = None) -> training_pb2.Job:
    """A queued job of two blocks."""
    spec = spec or parse_spec(SPEC)
    blocks = [
        training_pb2.BlockPlan(
            first_layer=i, layers=["dense 8"], parameters=72, flops=144, output_shape=[8], activation_bytes=64
        )
        for i in range(2)
    ]
    plan = training_pb2.JobPlan(
        blocks=blocks, input_shape=[1, 8, 8], class_names=["0", "1"], steps_per_epoch=10, warnings=["few rows"]
    )
    return training_pb2.Job(
        name=name, spec=spec, resolved_spec=spec, plan=plan, state=State.JOB_STATE_QUEUED, create_time=TIME
    )


def scores(accuracy: float) -> training_pb2.Scores:
    return training_pb2.Scores(accuracy=accuracy, nll_nats=0.5, ece=0.01, brier=0.2)


def evaluation(split: str) -> training_pb2.Evaluation:
    return training_pb2.Evaluation(
        split=split,
        epoch=1,
        step=20,
        rows=100,
        mixture=scores(0.9),
        product=scores(0.91),
        exits=[scores(0.7), scores(0.89)],
        mixture_gap_nats=0.125,
    )


def model(name: str) -> models_pb2.Model:
    version = models_pb2.ModelVersion(
        name=f"{name}/versions/2",
        create_time=TIME,
        resolved_spec=parse_spec(SPEC),
        inputs=[models_pb2.TensorSpec(name="input", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1, 1, 8, 8])],
        outputs=[models_pb2.TensorSpec(name="probabilities", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1, 2])],
        class_names=["shirt", "boot"],
        num_blocks=2,
        evaluations=[evaluation("validation"), evaluation("test")],
        model_digest="ab" * 32,
        size_bytes=1234,
        dataset_digest="cd" * 32,
    )
    return models_pb2.Model(name=name, versions=[version])


def run_events(
    final: training_pb2.JobState.ValueType = State.JOB_STATE_SUCCEEDED,
) -> list[training_pb2.JobEvent | None]:
    """The events of a short run, with a keep-alive among them."""
    contents: list[dict[str, Any] | None] = [
        {"state_change": training_pb2.StateChange(state=State.JOB_STATE_QUEUED)},
        {"state_change": training_pb2.StateChange(state=State.JOB_STATE_RUNNING)},
        None,
        *(
            {
                "block_progress": training_pb2.BlockProgress(
                    block=block, epoch=0, step=10, loss_nats=1.5, accuracy=0.5, posterior_variance=0.2,
                    samples_per_s=100.0, wait_s=0.25,
                )
            }
            for block in range(2)
        ),
        {"evaluation": evaluation("validation")},
        {"checkpoint_saved": training_pb2.CheckpointSaved(step=10, epoch=0)},
        {"state_change": training_pb2.StateChange(state=final, reason="" if final == 5 else "block 1: died")},
    ]  # fmt: skip
    numbers = iter(range(1, 100))
    return [
        None if content is None else training_pb2.JobEvent(number=next(numbers), time=TIME, **content)
        for content in contents
    ]


def chunks(name: str, content: bytes, size: int = 4) -> list[models_pb2.DownloadModelResponse]:
    """The messages that send `content` as file `name`."""
    sha256 = hashlib.sha256(content).hexdigest()
    return [
        models_pb2.DownloadModelResponse(
            file=name, size_bytes=len(content), sha256=sha256, chunk=content[start : start + size]
        )
        for start in range(0, len(content) or 1, size)
    ]
