"""A process a worker, from a forkserver that has torch loaded; messages through shared-memory rings.

Who watches whom: the parent sees a worker's death by the end of its pipe, and its silence by its heartbeat, and ends
the others; a worker sees its parent's death by the end of a pipe that only the parent holds, and ends itself. Nothing
outlives the parent. The parent reads the data set, and workers map it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NamedTuple, NoReturn

import torch

from bll import data
from bll.errors import BllError, BlockFailed, WorkerLost
from bll.executors.heartbeat import Heartbeats, Listener
from bll.executors.ring import RingChannel
from bll.executors.shared_data import SharedDataset
from bll.placement import worker_name
from bll.turns import Worker
from bll.wiring import BlockEnded, Links, WorkerEvent, wire
from bll.worker import Run

ENVIRONMENT = {
    # Waiting threads sleep: blocks share the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Keep freed activations in the heap; giving them back costs about 2,000 page faults a step.
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the largest that glibc accepts
}


PRELOAD = [__name__, "torch._dynamo"]
"""What workers find in memory. An optimizer imports torch._dynamo when it is made: over a second, in each of them."""


class ProcessExecutor:
    """Runs each worker in a process of its own."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._stop = self._context.RawValue(ctypes.c_bool, False)
        self._workers: tuple[range, ...] = ()
        self._cancelled = False
        self._woken, self._wake = self._context.Pipe(duplex=False)
        self._data: SharedDataset | None = None
        self._processes: list[ForkServerProcess] = []
        self._events: list[Connection] = []
        self._lifelines: list[Connection] = []
        self._links: list[Links] = []

    def launch(self, run: Run) -> None:
        self._workers = run.placement.workers
        self._context.set_forkserver_preload(PRELOAD)
        with _environment(ENVIRONMENT):
            forkserver.ensure_running()
        if self._data is None:
            self._data = SharedDataset(data.load(run.plan.config.data, run.plan.config.seed, run.data_root))
        self._stop.value = self._cancelled = False
        while self._woken.poll():
            self._woken.recv_bytes()
        self._processes, self._events, self._lifelines = [], [], []
        try:
            self._start(run)
        except BaseException:
            self._end()
            raise

    def _start(self, run: Run) -> None:
        limit_s = run.plan.config.executor.heartbeat_seconds
        self._heartbeats = Heartbeats(self._context, len(self._workers), limit_s)
        self._listener = Listener(self._heartbeats)
        # Kept: a child opens what channels are made of when it starts.
        self._links = wire(run.plan, self._workers, self.make_channel, emit=_unwired, stop_requested=_unwired)
        cpus = run.placement.cpus or ((),) * len(self._workers)
        for index, (blocks, own_cpus, link) in enumerate(zip(self._workers, cpus, self._links, strict=True)):
            events, sender = self._context.Pipe(duplex=False)
            lifeline, held = self._context.Pipe(duplex=False)
            channels = (link.inbox, link.outbox, link.backward_in, link.backward_out)
            life = _Life(lifeline, self._heartbeats, index, own_cpus)
            process = self._context.Process(
                target=_work,
                args=(run, blocks, self._data, channels, sender, life, self._stop),
                name=worker_name(blocks),
                daemon=True,
            )
            self._events.append(events)
            self._lifelines.append(held)
            process.start()
            sender.close()
            lifeline.close()
            self._processes.append(process)

    def make_channel(self, slots: int, size_bytes: int) -> RingChannel:
        """A line between two workers. What a slower link would do to a run is measured with another kind of ring."""
        return RingChannel(self._context, slots, size_bytes)

    def events(self) -> Generator[WorkerEvent, None, None]:
        running = dict(enumerate(self._events))
        try:
            while running and not self._cancelled:
                now = time.monotonic()
                ready = connection.wait([self._woken, *running.values()], self._listener.next_look_s(now))
                for index in [index for index, events in running.items() if events in ready]:
                    try:
                        event = running[index].recv()
                    except (EOFError, OSError):
                        yield from self._last_words()
                        raise self._death(index) from None
                    if isinstance(event, Exception):
                        raise event
                    if isinstance(event, BlockEnded):
                        del running[index]
                    yield event
                if (silent := self._listener.silent(running, time.monotonic())) is not None:
                    yield from self._last_words()
                    how = f"gave no sign of life for {self._heartbeats.limit_s:g} seconds"
                    raise WorkerLost(self._workers[silent][0], self._whose(silent) + how)
        finally:
            event = None  # an error here would hold this frame, and with it the executor's memory
            self._end()

    def stop(self) -> None:
        self._stop.value = True

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._wake.send_bytes(b"cancel")

    def _last_words(self) -> Generator[WorkerEvent, None, None]:
        """End the workers, and pass on what they had told. Raises an error that was among it."""
        for process in self._processes:
            process.kill()
        try:
            for events in self._events:
                with contextlib.suppress(EOFError, OSError):
                    while True:
                        event = events.recv()
                        if isinstance(event, Exception):
                            raise event
                        yield event
        finally:
            event = None  # as in `events`

    def _death(self, index: int) -> BlockFailed:
        process = self._processes[index]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        # Who cannot even start, because of what it was given, would not do so another time.
        began = code < 0 or self._heartbeats.has_beaten(index)
        return (WorkerLost if began else BlockFailed)(self._workers[index][0], self._whose(index) + how)

    def _whose(self, index: int) -> str:
        blocks, pid = self._workers[index], self._processes[index].pid
        return f"{'its process' if len(blocks) == 1 else f'the process of {worker_name(blocks)}'} (pid {pid}) "

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for end in (*self._events, *self._lifelines):
            end.close()


class _Life(NamedTuple):
    """What ties a worker to its parent and to the machine."""

    line: Connection
    """Ends with the parent."""
    heartbeats: Heartbeats
    worker: int
    cpus: tuple[int, ...]
    """Cores to keep to; empty: any."""


def _work(
    run: Run,
    blocks: range,
    dataset: SharedDataset,
    channels: tuple[RingChannel | None, RingChannel | None, RingChannel | None, RingChannel | None],
    events: Connection,
    life: _Life,
    stop: ctypes.c_bool,
) -> None:
    """The life of a worker process."""
    if life.cpus:  # before there are threads, which take it over
        os.sched_setaffinity(0, life.cpus)
    threading.Thread(target=_live, args=(life,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(run.plan.config.executor.threads_per_block)
    links = Links(*channels, emit=events.send, stop_requested=lambda: bool(stop.value))
    worker: Worker | None = None
    try:
        worker = Worker(run, blocks, dataset.dataset(), links)
        for _ in worker.turns():
            pass
    except BllError as error:
        events.send(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        sys.excepthook(*sys.exc_info())  # the trace goes to the log; the parent gets one line
        events.send(BlockFailed(worker.turn if worker else blocks[0], repr(error)))


def _live(life: _Life) -> NoReturn:
    """Beat until the parent is gone, and end with it."""
    interval_s = life.heartbeats.interval_s / 2
    with contextlib.suppress(OSError):
        life.heartbeats.beat(life.worker)
        while not life.line.poll(interval_s if math.isfinite(interval_s) else None):
            life.heartbeats.beat(life.worker)
    os._exit(1)


def _unwired(*_: object) -> NoReturn:
    raise AssertionError("workers wire these themselves")


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for children started inside the block, unless the user has set them."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
