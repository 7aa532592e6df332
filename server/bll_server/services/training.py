"""TrainingService: jobs, from their submission to their end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import grpc

from bll.errors import Violation
from bll_proto.v1 import training_pb2, training_pb2_grpc
from bll_server import convert
from bll_server.auth.caller import caller
from bll_server.datasets.store import Datasets
from bll_server.errors import InvalidRequest
from bll_server.jobs.capacity import admitted
from bll_server.jobs.listing import Listing
from bll_server.jobs.planner import Planner
from bll_server.jobs.records import Job
from bll_server.jobs.scheduler import Scheduler
from bll_server.jobs.store import Store
from bll_server.models.registry import MODEL_ID
from bll_server.services.names import is_uuid

_JOB_ID = re.compile(r"[a-z][a-z0-9-]{2,62}")
_DEFAULT_PAGE, _LARGEST_PAGE = 50, 1000
_DEFAULT_POINTS, _MOST_POINTS = 200, 10_000


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """See `training.proto`."""

    def __init__(
        self, store: Store, planner: Planner, scheduler: Scheduler, datasets: Datasets, max_owner_jobs: int
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._planner = planner
        self._scheduler = scheduler
        self._max_owner_jobs = max_owner_jobs

    def CreateJob(
        self, request: training_pb2.CreateJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.CreateJobResponse:
        self._scheduler.check_open()
        _check_create(request)
        digest = _digest(request)
        if request.request_id and (earlier := self._store.replayed(request.request_id, digest, caller().owner)):
            return training_pb2.CreateJobResponse(job=self._message(earlier))
        spec, metadata = request.job.spec, convert.metadata(request.job)
        plan = admitted(self._planner.plan(convert.config_from_spec(spec)), caller().owner, self._scheduler.capacity)
        if request.validate_only:
            return training_pb2.CreateJobResponse(job=convert.preview_message(spec, plan))
        with self._datasets.kept(plan.config.data.name):  # from here on the job itself keeps it
            job = self._scheduler.submit(
                request.job_id,
                spec.model_id,
                spec.SerializeToString(),
                plan,
                metadata=metadata,
                owner=caller().owner,
                most_unfinished=self._max_owner_jobs,
                request_id=request.request_id,
                request_digest=digest,
            )
        return training_pb2.CreateJobResponse(job=self._message(job))

    def GetJob(self, request: training_pb2.GetJobRequest, context: grpc.ServicerContext) -> training_pb2.GetJobResponse:
        job = self._store.get(_job_id(request.name))
        return training_pb2.GetJobResponse(job=self._message(job))

    def ListJobs(
        self, request: training_pb2.ListJobsRequest, context: grpc.ServicerContext
    ) -> training_pb2.ListJobsResponse:
        if not 0 <= request.page_size <= _LARGEST_PAGE:
            rule = f"must be between 0 and {_LARGEST_PAGE}, got {request.page_size}"
            raise InvalidRequest(Violation("page_size", rule))
        listing = Listing(request.filter, request.order_by)
        size = request.page_size or _DEFAULT_PAGE
        jobs, following = self._store.page(size, request.page_token, caller().sees_only, listing=listing)
        return training_pb2.ListJobsResponse(jobs=map(convert.summary_message, jobs), next_page_token=following)

    def CancelJob(
        self, request: training_pb2.CancelJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.CancelJobResponse:
        job = self._scheduler.cancel(_job_id(request.name))
        return training_pb2.CancelJobResponse(job=self._message(job))

    def PauseJob(
        self, request: training_pb2.PauseJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.PauseJobResponse:
        job = self._scheduler.pause(_job_id(request.name))
        return training_pb2.PauseJobResponse(job=self._message(job))

    def ResumeJob(
        self, request: training_pb2.ResumeJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.ResumeJobResponse:
        job = self._scheduler.resume(_job_id(request.name))
        return training_pb2.ResumeJobResponse(job=self._message(job))

    def RetryJob(
        self, request: training_pb2.RetryJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.RetryJobResponse:
        job = self._scheduler.retry(_job_id(request.name), self._max_owner_jobs)
        return training_pb2.RetryJobResponse(job=self._message(job))

    def UpdateJob(
        self, request: training_pb2.UpdateJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.UpdateJobResponse:
        job_id = _job_id(request.job.name, "job.name")
        changes = _changes(request)
        job = self._scheduler.update(job_id, changes, request.job.etag)
        return training_pb2.UpdateJobResponse(job=self._message(job))

    def DeleteJob(
        self, request: training_pb2.DeleteJobRequest, context: grpc.ServicerContext
    ) -> training_pb2.DeleteJobResponse:
        self._scheduler.delete(_job_id(request.name), request.etag)
        return training_pb2.DeleteJobResponse()

    def ListBlocks(
        self, request: training_pb2.ListBlocksRequest, context: grpc.ServicerContext
    ) -> training_pb2.ListBlocksResponse:
        blocks = self._store.history(_job_id(request.parent, "parent")).blocks()
        return training_pb2.ListBlocksResponse(blocks=map(convert.block_message, blocks))

    def GetJobMetrics(
        self, request: training_pb2.GetJobMetricsRequest, context: grpc.ServicerContext
    ) -> training_pb2.GetJobMetricsResponse:
        job_id = _job_id(request.name)
        if not 0 <= request.max_points <= _MOST_POINTS:
            rule = f"must be between 0 and {_MOST_POINTS}, got {request.max_points}"
            raise InvalidRequest(Violation("max_points", rule))
        history = self._store.history(job_id)
        series = history.series(request.max_points or _DEFAULT_POINTS)
        return training_pb2.GetJobMetricsResponse(
            blocks=(convert.series_message(block, reports) for block, reports in series.items()),
            evaluations=map(convert.evaluation_message, history.evaluations()),
        )

    def WatchJob(
        self, request: training_pb2.WatchJobRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.WatchJobResponse]:
        job_id = _job_id(request.name)
        if request.after_event < 0:
            raise InvalidRequest(Violation("after_event", f"must not be negative, got {request.after_event}"))
        context.add_callback(self._store.wake)  # so that a watcher that has gone gives its thread back at once
        for event in self._scheduler.followers.watch(job_id, request.after_event, lambda: not context.is_active()):
            yield training_pb2.WatchJobResponse(event=convert.event_message(event) if event else None)

    def TailLogs(
        self, request: training_pb2.TailLogsRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.TailLogsResponse]:
        job_id, offset = _job_id(request.name), request.offset
        context.add_callback(self._store.wake)  # as in WatchJob
        for piece in self._scheduler.followers.tail(job_id, offset, request.follow, lambda: not context.is_active()):
            offset += len(piece)
            yield training_pb2.TailLogsResponse(data=piece, next_offset=offset)

    def _message(self, job: Job) -> training_pb2.Job:
        return convert.job_message(job, self._scheduler.standing(job))


def _job_id(name: str, field: str = "name") -> str:
    job_id = name.removeprefix("jobs/")
    if job_id == name or not _JOB_ID.fullmatch(job_id):
        raise InvalidRequest(Violation(field, f"must be jobs/{{job_id}}, got {name!r}"))
    return job_id


def _check_create(request: training_pb2.CreateJobRequest) -> None:
    """Raises InvalidRequest for every field beside those of the config that breaks its rule."""
    violations = []
    if not request.job.HasField("spec"):
        violations.append(Violation("job.spec", "must be present"))
    if request.job_id and not _JOB_ID.fullmatch(request.job_id):
        violations.append(Violation("job_id", f"must match {_JOB_ID.pattern}, got {request.job_id!r}"))
    model_id = request.job.spec.model_id
    if model_id and not MODEL_ID.fullmatch(model_id):
        violations.append(Violation("job.spec.model_id", f"must match {MODEL_ID.pattern}, got {model_id!r}"))
    if request.request_id and not is_uuid(request.request_id):
        violations.append(Violation("request_id", f"must be a UUID, got {request.request_id!r}"))
    if violations:
        raise InvalidRequest(*violations)


def _changes(request: training_pb2.UpdateJobRequest) -> dict[str, Any]:
    """The fields that the mask names, with their new values. Raises InvalidRequest."""
    known = convert.metadata_paths()
    named = set(request.update_mask.paths)
    if not named or not named.issubset(known):
        got = ", ".join(sorted(named)) or "none"
        raise InvalidRequest(Violation("update_mask", f"must name some of {', '.join(known)}, got {got}"))
    given = convert.metadata(request.job)
    return {known[path]: getattr(given, known[path]) for path in named}


def _digest(request: training_pb2.CreateJobRequest) -> str:
    """SHA-256 of what a repeated request must have in common with the first."""
    body = training_pb2.CreateJobRequest(job_id=request.job_id, job=convert.asked_job(request.job))
    return hashlib.sha256(body.SerializeToString(deterministic=True)).hexdigest()
