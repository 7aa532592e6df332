"""Protos from the domain's dataclasses, and back.

Specs are walked by field name, proto and dataclass side by side, and only what is present in a spec is carried over:
so defaults and ranges live in `bll.config` alone. A test compares the two trees field by field.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2

from bll.config import TrainingConfig
from bll.errors import InvalidConfig, Violation
from bll.events import (
    Alarm,
    BlockContinued,
    BlockDiagnostics,
    BlockProgress,
    BlocksPlaced,
    BlockWaiting,
    CheckpointDamaged,
    CheckpointSaved,
    Evaluation,
    RolledBack,
)
from bll.plain import from_dict
from bll.plan import Plan
from bll_proto.v1 import errors_pb2, training_pb2
from bll_server.errors import DOMAIN, InvalidRequest
from bll_server.jobs.admission import Standing
from bll_server.jobs.history import BlockStatus
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import DEADLINE, Job, JobEvent, JobSummary, Progress, StateChange
from bll_server.jobs.states import FINAL

M = TypeVar("M", bound=Message)


def config_from_spec(spec: training_pb2.JobSpec) -> TrainingConfig:
    """The config that a spec asks for. Raises InvalidRequest with paths such as `job.spec.data.name`."""
    try:
        return from_dict(TrainingConfig, _present(spec, skip="model_id"))
    except InvalidConfig as error:
        raise invalid_spec(error.violations) from error


def invalid_spec(violations: tuple[Violation, ...]) -> InvalidRequest:
    """The same violations, under the path that a config has in a request."""
    return InvalidRequest(*(Violation(f"job.spec.{v.field}", v.description) for v in violations))


def metadata(job: training_pb2.Job) -> Metadata:
    """What a caller wrote on a job. Raises InvalidRequest with paths such as `job.labels`."""
    return Metadata(
        job.display_name,
        dict(job.labels),
        job.priority,
        job.preemptible,
        _seconds(job.max_run_duration),
        _seconds(job.ttl_after_finish),
    )


def metadata_paths() -> dict[str, str]:
    """The fields of a `Job` that a caller writes, with the names that `Metadata` has for them."""
    return {field.name.removesuffix("_s"): field.name for field in fields(Metadata)}


def asked_job(job: training_pb2.Job) -> training_pb2.Job:
    """`job` with what a caller may say of it, and nothing else."""
    asked = training_pb2.Job(spec=job.spec)
    for field, value in job.ListFields():
        if field.name in metadata_paths():
            asked.MergeFrom(training_pb2.Job(**{field.name: value}))
    return asked


def spec_message(config: TrainingConfig, model_id: str = "") -> training_pb2.JobSpec:
    """`config` as a spec in which every field is present."""
    spec = _filled(training_pb2.JobSpec(), config)
    spec.model_id = model_id
    return spec


def evaluation_message(evaluation: Evaluation) -> training_pb2.Evaluation:
    """`evaluation`, field by field."""
    return _filled(training_pb2.Evaluation(), evaluation)


def block_message(status: BlockStatus) -> training_pb2.BlockStatus:
    """`status`, field by field."""
    return _filled(training_pb2.BlockStatus(), status)


def series_message(block: int, reports: list[BlockProgress]) -> training_pb2.BlockSeries:
    """The reports of one block."""
    messages = (_filled(training_pb2.BlockProgress(), report) for report in reports)
    return training_pb2.BlockSeries(block=block, reports=messages)


def plan_message(plan: Plan) -> training_pb2.JobPlan:
    """What `plan` holds besides its config."""
    return _filled(training_pb2.JobPlan(), plan, skip="config")


def job_message(job: Job, standing: Standing) -> training_pb2.Job:
    """Everything about a job, and how it stands with the scheduler."""
    message = summary_message(job)
    message.queue_position = standing.position
    message.state_reason = "; ".join(filter(None, (job.reason, standing.why)))
    message.spec.ParseFromString(job.spec)
    message.resolved_spec.CopyFrom(spec_message(job.plan.config, job.model_id))
    message.plan.CopyFrom(plan_message(job.plan))
    if job.validation:
        message.validation.CopyFrom(evaluation_message(job.validation))
    if job.test:
        message.test.CopyFrom(evaluation_message(job.test))
    return message


def preview_message(spec: training_pb2.JobSpec, plan: Plan) -> training_pb2.Job:
    """What would become of `spec`; no job has been made."""
    message = training_pb2.Job(spec=spec, plan=plan_message(plan))
    message.resolved_spec.CopyFrom(spec_message(plan.config, spec.model_id))
    return message


def summary_message(job: JobSummary) -> training_pb2.Job:
    """A job as a list shows it."""
    message = training_pb2.Job(
        name=f"jobs/{job.job_id}",
        state=enum_number(training_pb2.JobState.DESCRIPTOR, job.state),
        state_reason=job.reason,
        model_version=job.model_version,
        last_event=job.last_event,
        etag=job.etag,
        owner=job.owner,
        display_name=job.metadata.display_name,
        labels=job.metadata.labels,
        priority=job.metadata.priority,
        preemptible=job.metadata.preemptible,
        study=f"studies/{job.study}" if job.study else "",
    )
    if job.study:
        message.parameters.update(job.parameters)
    message.spec.model_id = job.model_id
    if job.failure:
        over_time = job.failure.kind == DEADLINE
        reason = errors_pb2.ERROR_REASON_DEADLINE if over_time else errors_pb2.ERROR_REASON_TRAINING_FAILED
        info = error_details_pb2.ErrorInfo(
            domain=DOMAIN,
            reason=errors_pb2.ErrorReason.Name(reason).removeprefix("ERROR_REASON_"),
            metadata={"error": job.failure.kind},
        )
        if job.failure.block is not None:
            info.metadata["block"] = str(job.failure.block)
        message.error.code = code_pb2.DEADLINE_EXCEEDED if over_time else code_pb2.ABORTED
        message.error.message = job.failure.message
        message.error.details.add().Pack(info)
    if job.progress:
        message.progress.CopyFrom(_progress_message(job, job.progress))
    _set_duration(message.max_run_duration, job.metadata.max_run_duration_s)
    _set_duration(message.ttl_after_finish, job.metadata.ttl_after_finish_s)
    _set_duration(message.run_duration, job.run_s)
    for name in ("create_time", "start_time", "end_time", "expire_time"):
        if time := getattr(job, name):
            getattr(message, name).FromDatetime(naive(time))
    return message


def event_message(event: JobEvent) -> training_pb2.JobEvent:
    """One numbered event."""
    message = training_pb2.JobEvent(number=event.number)
    message.time.FromDatetime(naive(event.time))
    match event.event:
        case StateChange() as inner:
            _filled(message.state_change, inner)
        case BlockProgress() as inner:
            _filled(message.block_progress, inner)
        case BlockDiagnostics() as inner:
            _filled(message.block_diagnostics, inner)
        case BlocksPlaced() as inner:
            _filled(message.blocks_placed, inner)
        case BlockWaiting() as inner:
            _filled(message.block_waiting, inner)
        case Evaluation() as inner:
            _filled(message.evaluation, inner)
        case Alarm() as inner:
            _filled(message.alarm, inner)
        case CheckpointSaved() as inner:
            _filled(message.checkpoint_saved, inner)
        case CheckpointDamaged() as inner:
            _filled(message.checkpoint_damaged, inner)
        case RolledBack() as inner:
            _filled(message.rolled_back, inner)
        case BlockContinued() as inner:
            _filled(message.block_continued, inner)
    return message


def _progress_message(job: JobSummary, progress: Progress) -> training_pb2.JobProgress:
    message = training_pb2.JobProgress(
        step=progress.step,
        total_steps=job.total_steps,
        epoch=progress.epoch,
        total_epochs=job.total_epochs,
        samples_per_s=progress.samples_per_s,
        steps_per_s=progress.steps_per_s,
    )
    if progress.remaining_s is not None and job.state not in FINAL:
        message.remaining.FromMilliseconds(round(progress.remaining_s * 1e3))
    return message


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _set_duration(message: Duration, seconds: float) -> None:
    """Nothing of it is present where there are none."""
    if seconds:
        message.FromMilliseconds(round(seconds * 1e3))


def naive(time: datetime) -> datetime:
    """`time` as FromDatetime takes it: naive, for UTC."""
    return time.replace(tzinfo=None)


def _present(message: Message, skip: str = "") -> dict[str, Any]:
    """The fields that are present in `message`, as `bll.config.from_dict` reads them."""
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.name == skip:
            continue
        if field.is_repeated:
            values[field.name] = list(value)
        elif field.message_type:
            values[field.name] = _present(value)
        elif field.enum_type:
            # A number that this server does not know stays a number, which the config refuses by name.
            values[field.name] = short_names(field.enum_type).get(value, value)
        else:
            values[field.name] = value
    return values


def _filled(message: M, values: Any, skip: str = "") -> M:
    """`message` with the fields of the dataclass `values`, which has the same names."""
    for field in fields(values):
        if field.name == skip:
            continue
        value = getattr(values, field.name)
        if value is None:
            continue
        if is_dataclass(value):
            _filled(getattr(message, field.name), value)
        elif isinstance(value, tuple):
            repeated = getattr(message, field.name)
            if value and is_dataclass(value[0]):
                for item in value:
                    _filled(repeated.add(), item)
            else:
                repeated.extend(value)
        elif isinstance(value, datetime):
            getattr(message, field.name).FromDatetime(naive(value))
        elif isinstance(value, StrEnum):
            setattr(message, field.name, enum_number(message.DESCRIPTOR.fields_by_name[field.name].enum_type, value))
        else:
            setattr(message, field.name, value)
    return message


@cache
def short_names(enum: Any) -> dict[int, str]:
    """Value of the StrEnum for each number of an enum's descriptor: FAMILY_NAME_UNIT_GAUSSIAN is `unit_gaussian`."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {number: value.name.removeprefix(prefix).lower() for number, value in enum.values_by_number.items()}


def enum_number(enum: Any, value: str) -> Any:
    """The number of the value that `short_names` calls so."""
    return next(number for number, name in short_names(enum).items() if name == value)
