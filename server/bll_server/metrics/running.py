"""The series that jobs have of their own, while they have a runner.

They go with the runner, and so many jobs and blocks have them at the same time and no more: a server that lives long,
or a job of a thousand blocks, would else fill Prometheus.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bll.choices import Recovery
from bll.events import BlockContinued, BlockProgress, CheckpointSaved, Evaluation, Event, RolledBack

MOST_JOBS = 64
MOST_BLOCKS = 64
"""Of a job; those after them have no series."""

_OF_JOB = {
    "steps": "Steps that every block has done.",
    "steps_per_second": "Recent throughput of the whole job, evaluations and checkpoints included.",
    "samples_per_second": "The same in samples.",
    "remaining_seconds": "Estimated time to the last step.",
    "validation_accuracy": "Of the mixture, at the last evaluation.",
    "validation_nll_nats": "Mean negative log-likelihood by the mixture, at the last evaluation.",
    "checkpoint_age_seconds": "Time since the newest checkpoint, or since the start where there is none.",
}
"""By the metric's name after `bll_job_`."""
_OF_BLOCK = {
    "loss_nats": "Mean local loss since the last report.",
    "kl_nats": "Mean KL of the mixed posterior from the forward message, in the last step.",
    "agreement": "Mean cosine between forward and backward message, both centred, in the last step.",
    "posterior_variance": "Mean target-marginalised variance of the latent's units, in the last step.",
    "mixing": "Weight of the backward message that is in force.",
    "staleness_steps": "Age of what the block knows of its right neighbour, in steps.",
    "inbox_fill": "How full the line from the left was when the block read it, 0 to 1.",
}
"""By the field of a report, which is the metric's name after `bll_job_block_`."""


@dataclass
class _Block:
    report: BlockProgress | None = None
    waits_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("left", "right", "room"), 0.0))
    """By cause."""
    restarts: Counter[str] = field(default_factory=Counter)
    """By recovery."""

    def take(self, report: BlockProgress) -> None:
        self.report = report
        self.waits_s["left"] += report.wait_s - report.version_wait_s
        self.waits_s["right"] += report.version_wait_s
        self.waits_s["room"] += report.send_wait_s


@dataclass
class _Job:
    saved_at: float
    """Monotonic: its newest checkpoint, or its start."""
    blocks: dict[int, _Block] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    """By names of `_OF_JOB`."""

    def take(self, event: Event) -> None:
        match event:
            case BlockProgress(block=block):
                if block < MOST_BLOCKS:
                    self._block(block).take(event)
            case Evaluation(split="validation", mixture=mixture):
                self.figures |= {"validation_accuracy": mixture.accuracy, "validation_nll_nats": mixture.nll_nats}
            case CheckpointSaved():
                self.saved_at = time.monotonic()
            case RolledBack(block=block) | BlockContinued(block=block):
                if block < MOST_BLOCKS:
                    self._block(block).restarts[recovery(event)] += 1

    def _block(self, number: int) -> _Block:
        return self.blocks.setdefault(number, _Block())


class RunningJobs(Collector):
    """Those of all jobs that run. Safe to use from many threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}
        self._left_out: set[str] = set()
        registry.register(self)

    def runs(self, job_id: str) -> None:
        """The job has a runner."""
        with self._lock:
            self._shown(job_id)

    def rests(self, job_id: str) -> None:
        """It has none."""
        with self._lock:
            self._jobs.pop(job_id, None)
            self._left_out.discard(job_id)

    def told(self, job_id: str, event: Event, figures: dict[str, float]) -> None:
        """Its run told of something; `figures` of the job as a whole have changed with it."""
        with self._lock:
            if job := self._shown(job_id):
                job.figures |= figures
                job.take(event)

    def describe(self) -> Iterable[Metric]:
        return self._families().values()

    def collect(self) -> Iterable[Metric]:
        families = self._families()
        now = time.monotonic()
        with self._lock:
            families["bll_jobs_left_out"].add_metric([], len(self._left_out))
            for job_id, job in self._jobs.items():
                for name, value in (job.figures | {"checkpoint_age_seconds": now - job.saved_at}).items():
                    families[f"bll_job_{name}"].add_metric([job_id], value)
                for number, block in job.blocks.items():
                    for name, value, *more in _figures(block):
                        families[f"bll_job_block_{name}"].add_metric([job_id, str(number), *more], value)
        return families.values()

    def _shown(self, job_id: str) -> _Job | None:
        """The job's own figures; None where too many others have some."""
        if job_id not in self._jobs and len(self._jobs) >= MOST_JOBS:
            self._left_out.add(job_id)
            return None
        self._left_out.discard(job_id)
        return self._jobs.setdefault(job_id, _Job(time.monotonic()))

    def _families(self) -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
        of_block = ["job", "block"]
        waits = "Time that a block waited: for messages from the left, versions from the right, or room to send."
        restarts = "Times that a block's worker was lost and replaced, by recovery."
        families: list[GaugeMetricFamily | CounterMetricFamily] = [
            GaugeMetricFamily("bll_jobs_left_out", "Running jobs without series of their own: there are too many."),
            *(GaugeMetricFamily(f"bll_job_{name}", text, labels=["job"]) for name, text in _OF_JOB.items()),
            *(GaugeMetricFamily(f"bll_job_block_{name}", text, labels=of_block) for name, text in _OF_BLOCK.items()),
            CounterMetricFamily("bll_job_block_wait_seconds", waits, labels=[*of_block, "cause"]),
            CounterMetricFamily("bll_job_block_restarts", restarts, labels=[*of_block, "recovery"]),
        ]
        return {family.name: family for family in families}


def recovery(event: RolledBack | BlockContinued) -> Recovery:
    """How the run went on when a worker was lost."""
    return Recovery.EXACT if isinstance(event, RolledBack) else Recovery.CONTINUE


def _figures(block: _Block) -> Iterable[tuple[str, float] | tuple[str, float, str]]:
    """Name, value and the labels beside job and block."""
    for how, count in block.restarts.items():
        yield "restarts", count, how
    for cause, seconds in block.waits_s.items():
        yield "wait_seconds", seconds, cause
    for name in _OF_BLOCK:
        if block.report is not None:
            yield name, getattr(block.report, name)
