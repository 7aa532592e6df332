"""What is known of a study: as it was asked for, and what follows from the jobs of its trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from bll.events import Evaluation, Scores
from bll.plan import Plan
from bll_server.jobs.records import JobSummary
from bll_server.jobs.states import ACTIVE, State


class Metric(StrEnum):
    """What trials are compared by. `studies.proto` has the same names and says what they mean."""

    NLL = "nll"
    ACCURACY = "accuracy"
    ECE = "ece"
    BRIER = "brier"


_COSTS: dict[Metric, Callable[[Scores], float]] = {
    Metric.NLL: lambda scores: scores.nll_nats,
    Metric.ACCURACY: lambda scores: -scores.accuracy,
    Metric.ECE: lambda scores: scores.ece,
    Metric.BRIER: lambda scores: scores.brier,
}
"""The lower, the better."""


class StudyState(StrEnum):
    """Where a study stands. `studies.proto` has the same names and says what they mean."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class NewTrial:
    """One trial, planned."""

    parameters: Mapping[str, Any]
    spec: bytes
    """The `bll.v1.JobSpec` of its job, serialised."""
    plan: Plan


@dataclass(frozen=True)
class NewStudy:
    """A study that is yet to be stored."""

    study_id: str
    """Empty: the store chooses one."""
    request: bytes
    max_parallel: int
    """Trials that may run at the same time; 0: any number."""
    trials: Sequence[NewTrial]


@dataclass(frozen=True)
class Study:
    """A study as it was asked for."""

    study_id: str
    owner: str
    """Whose token created it; empty where the server asks for none."""
    request: bytes
    """The `bll.v1.Study` that was asked for, serialised."""
    create_time: datetime


@dataclass(frozen=True)
class Trial:
    """One job of a study."""

    number: int
    job: JobSummary
    validation: Evaluation | None
    test: Evaluation | None


@dataclass(frozen=True)
class Counts:
    """Trials by their state. A trial whose job was deleted is in none."""

    queued: int = 0
    running: int = 0
    """Those that have a runner."""
    paused: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0

    @classmethod
    def of(cls, jobs: Mapping[State, int]) -> Counts:
        """From the number of jobs in each state."""
        running = sum(jobs.get(state, 0) for state in ACTIVE)
        still = {str(state): count for state, count in jobs.items() if state not in ACTIVE}
        return cls(running=running, **still)

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def state(self) -> StudyState | None:
        """What the states of its trials come to; None without a trial."""
        if not self.total:
            return None
        if self.queued == self.total:
            return StudyState.QUEUED
        if self.queued or self.running:
            return StudyState.RUNNING
        if self.paused:
            return StudyState.PAUSED
        if self.cancelled:
            return StudyState.CANCELLED
        return StudyState.SUCCEEDED if self.succeeded else StudyState.FAILED


def best(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """The SUCCEEDED trial that is best on validation rows, the first of several; test rows choose nothing."""
    cost = _COSTS[metric]
    costs = {
        trial.number: cost(trial.validation.mixture)
        for trial in trials
        if trial.job.state is State.SUCCEEDED and trial.validation
    }
    found = [trial for trial in trials if math.isfinite(costs.get(trial.number, math.nan))]
    return min(found, key=lambda trial: costs[trial.number], default=None)
