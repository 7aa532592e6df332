"""What the client answers of studies: frozen dataclasses that mirror `bll_proto/v1/studies.proto`, as in `_types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bll_client._types import Job, JobProgress, JobState, Scores


class StudyState(StrEnum):
    """Where a study stands; it follows from its trials."""

    UNSPECIFIED = "unspecified"
    """The jobs of all trials were deleted; also every state that only a newer server knows."""
    QUEUED = "queued"
    """No trial has left the queue."""
    RUNNING = "running"
    PAUSED = "paused"
    """The trials that are not over are all paused."""
    SUCCEEDED = "succeeded"
    """All are over, none was cancelled, and one at least has succeeded."""
    FAILED = "failed"
    """All have failed."""
    CANCELLED = "cancelled"
    """All are over, and some were cancelled."""

    @property
    def is_over(self) -> bool:
        """No trial has anything left to do, unless it is retried."""
        return self not in (StudyState.QUEUED, StudyState.RUNNING, StudyState.PAUSED)


class StudyMetric(StrEnum):
    """What trials are compared by: the mixture of the exits on validation rows."""

    UNSPECIFIED = "unspecified"
    """As `NLL`."""
    NLL = "nll"
    """The lowest is best, as of `ECE` and `BRIER`."""
    ACCURACY = "accuracy"
    """The highest is best."""
    ECE = "ece"
    BRIER = "brier"


class ParameterScale(StrEnum):
    """What is uniform within a range."""

    UNSPECIFIED = "unspecified"
    """As `LINEAR`."""
    LINEAR = "linear"
    LOG = "log"
    """The logarithm is."""


@dataclass(frozen=True)
class ParameterRange:
    """The numbers between two bounds, both allowed; whole ones for a field that takes no others."""

    low: float
    high: float
    scale: ParameterScale = ParameterScale.LINEAR


@dataclass(frozen=True)
class StudyParameter:
    """One field that trials differ in."""

    field: str
    """Its path in a spec, such as `optimizer.learning_rate`."""
    values: tuple[Any, ...]
    range: ParameterRange | None
    """In the place of values, in a random search."""


@dataclass(frozen=True)
class TrialCounts:
    """Trials by state, without those whose jobs were deleted."""

    total: int
    queued: int
    running: int
    """All that have a runner: starting, pausing and cancelling too."""
    paused: int
    succeeded: int
    failed: int
    cancelled: int


@dataclass(frozen=True)
class Trial:
    """One job of a study, as the comparison shows it."""

    number: int
    """From 0."""
    job: str
    """`jobs/{study id}-{number}`; empty where the study was only validated."""
    parameters: Mapping[str, Any]
    """Its value of each parameter's field."""
    state: JobState
    state_reason: str
    progress: JobProgress | None
    validation: Scores | None
    """Of the mixture on validation rows, last time. Trials are compared by it."""
    test: Scores | None
    """Of the mixture on test rows, once training is over. It chooses nothing."""
    model_version: str
    """`models/{model}/versions/{version}`; empty until the job has SUCCEEDED."""


@dataclass(frozen=True)
class Study:
    """Many jobs from one request, which differ in some fields of their specs."""

    name: str
    """`studies/{id}`; empty where it was only validated."""
    base: Job | None
    """What all trials have in common; None in a list."""
    parameters: tuple[StudyParameter, ...]
    """Empty in a list."""
    num_trials: int
    """Of a random search; 0: every combination of the parameters' values."""
    seed: int
    metric: StudyMetric
    max_parallel_trials: int
    """0: as many as there are slots."""
    state: StudyState
    counts: TrialCounts | None
    """None where the study was only validated."""
    trials: tuple[Trial, ...]
    """Without those whose jobs were deleted; empty in a list."""
    best_trial: int | None
    """Number of the best one that has succeeded, by `metric` on validation rows; None in a list."""
    best_model_version: str
    create_time: datetime | None
    owner: str
    """Whose token created it; empty where the server asked for none."""
