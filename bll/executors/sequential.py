"""The reference: one loop takes turns among the blocks. Every other executor must match it bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from bll import data
from bll.intra_op import intra_op_threads
from bll.joint import make_worker
from bll.messages import DequeChannel
from bll.wiring import WorkerEvent, wire
from bll.worker import Run, Worker, run_block


class SequentialExecutor:
    """Runs all blocks in the caller's thread."""

    def __init__(self) -> None:
        self._stop = False
        self._events: deque[WorkerEvent] = deque()
        self._workers: list[Worker] = []
        self._threads = 1

    def launch(self, run: Run) -> None:
        dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
        self._threads = run.plan.config.executor.threads_per_block
        workers = run.plan.workers
        links = wire(run.plan, workers, lambda _slots, _size: DequeChannel(), self._events.append, lambda: self._stop)
        self._workers = [make_worker(run, blocks, dataset, link) for blocks, link in zip(workers, links, strict=True)]

    def events(self) -> Generator[WorkerEvent, None, None]:
        loops = [run_block(worker) for worker in self._workers]
        with intra_op_threads(self._threads):
            for loop in reversed(loops):  # a block's first version may need that of its right neighbour
                next(loop)
            while loops:
                # Blocks walk through the same schedule, so all end in the same turn.
                loops = [loop for loop in loops if next(loop, "ended") != "ended"]
                while self._events:
                    yield self._events.popleft()

    def stop(self) -> None:
        self._stop = True
