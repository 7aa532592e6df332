"""What is known of a job, and its JSON: the form in which the store and the runner's folder keep it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from bll.config import TrainingConfig
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
    RegressionEvaluation,
    RolledBack,
    RunEnded,
    from_json,
    to_json,
)
from bll.plain import from_dict, to_dict
from bll.plan import BlockPlan, Plan
from bll_server.errors import IllegalState
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.states import DELETABLE, State


@dataclass(frozen=True)
class StateChange:
    """A transition into `state`, with the reason in words, or nothing."""

    state: State
    reason: str = ""


DEADLINE = "DEADLINE"
"""The kind of failure of a job that has run for as long as it may."""

RunEvent = (
    BlockProgress
    | BlockDiagnostics
    | BlocksPlaced
    | BlockWaiting
    | Evaluation
    | Alarm
    | CheckpointSaved
    | CheckpointDamaged
    | RolledBack
    | BlockContinued
)
"""What a run tells that is kept with the job."""


@dataclass(frozen=True)
class JobEvent:
    """Event `number` of a job; numbers rise by one from 1."""

    number: int
    time: datetime
    event: StateChange | RunEvent


@dataclass(frozen=True)
class Failure:
    """Why a job failed."""

    kind: str
    """Name of the error's class, such as `BlockFailed`; or DEADLINE."""
    message: str
    block: int | None = None
    """The block at fault, where one is known."""


@dataclass(frozen=True)
class Progress:
    """How far a job has come: the steps that every block has done."""

    step: int
    epoch: int
    samples_per_s: float
    """Of the whole job: evaluations and checkpoints take their time from it."""
    remaining_s: float | None
    """Estimated time to the last step."""
    steps_per_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """As metrics name them."""
        remaining = {} if self.remaining_s is None else {"remaining_seconds": self.remaining_s}
        rates = {"samples_per_second": self.samples_per_s, "steps_per_second": self.steps_per_s}
        return {"steps": self.step} | rates | remaining


@dataclass(frozen=True)
class JobSummary:
    """A job as a list shows it."""

    job_id: str
    owner: str
    """Whose token created it; empty where the server asks for none."""
    model_id: str
    metadata: Metadata
    etag: str
    """Another after each change of state or metadata; progress leaves it."""
    state: State
    reason: str
    failure: Failure | None
    progress: Progress | None
    total_steps: int
    total_epochs: int
    checkpoint_step: int
    """Step of the newest checkpoint; 0 before the first."""
    model_version: str
    """`models/{model}/versions/{version}`; empty until the job has succeeded."""
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None
    expire_time: datetime | None
    """When the server deletes it; None where it does not, and while the job is not over."""
    run_s: float
    """Running time of all its runs, to the last event that was told."""
    last_event: int
    study: str
    """Id of the study that it is a trial of; empty for a job of its own."""
    parameters: Mapping[str, Any]
    """A trial's value of each parameter's field."""

    @property
    def is_over_time(self) -> bool:
        """It has run for as long as it may."""
        limit_s = self.metadata.max_run_duration_s
        return limit_s > 0 and self.run_s >= limit_s


@dataclass(frozen=True)
class Job(JobSummary):
    """A job with all that is known of it."""

    spec: bytes
    """The `bll.v1.JobSpec` that was asked for, serialised."""
    plan: Plan
    validation: Evaluation | None
    test: Evaluation | None


def check_deletable(job: JobSummary) -> None:
    """Raises IllegalState, which names the states that allow it."""
    if job.state not in DELETABLE:
        states = ", ".join(state for state in State if state in DELETABLE).upper()
        raise IllegalState(f"jobs/{job.job_id} is {job.state.upper()}; jobs that are {states} can be deleted")


def plan_to_json(plan: Plan) -> str:
    """`plan` on one line."""
    return json.dumps(asdict(plan) | {"config": to_dict(plan.config)})


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote."""
    values = json.loads(text)
    blocks = (
        BlockPlan(**{**block, "layers": tuple(block["layers"]), "output_shape": tuple(block["output_shape"])})
        for block in values["blocks"]
    )
    lists = {name: tuple(values[name]) for name in ("input_shape", "class_names", "warnings", "target_shape")}
    config = from_dict(TrainingConfig, values["config"])
    return Plan(**{**values, **lists, "config": config, "blocks": tuple(blocks)})


def event_to_json(event: StateChange | RunEvent) -> str:
    """`event` on one line."""
    if isinstance(event, StateChange):
        return json.dumps({"event": "StateChange", **asdict(event)})
    return to_json(event)


def event_from_json(text: str) -> StateChange | RunEvent:
    """The event that `event_to_json` wrote."""
    values = json.loads(text)
    if values["event"] == "StateChange":
        return StateChange(State(values["state"]), values["reason"])
    event = from_json(text)
    assert not isinstance(event, RunEnded | RegressionEvaluation)
    return event
