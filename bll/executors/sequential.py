"""The reference: one worker that holds all blocks. Every other executor must match it bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from bll import data
from bll.intra_op import intra_op_threads
from bll.turns import Worker
from bll.wiring import Links, WorkerEvent
from bll.worker import Run


class SequentialExecutor:
    """Runs all blocks in the caller's thread."""

    def __init__(self) -> None:
        self._stop = self._cancelled = False
        self._events: deque[WorkerEvent] = deque()
        self._worker: Worker | None = None
        self._threads = 1

    def launch(self, run: Run) -> None:
        self._stop = self._cancelled = False
        dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
        self._threads = run.plan.config.executor.threads_per_block
        alone = Links(None, None, None, None, emit=self._events.append, stop_requested=lambda: self._stop)
        self._worker = Worker(run, range(run.plan.num_blocks), dataset, alone)

    def events(self) -> Generator[WorkerEvent, None, None]:
        assert self._worker is not None
        with intra_op_threads(self._threads):
            for _ in self._worker.turns():
                if self._cancelled:
                    return
                while self._events:
                    yield self._events.popleft()

    def stop(self) -> None:
        self._stop = True

    def cancel(self) -> None:
        self._cancelled = True
