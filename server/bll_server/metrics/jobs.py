"""What the events of jobs come to.

The job store tells of each event once it is committed, so that no figure tells of what was not kept.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from bll.choices import Recovery
from bll.events import Alarm, AlarmSignature, BlockContinued, CheckpointDamaged, CheckpointSaved, Event, RolledBack
from bll_server.metrics.running import RunningJobs, recovery
from bll_server.metrics.states import States

_COMMITS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_WRITES = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STATES = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600)
_ENDINGS = (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)


class JobMetrics:
    """Those of all jobs. Safe to call from many threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._running = RunningJobs(registry)
        self._lock = threading.Lock()
        self._born = time.monotonic()
        self._since: dict[str, float] = {}
        """When each job that is not over came into its state, if this server saw it; monotonic."""
        self._transitions = self._counter("bll_job_transitions", "Times that a job entered a state.", "state")
        self._queue_wait = self._histogram(
            "bll_job_queue_wait_seconds", "Time that a job was QUEUED before it was started.", _STATES
        )
        self._state_seconds = self._histogram(
            "bll_job_state_seconds", "Time that a job spent in a state that it has left.", _STATES, "state"
        )
        self._alarms = self._counter(
            "bll_job_alarms", "Alarms raised by running jobs, by signature.", "signature", AlarmSignature
        )
        self._restarts = self._counter(
            "bll_block_restarts", "Lost workers replaced, by recovery.", "recovery", Recovery
        )
        self._checkpoint_seconds = self._histogram(
            "bll_job_checkpoint_write_seconds", "Longest time that a block took to write its part of one.", _WRITES
        )
        self._damaged = self._counter("bll_job_checkpoints_damaged", "Checkpoints found damaged, and passed over.")
        self._endings = {
            "calibration": self._histogram(
                "bll_job_calibration_seconds", "Time to calibrate a trained model on its validation rows.", _ENDINGS
            ),
            "export": self._histogram(
                "bll_job_export_seconds", "Time to export a model and compare graph and network.", _ENDINGS
            ),
        }
        self._events = self._counter("bll_store_events", "Events of jobs that were stored, by kind.", "kind")
        self._commit_seconds = self._histogram(
            "bll_store_commit_seconds", "Time of a transaction that writes, from the lock to the disk.", _COMMITS
        )

    def count(self, counts: Callable[[], Mapping[Any, int]]) -> None:
        """Show the number of jobs in each state."""
        for state in counts():
            self._transitions.labels(state)  # an alert sees the first of a kind only where there was none before
        self._registry.register(States("bll_jobs", "Jobs in each state.", counts))

    def committed(self, seconds: float) -> None:
        """A transaction took so long."""
        self._commit_seconds.observe(seconds)

    def entered(self, job_id: str, state: str, before: str | None, *, runs: bool, over: bool) -> None:
        """The job came into `state`, from `before`, which is None if it is new or was over; `runs` if it has a runner
        now, `over` if the state is final.

        A state that it was in when this server started counts from then.
        """
        self._events.labels("StateChange").inc()
        self._transitions.labels(state).inc()
        now = time.monotonic()
        with self._lock:
            seconds = now - self._since.pop(job_id, self._born)
            if not over:
                self._since[job_id] = now
        if runs:
            self._running.runs(job_id)
        else:
            self._running.rests(job_id)
        if before is not None:
            self._state_seconds.labels(before).observe(seconds)
        if (before, state) == ("queued", "starting"):
            self._queue_wait.observe(seconds)

    def deleted(self, job_id: str) -> None:
        """The job is no more."""
        with self._lock:
            self._since.pop(job_id, None)

    def told(self, job_id: str, event: Event, **figures: float) -> None:
        """The job's run told of something; `figures` of the job as a whole have changed with it."""
        self._events.labels(type(event).__name__).inc()
        self._running.told(job_id, event, figures)
        match event:
            case CheckpointSaved(write_s=seconds):
                self._checkpoint_seconds.observe(seconds)
            case CheckpointDamaged():
                self._damaged.inc()
            case Alarm(signature=signature):
                self._alarms.labels(signature).inc()
            case RolledBack() | BlockContinued():
                self._restarts.labels(recovery(event)).inc()

    def exported(self, seconds: Mapping[str, float]) -> None:
        """A model was exported; its runner timed `calibration` and `export`."""
        for part, histogram in self._endings.items():
            if part in seconds:
                histogram.observe(seconds[part])

    def _counter(self, name: str, documentation: str, label: str = "", values: Iterable[str] = ()) -> Counter:
        counter = Counter(name, documentation, [label] if label else [], registry=self._registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, documentation, labels, buckets=buckets, registry=self._registry)
