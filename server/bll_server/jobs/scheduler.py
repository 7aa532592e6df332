"""Runs queued jobs in the order of the queue, each in a process of its own, and keeps their states true.

One thread fills free slots; one thread per running job reads what its runner tells. Both write states through the
store alone, whose table of transitions settles every race.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar, Unpack

from bll.errors import ExportError
from bll.events import Alarm, BlockContinued, BlockProgress, BlockWaiting, CheckpointDamaged, Evaluation, RolledBack
from bll.plan import Plan
from bll_server.errors import DatabaseUnavailable, IllegalState, NotFound, ShuttingDown, StorageFull
from bll_server.jobs import log_file
from bll_server.jobs.followers import Followers
from bll_server.jobs.records import Failure, Job, JobSummary, check_deletable, plan_to_json
from bll_server.jobs.report import Report
from bll_server.jobs.run import Run, describe
from bll_server.jobs.states import REQUESTS, Request, State
from bll_server.jobs.store import Store
from bll_server.jobs.submission import Submission
from bll_server.logs import bound
from bll_server.metrics import Metrics

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_RETRY_S = 2.0
"""Time between two looks at a disk that was full or failed, or a database that was away."""
_CANCELLED, _PAUSED = f"{Request.CANCEL} by request", f"{Request.PAUSE} by request"


class Scheduler:
    """The jobs of one data directory, from the queue to their end."""

    def __init__(
        self,
        store: Store,
        publish: Callable[[str, Path, str], str],
        metrics: Metrics,
        data_dir: Path,
        command: Sequence[str],
        *,
        max_jobs: int,
        max_watchers: int,
        cancel_grace_s: float,
    ) -> None:
        """`publish` takes a model's id, a staging folder and a job's name, and returns the name of the version.

        `command` is given the job's folder and the folder of the data sets.
        """
        self._store = store
        self._publish = publish
        self._metrics = metrics
        self._jobs_dir = data_dir / "jobs"
        self._deleted_dir = data_dir / "deleted"
        self._datasets = data_dir / "datasets"
        self._max_jobs = max_jobs
        self._cancel_grace_s = cancel_grace_s
        self._command = command
        self._runs: dict[str, Run] = {}
        self.followers = Followers(
            store, self._jobs_dir, max_watchers, is_running=self._runs.__contains__, is_ending=self._is_ending
        )
        self._changed = threading.Condition()
        """Guards what follows; notified when a job was queued or has ended, and when draining begins."""
        self._draining = False
        self._thread = threading.Thread(target=self._fill_slots, name="scheduler", daemon=True)

    def start(self) -> None:
        """Put the jobs that a dead server left behind back in order, and begin."""
        self._finish_deletions()
        for job in self._store.in_states(State.STARTING, State.RUNNING):
            self._store.transition(job.job_id, State.QUEUED, _goes_on("the server died", job))
        for job in self._store.in_states(State.PAUSING):
            self._store.transition(job.job_id, State.PAUSED, _goes_on(_PAUSED, job))
        for job in self._store.in_states(State.CANCELLING):
            self._store.transition(job.job_id, State.CANCELLED, _CANCELLED)
        self._thread.start()

    def check_open(self) -> None:
        """Raises ShuttingDown if new jobs are refused."""
        if self._draining:
            raise ShuttingDown("the server is shutting down and takes no new jobs")

    def submit(self, job_id: str, model_id: str, spec: bytes, plan: Plan, **more: Unpack[Submission]) -> Job:
        """See `Store.create`. Raises ShuttingDown too."""
        self.check_open()
        try:
            return self._store.create(job_id, model_id, spec, plan, **more)
        finally:  # the job may be there although the answer of the database was lost
            self._look_again()

    def cancel(self, job_id: str) -> Job:
        """The job, on its way to CANCELLED or there. Raises NotFound, IllegalState."""
        return self._ask(job_id, Request.CANCEL)

    def pause(self, job_id: str) -> Job:
        """The job, on its way to PAUSED or there. Raises NotFound, IllegalState."""
        return self._ask(job_id, Request.PAUSE)

    def resume(self, job_id: str) -> Job:
        """The paused job, queued again. Raises NotFound, IllegalState."""
        return self._ask(job_id, Request.RESUME)

    def retry(self, job_id: str, most_unfinished: float = math.inf) -> Job:
        """The failed or cancelled job, queued again. Raises NotFound, IllegalState, QuotaExceeded."""
        return self._ask(job_id, Request.RETRY, most_unfinished)

    def delete(self, job_id: str, etag: str = "") -> None:
        """Forget a job that is over or paused: its events, checkpoints and log; never the model that it published.

        Its folder is moved away before its row goes, and moved back at the next start if the server dies in between:
        so there is never a job without its checkpoints, nor checkpoints that another job of the name would find.
        Raises NotFound, StaleEtag, IllegalState.
        """
        check_deletable(self._store.get(job_id))
        folder, grave = self._jobs_dir / job_id, self._deleted_dir / job_id
        with self._changed:  # no launch meanwhile
            self._changed.wait_for(lambda: job_id not in self._runs)
            shutil.rmtree(grave, ignore_errors=True)
            if folder.exists():
                self._deleted_dir.mkdir(exist_ok=True)
                folder.rename(grave)
            try:
                self._store.delete(job_id, etag)
            except BaseException:
                if grave.exists():
                    grave.rename(folder)
                raise
        shutil.rmtree(grave, ignore_errors=True)

    def drain(self, timeout_s: float) -> None:
        """Take no new jobs, stop the running ones at their next marker, kill those that have not ended in time.

        Jobs that did not come to their end are QUEUED again.
        """
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            self._store.wake()
            for run in self._runs.values():
                run.stop()
            self._changed.wait_for(lambda: not self._runs, timeout_s)
            for run in self._runs.values():
                run.kill()
            self._changed.wait_for(lambda: not self._runs)
        self._thread.join()

    def _is_ending(self, job_id: str) -> bool:
        """The server is draining and has nothing more to tell of the job."""
        return self._draining and job_id not in self._runs

    def _finish_deletions(self) -> None:
        for grave in self._deleted_dir.glob("*"):
            try:
                self._store.last_event(grave.name)
            except NotFound:
                shutil.rmtree(grave, ignore_errors=True)
            else:
                grave.rename(self._jobs_dir / grave.name)

    def _ask(self, job_id: str, request: Request, most_unfinished: float = math.inf) -> Job:
        allowed = REQUESTS[request]
        while True:
            job = self._store.get(job_id)
            following = allowed.get(job.state)
            if following is None:
                states = ", ".join(state.upper() for state in allowed)
                raise IllegalState(f"jobs/{job_id} is {job.state.upper()}; jobs that are {states} can be {request}")
            if following is job.state:
                self._act_on(job)  # the one who asked first may have lost the answer of the database
                return job
            reason = f"{request} by request"
            if following in (State.QUEUED, State.PAUSED):
                reason = _goes_on(reason, job)
            try:
                job = self._store.transition(
                    job_id, following, reason, before=job.state, most_unfinished=most_unfinished
                )
            except IllegalState:  # the state moved on between the two looks
                continue
            except DatabaseUnavailable:
                self._look_again()
                raise
            self._act_on(job)
            return job

    def _look_again(self) -> None:
        """Let the thread that fills the slots look at the queue."""
        with self._changed:
            self._changed.notify_all()

    def _act_on(self, job: Job) -> None:
        """Let the job's run, or the queue, hear of what was asked."""
        with self._changed:  # not while the job is being launched
            self._changed.notify_all()
            run = self._runs.get(job.job_id)
        if not run or job.state not in (State.PAUSING, State.CANCELLING):
            return
        run.stop()
        if job.state is State.CANCELLING:
            timer = threading.Timer(self._cancel_grace_s, run.kill)
            timer.daemon = True
            timer.start()

    def _fill_slots(self) -> None:
        with self._changed:
            while not self._draining:
                try:
                    # A job that is queued again may have a run that is about to be cleared away.
                    waiting = [job for job in self._store.queue() if job.job_id not in self._runs]
                    for job in waiting[: self._max_jobs - len(self._runs)]:
                        self._launch(job.job_id)
                except (DatabaseUnavailable, ShuttingDown):  # logged where it was raised
                    self._changed.wait(_RETRY_S)
                except Exception:  # this thread lives as long as the server: the disk may have room again later
                    log.exception("the queue cannot be served; trying again")
                    self._changed.wait(_RETRY_S)
                else:
                    self._changed.wait()

    def _launch(self, job_id: str) -> None:
        with bound(job_id=job_id):
            folder = self._jobs_dir / job_id
            try:
                job = self._insist(self._store.transition, job_id, State.STARTING)
            except IllegalState:
                job = self._insist(self._store.get, job_id)
                if job.state is not State.STARTING:  # cancelled this moment; else written, and the answer was lost
                    return
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "plan.json").write_text(plan_to_json(job.plan))
                run = Run([*self._command, str(folder), str(self._datasets)], folder / log_file.LOG)
            except OSError as error:
                failure = Failure("OSError", f"the job cannot be started: {error}")
                threading.Thread(target=self._give_up, args=(job_id, failure), daemon=True).start()
                return
            log.info("started as process %s", run.pid)
            self._runs[job_id] = run
            threading.Thread(target=self._follow, args=(job, run), name=job_id, daemon=True).start()

    def _follow(self, job: Job, run: Run) -> None:
        """From a run's first line to the state that its end leads to."""
        with bound(job_id=job.job_id):
            report = Report(job.plan)
            try:
                for line in run.lines():
                    self._hear(job.job_id, report, line)
            except (DatabaseUnavailable, ShuttingDown):  # and this server ends
                run.kill()
            except Exception as error:  # whatever it is, the run is no use if it cannot be recorded
                log.exception("what the run tells cannot be recorded")
                report.failure = report.failure or Failure(type(error).__name__, str(error))
                run.kill()
            status = run.end()
            log.info("the training process %s", describe(status))
            try:
                self._conclude(job, report, status)
            except (DatabaseUnavailable, ShuttingDown) as error:
                log.error("how the run ended is left to the next start: %s", error)
            finally:
                self._metrics.job_ended(job.job_id)
                with self._changed:
                    del self._runs[job.job_id]
                    self._changed.notify_all()
                self._store.wake()

    def _hear(self, job_id: str, report: Report, line: str) -> None:
        was_started = report.started
        event = report.hear(line)
        if report.started and not was_started:
            with contextlib.suppress(IllegalState):  # it is being cancelled
                self._insist(self._store.transition, job_id, State.RUNNING)
        if event is None:
            return
        progress = report.progress() if isinstance(event, BlockProgress) else None
        self._insist(self._store.append, job_id, event, progress)
        if isinstance(event, BlockProgress):
            self._metrics.block_progressed(job_id, event)
        elif isinstance(event, Evaluation):
            self._metrics.evaluated(job_id, event)
        elif isinstance(event, Alarm):
            self._metrics.alarm_raised(event)
            log.warning("alarm %s: %s", event.signature, event.cause)
        elif isinstance(event, BlockWaiting):
            verb = "waited" if event.ended else "has waited"
            log.warning("block %d %s %.0f s for block %d", event.block, verb, event.wait_s, event.neighbour)
        elif isinstance(event, RolledBack):
            self._metrics.run_rolled_back()
            log.warning("block %d: %s; going on from step %d", event.block, event.cause, event.step)
        elif isinstance(event, BlockContinued):
            self._metrics.block_continued()
            log.warning("block %d: %s; going on with the weights of step %d", event.block, event.cause, event.from_step)
        elif isinstance(event, CheckpointDamaged):
            log.warning("a damaged checkpoint, going on from step %d: %s", event.fallback_step, event.cause)
        if progress:
            self._metrics.job_progressed(job_id, progress.step, progress.samples_per_s)

    def _conclude(self, job: Job, report: Report, status: int) -> None:
        folder = self._jobs_dir / job.job_id
        now = self._insist(self._store.get, job.job_id)
        if now.state is State.CANCELLING:
            self._settle(job.job_id, State.CANCELLED, _CANCELLED)
        elif report.exported and status == 0:
            try:
                name = f"jobs/{job.job_id}"
                version = self._insist(self._publish, job.model_id, folder / "staging", name)
            except (ExportError, OSError) as error:
                self._fail(job.job_id, Failure(type(error).__name__, f"the model cannot be published: {error}"))
                return
            self._settle(job.job_id, State.SUCCEEDED, model_version=version)
            shutil.rmtree(folder / "run", ignore_errors=True)  # the checkpoints of a job that needs them no more
        elif report.failure:
            self._fail(job.job_id, report.failure)
        elif now.state is State.PAUSING and (status == 0 or self._draining):
            self._settle(job.job_id, State.PAUSED, _goes_on(_PAUSED, now))
        elif self._draining:
            self._settle(job.job_id, State.QUEUED, _goes_on("the server was stopped", now))
        else:
            how = f"the training process {describe(status)}; its log is {folder / log_file.LOG} on the server"
            self._fail(job.job_id, Failure("ProcessDied", how))

    def _insist(self, ask: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `ask` returns, once the job database is there. Raises DatabaseUnavailable when this server ends."""
        while True:
            try:
                return ask(*args, **kwargs)
            except DatabaseUnavailable:
                with self._changed:
                    if self._changed.wait_for(lambda: self._draining, _RETRY_S):
                        raise

    def _give_up(self, job_id: str, failure: Failure) -> None:
        with contextlib.suppress(DatabaseUnavailable, ShuttingDown):  # this server ends: the next start finds the job
            self._fail(job_id, failure)
        self._look_again()

    def _fail(self, job_id: str, failure: Failure) -> None:
        self._settle(job_id, State.FAILED, failure.message, failure)

    def _settle(
        self, job_id: str, state: State, reason: str = "", failure: Failure | None = None, model_version: str = ""
    ) -> None:
        """Write the state that a run's end led to, whatever it takes; a request that came first prevails."""
        while True:
            try:
                self._insist(
                    self._store.transition, job_id, state, reason, failure=failure, model_version=model_version
                )
            except IllegalState:
                now = self._insist(self._store.get, job_id)
                if now.state is state:  # written, and the answer was lost
                    return
                if now.state is State.PAUSING:
                    state, reason, failure = State.PAUSED, _goes_on(_PAUSED, now), None
                else:
                    state, reason, failure = State.CANCELLED, _CANCELLED, None
            except StorageFull:
                log.exception("the job's state %s cannot be written; trying again", state.upper())
                with self._changed:
                    if self._changed.wait_for(lambda: self._draining, _RETRY_S):
                        return  # the next start finds the job as it was and runs it again
            else:
                log.info("the job is %s %s", state.upper(), reason)
                return


def _goes_on(why: str, job: JobSummary) -> str:
    if job.checkpoint_step:
        return f"{why}; goes on from step {job.checkpoint_step}"
    return f"{why}; begins again" if job.start_time else why
