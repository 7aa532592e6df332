"""A thread a worker in one process: torch releases the interpreter lock inside its operations, so blocks overlap."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator

import torch

from bll import data
from bll.errors import BllError, BlockFailed
from bll.intra_op import intra_op_threads
from bll.messages import Aborted, Packet
from bll.placement import worker_name
from bll.turns import Worker
from bll.wiring import BlockEnded, WorkerEvent, wire
from bll.worker import Run

_POLL_S = 0.2
"""How long a waiting worker may take to notice that the run is being torn down."""


class QueueChannel:
    """A bounded line between two threads."""

    crosses_processes = False

    def __init__(self, slots: int, aborted: threading.Event) -> None:
        self.slots = slots
        self._packets: queue.Queue[Packet] = queue.Queue(slots)
        self._aborted = aborted

    def send(self, packet: Packet, timeout_s: float) -> bool:
        for slice_s in self._slices(timeout_s):
            with contextlib.suppress(queue.Full):
                self._packets.put(packet, timeout=slice_s)
                return True
        return False

    def receive(self, timeout_s: float) -> Packet | None:
        for slice_s in self._slices(timeout_s):
            with contextlib.suppress(queue.Empty):
                return self._packets.get(timeout=slice_s)
        return None

    def depth(self) -> int:
        return self._packets.qsize()

    def _slices(self, timeout_s: float) -> Iterator[float]:
        """Times to wait, `timeout_s` in all. Raises Aborted once the run is being torn down."""
        end, left_s = time.monotonic() + timeout_s, timeout_s
        while True:
            if self._aborted.is_set():
                raise Aborted
            yield max(0.0, min(left_s, _POLL_S))
            left_s = end - time.monotonic()
            if left_s <= 0:
                return


class ThreadExecutor:
    """Runs each worker in a thread of the caller's process."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._aborted = threading.Event()
        self._events: queue.SimpleQueue[WorkerEvent | tuple[int, Exception] | None] = queue.SimpleQueue()
        """None: the run is cancelled."""
        self._workers: list[Worker] = []
        self._threads_per_block = 1

    def launch(self, run: Run) -> None:
        self._stop, self._aborted, self._events = threading.Event(), threading.Event(), queue.SimpleQueue()
        dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
        self._threads_per_block = run.plan.config.executor.threads_per_block
        workers = run.placement.workers
        links = wire(
            run.plan,
            workers,
            lambda slots, _size: QueueChannel(slots, self._aborted),
            self._events.put,
            self._stop.is_set,
        )
        # Built here, one after the other: initial weights are drawn from torch's global generator.
        self._workers = [Worker(run, blocks, dataset, link) for blocks, link in zip(workers, links, strict=True)]

    def events(self) -> Generator[WorkerEvent, None, None]:
        threads = [
            threading.Thread(target=self._work, args=(worker,), name=worker_name(worker.blocks), daemon=True)
            for worker in self._workers
        ]
        with intra_op_threads(self._threads_per_block):
            try:
                for thread in threads:
                    thread.start()
                running = len(threads)
                while running:
                    event = self._events.get()
                    if event is None:
                        return
                    if isinstance(event, tuple):
                        block, error = event
                        raise error if isinstance(error, BllError) else BlockFailed(block, repr(error)) from error
                    running -= isinstance(event, BlockEnded)
                    yield event
            finally:
                self._aborted.set()
                for thread in threads:
                    if thread.ident is not None:
                        thread.join()

    def stop(self) -> None:
        self._stop.set()

    def cancel(self) -> None:
        self._events.put(None)

    def _work(self, worker: Worker) -> None:
        torch.set_num_threads(self._threads_per_block)
        try:
            for _ in worker.turns():
                if self._aborted.is_set():
                    return
        except Aborted:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller must hear of it
            self._events.put((worker.turn, error))
