"""What the scheduler is to do next, and where every queued job stands: worked out once after each change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime

from bll_server.jobs.admission import Choice, Queued, Running, choose
from bll_server.jobs.capacity import Capacity, Demand, demand
from bll_server.jobs.records import JobSummary
from bll_server.jobs.run import Run
from bll_server.jobs.states import ACTIVE, State
from bll_server.jobs.store import Store


class Outlook:
    """Of one store and one capacity. Whoever uses it holds the scheduler's lock."""

    def __init__(self, store: Store, capacity: Capacity) -> None:
        self._store = store
        self._capacity = capacity
        self._choice: Choice | None = None
        self._demands: dict[tuple[str, datetime], Demand] = {}
        """Of the queued jobs; a job that was deleted may leave its name to another."""
        self.active: dict[str, JobSummary] = {}
        """The jobs that had a run when the choice was made."""

    def changed(self) -> None:
        """What was worked out holds no longer."""
        self._choice = None

    def choice(self, runs: Mapping[str, Run]) -> Choice:
        """What is to be done; `runs` are those that hold something, in the order of their start."""
        if self._choice is None:
            self.active = {job.job_id: job for job in self._store.in_states(*ACTIVE)}
            queue = self._store.queue()
            self._demands = {key: self._demand(job) for job in queue for key in [_key(job)]}
            bounds = self._store.parallel_trials()
            waiting = [
                Queued(
                    job.job_id,
                    job.owner,
                    job.metadata.priority,
                    self._demands[_key(job)],
                    ready=job.job_id not in runs,
                    study=job.study,
                    study_jobs=bounds.get(job.study, math.inf),
                )
                for job in queue
            ]
            running = [self._running(job_id, run) for job_id, run in runs.items()]
            self._choice = choose(waiting, running, self._capacity)
        return self._choice

    def _demand(self, job: JobSummary) -> Demand:
        known = self._demands.get(_key(job))
        return known or demand(self._store.get(job.job_id).plan, job.owner, self._capacity)

    def _running(self, job_id: str, run: Run) -> Running:
        job = self.active.get(job_id)
        if job is None:  # its end is being written down
            return Running(job_id, run.owner, 0, run.demand, leaving=True)
        leaving = bool(run.gives_way_to) or run.is_over_time or job.state in (State.PAUSING, State.CANCELLING)
        metadata = job.metadata
        return Running(job_id, job.owner, metadata.priority, run.demand, metadata.preemptible, leaving, job.study)


def _key(job: JobSummary) -> tuple[str, datetime]:
    return job.job_id, job.create_time
