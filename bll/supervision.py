"""Keeps a run going: takes it up again when a worker is lost, moves it at a marker, and ends it on request.

Only the loss of a worker is retried. What a block raises would be raised again, and ends the run.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

from bll import checkpoint
from bll.choices import ExecutorName
from bll.errors import BlockFailed, WorkerLost
from bll.events import BlockContinued, CheckpointDamaged, CheckpointSaved, Event, RolledBack, RunEnded
from bll.executors import Executor, make_executor
from bll.lineage import Continuation
from bll.placement import num_workers
from bll.placing import Placer
from bll.plan import Plan
from bll.rules import Rules
from bll.wiring import BlockEnded, BlockSaved, WorkerMissing
from bll.worker import Run

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.5
_MAX_DELAY_S = 30.0
_LOOK_S = 0.05
"""How long a request may go unseen while a restart is put off."""


class Restarts:
    """How often a run has been taken up again since it last got further, and how often it may be."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def progressed(self) -> None:
        """A new cut has been committed: what comes is counted afresh."""
        self.count = 0

    def after(self, lost: WorkerLost) -> float:
        """Count one more; how long to wait before it, in seconds: nothing at first, then twice as long each time.

        Raises BlockFailed once the limit is reached.
        """
        if self.count >= self._limit:
            tried = f"; it was the last of {self.count + 1} since a checkpoint was saved" if self.count else ""
            raise BlockFailed(lost.block, lost.reason + tried) from lost
        self.count += 1
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (self.count - 2)) if self.count > 1 else 0.0


class Supervisor:
    """One run, from launch to launch of its executor. Requests may come from any thread or signal handler."""

    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        root: Path | None,
        config_digest: str,
        make: Callable[[ExecutorName], Executor] = make_executor,
    ) -> None:
        self._plan = plan
        self._run_dir = run_dir
        self._root = root
        self._digest = config_digest
        self._num_workers = num_workers(plan)
        self._placer = Placer(plan, root)
        self._make = make
        self._executor = make(plan.config.executor.name)
        self._pausing = self._cancelling = self._moving = False
        self._lineage: list[Continuation] = []

    def pause(self) -> None:
        """Ask for an end at the next marker, with a checkpoint."""
        self._pausing = True
        self._executor.stop()

    def place(self, num_workers: int) -> None:
        """Move the run to that many workers at the next marker. Raises InvalidConfig if there cannot be so many."""
        name = self._plan.config.executor.name
        most = 1 if name is ExecutorName.SEQUENTIAL else len(self._plan.units)
        rules = Rules()
        rules.whole("num_workers", num_workers, 1, most)
        rules.done()
        self._num_workers = num_workers
        self._moving = True
        self._executor.stop()

    def cancel(self) -> None:
        """End the workers now. What came after the newest checkpoint is lost."""
        self._cancelling = True
        self._executor.cancel()

    def events(self) -> Iterator[Event]:
        """What the run tells until it is finished, paused or cancelled. The requests are done with then."""
        try:
            yield from self._supervised()
        finally:
            self._executor = self._make(self._plan.config.executor.name)  # the old one may hold much memory
            self._pausing = self._cancelling = self._moving = False

    def _supervised(self) -> Iterator[Event]:
        restarts = Restarts(self._plan.config.executor.max_restarts)
        start = yield from self._newest_cut()
        while start < self._plan.total_steps and not self._ending:
            try:
                ended = yield from self._attempt(start, restarts)
            except WorkerLost as lost:
                self._wait(restarts.after(lost))
                start = yield from self._newest_cut()
                log.warning("block %d: %s; going on from step %d", lost.block, lost.reason, start)
                yield RolledBack(start, lost.block, lost.reason, restarts.count)
            else:
                start = ended if ended is not None else (yield from self._newest_cut())
        yield RunEnded(start, finished=start == self._plan.total_steps)

    @property
    def _ending(self) -> bool:
        return self._pausing or self._cancelling

    def _newest_cut(self) -> Generator[CheckpointDamaged, None, int]:
        """Where to go on from."""
        step, damaged = checkpoint.newest_intact(self._run_dir, self._digest)
        for cut in damaged:
            assert step is not None
            log.warning("the checkpoint of step %d is damaged, going back to step %d: %s", cut.step, step, cut.cause)
            yield CheckpointDamaged(cut.step, step, cut.cause)
        return step or 0

    def _attempt(self, start: int, restarts: Restarts) -> Generator[Event, None, int | None]:
        """Run the blocks from step `start` until they end; returns the step, or None if they were cancelled."""
        plan = self._plan
        saved: dict[int, dict[int, str]] = defaultdict(dict)
        slowest_s: dict[int, float] = defaultdict(float)
        ended: int | None = None
        self._moving = False
        self._lineage = list(checkpoint.continuations(self._run_dir, start, self._digest)) if start else []
        placement, told = self._placer.placed(self._num_workers, start)
        yield told  # before there are workers, which an iterator that is closed here would leave behind
        self._executor.launch(Run(plan, self._digest, self._run_dir, self._root, start, placement))
        if self._cancelling:  # asked for while the executor could not hear it
            self._executor.cancel()
        elif self._pausing or self._moving:
            self._executor.stop()
        with closing(self._executor.events()) as events:
            for event in events:
                match event:
                    case BlockSaved(block, step, digest, write_s):
                        saved[step][block] = digest
                        slowest_s[step] = max(slowest_s[step], write_s)
                        if len(saved[step]) == plan.num_blocks:
                            kept = plan.config.executor.checkpoints_kept
                            lineage = [each for each in self._lineage if each.step <= step]
                            checkpoint.commit(self._run_dir, step, saved.pop(step), self._digest, kept, lineage)
                            restarts.progressed()
                            epoch = (step - 1) // plan.steps_per_epoch
                            yield CheckpointSaved(step, epoch, slowest_s.pop(step))
                    case WorkerMissing(lost, came_in):
                        self._wait(restarts.after(lost))
                        for each in came_in:
                            yield self._continued(each, lost.reason, restarts.count)
                    case BlockEnded(_, step):
                        ended = step
                    case _:
                        yield event
        return None if self._cancelling else ended

    def _continued(self, came_in: Continuation, cause: str, restart: int) -> BlockContinued:
        self._lineage.append(came_in)
        block, step, from_step = came_in.block, came_in.step, came_in.from_step
        log.warning("block %d: %s; going on at step %d with the weights of step %d", block, cause, step, from_step)
        return BlockContinued(block, step, from_step, cause, restart)

    def _wait(self, delay_s: float) -> None:
        until = time.monotonic() + delay_s
        while not self._ending and time.monotonic() < until:
            time.sleep(_LOOK_S)
