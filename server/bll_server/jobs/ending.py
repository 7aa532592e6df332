"""The state that the end of a run leads to, and the words for it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from bll.errors import ExportError
from bll_server.errors import IllegalState, StorageFull
from bll_server.jobs import insistence, log_file
from bll_server.jobs.insistence import Insistence
from bll_server.jobs.records import DEADLINE, Failure, Job, JobSummary
from bll_server.jobs.report import Report
from bll_server.jobs.run import Run, describe
from bll_server.jobs.states import Request, State
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics

log = logging.getLogger(__name__)

CANCELLED, PAUSED = f"{Request.CANCEL} by request", f"{Request.PAUSE} by request"


class Ending:
    """For all runs of a server."""

    def __init__(
        self,
        store: Store,
        publish: Callable[[str, Path, str], str],
        metrics: Metrics,
        jobs_dir: Path,
        insist: Insistence,
    ) -> None:
        self._store = store
        self._metrics = metrics.jobs
        self._publish = publish
        self._jobs_dir = jobs_dir
        self._insist = insist

    def conclude(self, job: Job, report: Report, run: Run, status: int) -> None:
        """Write the state that follows from what the run has told, from how it ended and from what was asked of it.

        Raises DatabaseUnavailable or ShuttingDown when this server ends: the next one goes on from there.
        """
        folder = self._jobs_dir / job.job_id
        now = self._insist(self._store.get, job.job_id)
        if now.state is State.CANCELLING:
            self._settle(job.job_id, run, State.CANCELLED, CANCELLED)
        elif report.exported and status == 0:
            self._metrics.exported(report.seconds)
            try:
                version = self._insist(self._publish, job.model_id, folder / "staging", f"jobs/{job.job_id}")
            except (ExportError, OSError) as error:
                self.fail(job.job_id, Failure(type(error).__name__, f"the model cannot be published: {error}"), run)
                return
            self._settle(job.job_id, run, State.SUCCEEDED, model_version=version)
            shutil.rmtree(folder / "run", ignore_errors=True)  # the checkpoints of a job that needs them no more
        elif report.failure:
            self.fail(job.job_id, report.failure, run)
        elif now.state is State.PAUSING and (status == 0 or run.was_late or self._insist.ends_within(0)):
            self._settle(job.job_id, run, State.PAUSED, goes_on(_paused(run), now))
        elif run.is_over_time:
            self.fail(job.job_id, over_time(now), run)
        elif run.gives_way_to and status == 0:
            reason = f"gave way to jobs/{run.gives_way_to}, which has a higher priority"
            self._settle(job.job_id, run, State.QUEUED, goes_on(reason, now))
        elif self._insist.ends_within(0):
            self._settle(job.job_id, run, State.QUEUED, goes_on("the server was stopped", now))
        else:
            how = f"the training process {describe(status)}; its log is {folder / log_file.LOG} on the server"
            self.fail(job.job_id, Failure("ProcessDied", how), run)

    def fail(self, job_id: str, failure: Failure, run: Run | None = None) -> None:
        """Write that the job has failed, after its `run` or before there was one."""
        self._settle(job_id, run, State.FAILED, failure.message, failure)

    def _settle(
        self,
        job_id: str,
        run: Run | None,
        state: State,
        reason: str = "",
        failure: Failure | None = None,
        model_version: str = "",
    ) -> None:
        """Write the state that a run's end led to, whatever it takes; a request that came first prevails."""
        run_s = run.run_s if run else None
        while True:
            try:
                self._insist(
                    self._store.transition,
                    job_id,
                    state,
                    reason,
                    failure=failure,
                    model_version=model_version,
                    run_s=run_s,
                )
            except IllegalState:
                now = self._insist(self._store.get, job_id)
                if now.state is state:  # written, and the answer was lost
                    return
                if now.state is State.PAUSING:
                    state, reason, failure = State.PAUSED, goes_on(PAUSED, now), None
                else:
                    state, reason, failure = State.CANCELLED, CANCELLED, None
            except StorageFull:
                log.exception("the job's state %s cannot be written; trying again", state.upper())
                if self._insist.ends_within(insistence.RETRY_S):
                    return  # the next start finds the job as it was and runs it again
            else:
                log.info("the job is %s %s", state.upper(), reason)
                return


def over_time(job: JobSummary) -> Failure:
    """Of a job that has run for as long as it may."""
    rule = f"has run for {job.metadata.max_run_duration_s:g} s, its max_run_duration"
    return Failure(DEADLINE, f"{DEADLINE}: {rule}; with a longer one, a retry goes on from step {job.checkpoint_step}")


def goes_on(why: str, job: JobSummary) -> str:
    """`why` the job is where it is, and from which step it is to go on."""
    if job.checkpoint_step:
        return f"{why}; goes on from step {job.checkpoint_step}"
    return f"{why}; begins again" if job.start_time else why


def _paused(run: Run) -> str:
    return f"{PAUSED}, and killed since it had not stopped in time" if run.was_late else PAUSED
