"""Writes down what a run tells: in the job's events and in the log."""

from __future__ import annotations

import contextlib
import logging

from bll.events import Alarm, BlockContinued, BlockProgress, BlockWaiting, CheckpointDamaged, RolledBack
from bll_server.errors import IllegalState
from bll_server.jobs.insistence import Insistence
from bll_server.jobs.records import RunEvent
from bll_server.jobs.report import Report
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

log = logging.getLogger(__name__)


class Recorder:
    """For all runs of a server."""

    def __init__(self, store: Store, insist: Insistence) -> None:
        self._store = store
        self._insist = insist

    def record(self, job_id: str, report: Report, line: str, run_s: float) -> None:
        """Take in one line of a run of which `report` knows the rest, after `run_s` seconds of the job's running time.

        Raises ValueError, StorageFull, and DatabaseUnavailable or ShuttingDown when this server ends.
        """
        was_started = report.started
        event = report.hear(line)
        if report.started and not was_started:
            with contextlib.suppress(IllegalState):  # it is being cancelled
                self._insist(self._store.transition, job_id, State.RUNNING)
        if event is None:
            return
        progress = report.progress() if isinstance(event, BlockProgress) else None
        self._insist(self._store.append, job_id, event, progress, run_s)
        _warn(event)


def _warn(event: RunEvent) -> None:
    """Log what an operator should see."""
    if isinstance(event, Alarm):
        log.warning("alarm %s: %s", event.signature, event.cause)
    elif isinstance(event, BlockWaiting):
        verb = "waited" if event.ended else "has waited"
        log.warning("block %d %s %.0f s for block %d", event.block, verb, event.wait_s, event.neighbour)
    elif isinstance(event, RolledBack):
        log.warning("block %d: %s; going on from step %d", event.block, event.cause, event.step)
    elif isinstance(event, BlockContinued):
        log.warning("block %d: %s; going on with the weights of step %d", event.block, event.cause, event.from_step)
    elif isinstance(event, CheckpointDamaged):
        log.warning("a damaged checkpoint, going on from step %d: %s", event.fallback_step, event.cause)
