"""The reference: one loop takes turns among the blocks. Every other executor must match it bit for bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from bll import data
from bll.executors.base import intra_op_threads, wire
from bll.messages import Packet
from bll.worker import BlockWorker, Run, WorkerEvent, run_block


class DequeChannel:
    """A line within one loop: what is received was sent in the same turn or before."""

    def __init__(self) -> None:
        self._packets: deque[Packet] = deque()

    def send(self, packet: Packet) -> None:
        self._packets.append(packet)

    def receive(self) -> Packet:
        return self._packets.popleft()

    def depth(self) -> int:
        return len(self._packets)


class SequentialExecutor:
    """Runs all blocks in the caller's thread."""

    def __init__(self) -> None:
        self._stop = False
        self._events: deque[WorkerEvent] = deque()
        self._workers: list[BlockWorker] = []
        self._threads = 1

    def launch(self, run: Run) -> None:
        dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
        self._threads = run.plan.config.executor.threads_per_block
        links = wire(run.plan, lambda _slots, _size: DequeChannel(), self._events.append, lambda: self._stop)
        self._workers = [BlockWorker(run, index, dataset, link) for index, link in enumerate(links)]

    def events(self) -> Generator[WorkerEvent, None, None]:
        loops = [run_block(worker) for worker in self._workers]
        with intra_op_threads(self._threads):
            for loop in reversed(loops):  # a block's first class table needs that of its right neighbour
                next(loop)
            while loops:
                # Blocks walk through the same schedule, so all end in the same turn.
                loops = [loop for loop in loops if next(loop, "ended") != "ended"]
                while self._events:
                    yield self._events.popleft()

    def stop(self) -> None:
        self._stop = True
