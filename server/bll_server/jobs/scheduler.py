"""Runs queued jobs in the order of the queue, each in a process of its own, and keeps their states true.

One thread starts what is to start, lets running jobs give way and stops those that have run for long enough; one thread
per running job reads what its runner tells. All write states through the store alone, whose table of transitions
settles every race.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from bll.plan import Plan
from bll_server.errors import DatabaseUnavailable, IllegalState, NotFound, ShuttingDown
from bll_server.jobs import ending, insistence, log_file
from bll_server.jobs.admission import Standing
from bll_server.jobs.capacity import Capacity, demand, fitted
from bll_server.jobs.ending import Ending, goes_on, over_time
from bll_server.jobs.followers import Followers
from bll_server.jobs.insistence import Insistence
from bll_server.jobs.outlook import Outlook
from bll_server.jobs.recorder import Recorder
from bll_server.jobs.records import Failure, Job, JobSummary, check_deletable, plan_to_json
from bll_server.jobs.removal import Removal
from bll_server.jobs.report import Report
from bll_server.jobs.run import Run, describe
from bll_server.jobs.states import REQUESTS, Request, State
from bll_server.jobs.store import Store
from bll_server.jobs.submission import Submission
from bll_server.logs import bound
from bll_server.metrics import Metrics

log = logging.getLogger(__name__)


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
        capacity: Capacity,
        max_watchers: int,
        cancel_grace_s: float,
        pause_grace_s: float,
    ) -> None:
        """`publish` takes a model's id, a staging folder and a job's name, and returns the name of the version.

        `command` is given the job's folder and the folder of the data sets. Runs that were told to stop and have not
        within their grace are killed.
        """
        self._store = store
        self._jobs_dir = data_dir / "jobs"
        self._datasets = data_dir / "datasets"
        self.capacity = capacity
        self._graces_s = {State.CANCELLING: cancel_grace_s, State.PAUSING: pause_grace_s}
        self._command = command
        self._runs: dict[str, Run] = {}
        self.followers = Followers(
            store, self._jobs_dir, max_watchers, metrics, is_running=self._runs.__contains__, is_ending=self._is_ending
        )
        self._insist = Insistence(self._drains_within)
        self._recorder = Recorder(store, self._insist)
        self._ending = Ending(store, publish, metrics, self._jobs_dir, self._insist)
        self._removal = Removal(store, self._jobs_dir, data_dir / "deleted")
        self._outlook = Outlook(store, capacity)
        self._changed = threading.Condition()
        """Guards runs and outlook; notified when a job was queued, changed or has ended, and when draining begins."""
        self._draining = False
        self._thread = threading.Thread(target=self._serve, name="scheduler", daemon=True)

    def start(self) -> None:
        """Put the jobs that a dead server left behind back in order, and begin."""
        self._removal.finish()
        for job in self._store.in_states(State.STARTING, State.RUNNING):
            self._store.transition(job.job_id, State.QUEUED, goes_on("the server died", job))
        for job in self._store.in_states(State.PAUSING):
            self._store.transition(job.job_id, State.PAUSED, goes_on(ending.PAUSED, job))
        for job in self._store.in_states(State.CANCELLING):
            self._store.transition(job.job_id, State.CANCELLED, ending.CANCELLED)
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
            self.look_again()

    def update(self, job_id: str, changes: Mapping[str, Any], etag: str = "") -> Job:
        """See `Store.update`; what it says of the queue or of a running job holds at once."""
        try:
            return self._store.update(job_id, changes, etag)
        finally:
            self.look_again()

    def standing(self, job: JobSummary) -> Standing:
        """Where a queued job stands and what it waits for; for whom a running one is to give way."""
        with self._changed:
            if job.state is State.QUEUED:
                return self._outlook.choice(self._runs).standings.get(job.job_id, Standing(1, ""))
            run = self._runs.get(job.job_id)
        gives_way = run is not None and job.state is State.RUNNING and run.gives_way_to
        return Standing(0, f"gives way to jobs/{gives_way} at its next marker" if gives_way else "")

    def cancel(self, job_id: str) -> Job:
        """The job, on its way to CANCELLED or there. Raises NotFound, IllegalState."""
        return self._ask(job_id, Request.CANCEL)

    def cancel_all(self, job_ids: Iterable[str]) -> None:
        """Cancel those jobs, in that order, that are still there and not over."""
        for job_id in job_ids:
            with contextlib.suppress(NotFound, IllegalState):
                self.cancel(job_id)

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

        Raises NotFound, StaleEtag, IllegalState.
        """
        check_deletable(self._store.get(job_id))
        self.delete_all([job_id], lambda: self._store.delete(job_id, etag))

    def delete_all(self, job_ids: Sequence[str], forget: Callable[[], None]) -> None:
        """The same of several jobs that are over or paused, whose rows `forget` is to delete, all or none."""
        with self._changed:  # no launch meanwhile
            self._changed.wait_for(lambda: self._runs.keys().isdisjoint(job_ids))
            free = self._removal.remove(job_ids, forget)
        free()

    def drain(self, timeout_s: float) -> None:
        """Take no new jobs, stop the running ones at their next marker, kill those that have not ended in time.

        Jobs that did not come to their end are QUEUED again.
        """
        with self._changed:
            self._draining = True
            self.look_again()
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

    def _drains_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._draining, seconds)

    def look_again(self) -> None:
        """The store has other jobs than before, or has them in other states."""
        with self._changed:
            self._outlook.changed()
            self._changed.notify_all()

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
            if request is Request.RETRY and job.is_over_time:
                limit_s = job.metadata.max_run_duration_s
                rule = f"has run for all of its max_run_duration, {limit_s:g} s; give it a longer one first"
                raise IllegalState(f"jobs/{job_id} {rule}")
            reason = f"{request} by request"
            if following in (State.QUEUED, State.PAUSED):
                reason = goes_on(reason, job)
            try:
                job = self._store.transition(
                    job_id, following, reason, before=job.state, most_unfinished=most_unfinished
                )
            except IllegalState:  # the state moved on between the two looks
                continue
            except DatabaseUnavailable:
                self.look_again()
                raise
            self._act_on(job)
            return job

    def _act_on(self, job: Job) -> None:
        """Let the job's run, or the queue, hear of what was asked."""
        with self._changed:  # not while the job is being launched
            self.look_again()
            run = self._runs.get(job.job_id)
        if run and job.state in self._graces_s:
            run.stop(self._graces_s[job.state])

    def _serve(self) -> None:
        with self._changed:
            while not self._draining:
                try:
                    wait_s = self._look()
                except Exception as error:  # this thread lives as long as the server: the disk may have room later
                    if not isinstance(error, DatabaseUnavailable | ShuttingDown):  # logged where they were raised
                        log.exception("the queue cannot be served; trying again")
                    wait_s = insistence.RETRY_S
                    self._outlook.changed()
                self._changed.wait(wait_s)

    def _look(self) -> float | None:
        """Do what is to be done now; how long nothing else will be, unless something changes."""
        choice = self._outlook.choice(self._runs)
        for job_id in choice.start:
            self._launch(job_id)
        for job_id in choice.give_way:
            if run := self._runs.get(job_id):  # a launch may have had to wait for the database meanwhile
                log.info("jobs/%s gives way to jobs/%s", job_id, choice.to)
                run.gives_way_to = choice.to
                run.stop()
        if choice.start or choice.give_way:
            self._outlook.changed()
            return 0.0  # look again at what it has come to
        runs = ((job, self._runs.get(job.job_id)) for job in self._outlook.active.values())
        left = (self._time_left(job, run) for job, run in runs if run)
        return min((time_s for time_s in left if time_s is not None), default=None)

    def _time_left(self, job: JobSummary, run: Run) -> float | None:
        """Until the job has run for as long as it may; it is stopped if it has."""
        limit_s = job.metadata.max_run_duration_s
        if not limit_s or run.is_over_time:
            return None
        if run.run_s < limit_s:
            return limit_s - run.run_s
        run.is_over_time = True
        run.stop(self._graces_s[State.PAUSING])
        return None

    def _launch(self, job_id: str) -> None:
        with bound(job_id=job_id):
            folder = self._jobs_dir / job_id
            try:
                job = self._insist(self._store.transition, job_id, State.STARTING)
            except NotFound:  # cancelled and deleted this moment
                return
            except IllegalState:
                job = self._insist(self._store.get, job_id)
                if job.state is not State.STARTING:  # cancelled this moment; else written, and the answer was lost
                    return
            if job.is_over_time:
                self._give_up(job_id, over_time(job))
                return
            needs = demand(job.plan, job.owner, self.capacity)
            plan = fitted(job.plan, job.owner, self.capacity)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "plan.json").write_text(plan_to_json(plan))
                command = [*self._command, str(folder), str(self._datasets)]
                run = Run(command, folder / log_file.LOG, job.owner, needs, job.run_s)
            except OSError as error:
                self._give_up(job_id, Failure("OSError", f"the job cannot be started: {error}"))
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
                    self._recorder.record(job.job_id, report, line, run.run_s)
            except (DatabaseUnavailable, ShuttingDown):  # and this server ends
                run.kill()
            except Exception as error:  # whatever it is, the run is no use if it cannot be recorded
                log.exception("what the run tells cannot be recorded")
                report.failure = report.failure or Failure(type(error).__name__, str(error))
                run.kill()
            status = run.end()
            log.info("the training process %s", describe(status))
            try:
                self._ending.conclude(job, report, run, status)
            except (DatabaseUnavailable, ShuttingDown) as error:
                log.error("how the run ended is left to the next start: %s", error)
            finally:
                with self._changed:
                    del self._runs[job.job_id]
                    self.look_again()
                self._store.wake()

    def _give_up(self, job_id: str, failure: Failure) -> None:
        """Fail a job that has no run, on a thread of its own: this one may have to wait for room on the disk."""

        def fail() -> None:
            with contextlib.suppress(DatabaseUnavailable, ShuttingDown):  # this server ends: the next finds the job
                self._ending.fail(job_id, failure)
            self.look_again()

        threading.Thread(target=fail, daemon=True).start()
