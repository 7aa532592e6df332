"""A process a worker, from a forkserver that has torch loaded; messages through shared-memory rings.

Who watches whom: the parent sees a worker's death by the end of its pipe, and its silence by its heartbeat, and ends
the others, or puts another in its place (`executor.recovery` `continue`); a worker sees its parent's death by the end
of a pipe that only the parent holds, and ends itself. Nothing outlives the parent. The parent reads the data set, and
workers map it.
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
from dataclasses import replace
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NamedTuple, NoReturn

import torch

from bll import data
from bll.checkpoint import Part
from bll.choices import Recovery
from bll.errors import BllError, BlockFailed, WorkerLost
from bll.executors.heartbeat import Heartbeats, Listener
from bll.executors.journal import Journal, Rings
from bll.executors.ring import RingChannel
from bll.executors.shared_data import SharedDataset
from bll.lineage import Continuation
from bll.messages import Kind
from bll.placement import worker_name
from bll.schedule import step_of_turn
from bll.turns import Worker
from bll.wiring import BlockEnded, BlockSaved, Links, WorkerEvent, WorkerMissing, wire
from bll.worker import Run, Takeover

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
        self._processes: dict[int, ForkServerProcess] = {}
        """By the number of their worker, as what follows."""
        self._events: dict[int, Connection] = {}
        self._lifelines: dict[int, Connection] = {}
        self._links: list[Links] = []
        self._journals: list[Journal] = []
        self._parts: dict[int, Part] = {}
        """The newest save of each block since the launch."""

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
        self._processes, self._events, self._lifelines = {}, {}, {}
        try:
            self._start(run)
        except BaseException:
            self._end()
            raise

    def _start(self, run: Run) -> None:
        self._run, self._parts = run, {}
        limit_s = run.plan.config.executor.heartbeat_seconds
        self._heartbeats = Heartbeats(self._context, len(self._workers), limit_s)
        self._listener = Listener(self._heartbeats)
        self._journals = [Journal(self._context) for _ in self._workers]
        # Kept: a child opens what channels are made of when it starts.
        self._links = wire(run.plan, self._workers, self.make_channel, emit=_unwired, stop_requested=_unwired)
        for index in range(len(self._workers)):
            self._spawn(index, run)

    def _spawn(self, index: int, run: Run) -> None:
        """Start the process of a worker, the first or one in the place of another."""
        blocks, link = self._workers[index], self._links[index]
        own_cpus = run.placement.cpus[index] if run.placement.cpus else ()
        self._events[index], sender = self._context.Pipe(duplex=False)
        lifeline, self._lifelines[index] = self._context.Pipe(duplex=False)
        life = _Life(lifeline, self._heartbeats, index, own_cpus, self._journals[index])
        channels = (link.inbox, link.outbox, link.backward_in, link.backward_out)
        process = self._context.Process(
            target=_work,
            args=(run, blocks, self._data, channels, sender, life, self._stop),
            name=worker_name(blocks),
            daemon=True,
        )
        process.start()
        sender.close()
        lifeline.close()
        self._processes[index] = process

    def make_channel(self, slots: int, size_bytes: int) -> RingChannel:
        """A line between two workers. What a slower link would do to a run is measured with another kind of ring."""
        return RingChannel(self._context, slots, size_bytes)

    def events(self) -> Generator[WorkerEvent, None, None]:
        running = dict(self._events)
        try:
            while running and not self._cancelled:
                now = time.monotonic()
                ready = connection.wait([self._woken, *running.values()], self._listener.next_look_s(now))
                for index in [index for index, events in running.items() if events in ready]:
                    try:
                        event = running[index].recv()
                    except (EOFError, OSError):
                        if not (yield from self._replaced(index, self._death(index), running)):
                            raise self._death(index) from None
                        continue
                    if isinstance(event, Exception):
                        raise event
                    self._note(index, event, running)
                    yield event
                silent = self._listener.silent(running, time.monotonic())
                if silent is not None and not (yield from self._replaced(silent, self._silence(silent), running)):
                    raise self._silence(silent)
        finally:
            event = None  # an error here would hold this frame, and with it the executor's memory
            self._end()

    def stop(self) -> None:
        self._stop.value = True

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._wake.send_bytes(b"cancel")

    def _note(self, index: int, event: WorkerEvent, running: dict[int, Connection]) -> None:
        if isinstance(event, BlockEnded):
            del running[index]
        elif isinstance(event, BlockSaved):
            self._parts[event.block] = Part(event.step, event.digest)

    def _replaced(
        self, index: int, error: BlockFailed, running: dict[int, Connection]
    ) -> Generator[WorkerEvent, None, bool]:
        """End the workers, and pass on what they had told; or only the lost one, and put another in its place.

        Returns whether that was done. Raises an error that a worker had told.
        """
        alone = self._run.plan.config.executor.recovery is Recovery.CONTINUE
        if not alone or not isinstance(error, WorkerLost):
            yield from self._last_words(list(self._processes), running)
            return False
        yield from self._last_words([index], running)
        self._processes[index].join()
        if index in running:  # else it had ended in order before it was lost
            yield from self._replace(index, error)
            running[index] = self._events[index]
        return True

    def _last_words(self, workers: list[int], running: dict[int, Connection]) -> Iterator[WorkerEvent]:
        """End `workers`, and pass on what they had told. Raises an error that was among it."""
        for index in workers:
            self._processes[index].kill()
        try:
            for index in workers:
                with contextlib.suppress(EOFError, OSError):
                    while True:
                        event = self._events[index].recv()
                        if isinstance(event, Exception):
                            raise event
                        self._note(index, event, running)
                        yield event
        finally:
            event = None  # as in `events`

    def _replace(self, index: int, lost: WorkerLost) -> Iterator[WorkerEvent]:
        """Start a process that goes on where the dead one was; the lines to its neighbours are still there."""
        run, blocks = self._run, self._workers[index]
        turns = self._journals[index].read().turns
        step = step_of_turn(run.plan, run.start_step, turns)
        parts = {block: self._parts[block] for block in blocks if block in self._parts}
        from_steps = {block: parts[block].step if block in parts else run.start_step for block in blocks}
        yield WorkerMissing(lost, tuple(Continuation(block, step, from_steps[block]) for block in blocks))
        for end in (self._events[index], self._lifelines[index]):
            end.close()
        self._listener.expect(index)
        self._spawn(index, replace(run, takeover=Takeover(turns, step, parts)))

    def _death(self, index: int) -> BlockFailed:
        process = self._processes[index]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        # Who cannot even start, because of what it was given, would not do so another time.
        began = code < 0 or self._heartbeats.has_beaten(index)
        return (WorkerLost if began else BlockFailed)(self._workers[index][0], self._whose(index) + how)

    def _silence(self, index: int) -> WorkerLost:
        how = f"gave no sign of life for {self._heartbeats.limit_s:g} seconds"
        return WorkerLost(self._workers[index][0], self._whose(index) + how)

    def _whose(self, index: int) -> str:
        blocks, pid = self._workers[index], self._processes[index].pid
        return f"{'its process' if len(blocks) == 1 else f'the process of {worker_name(blocks)}'} (pid {pid}) "

    def _end(self) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
        for end in (*self._events.values(), *self._lifelines.values()):
            end.close()


class _Life(NamedTuple):
    """What ties a worker to its parent and to the machine."""

    line: Connection
    """Ends with the parent."""
    heartbeats: Heartbeats
    worker: int
    cpus: tuple[int, ...]
    """Cores to keep to; empty: any."""
    journal: Journal


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
    rings = Rings(*channels)
    replaceable = run.plan.config.executor.recovery is Recovery.CONTINUE
    if replaceable:
        rings.take_over(life.journal.read())

    def stop_requested() -> bool:
        # What a lost worker has told the next one holds, whatever was asked for since.
        told = rings.outbox.resent() if rings.outbox else None
        return bool(stop.value) if told is None else told is Kind.STOP

    links = Links(*rings, emit=events.send, stop_requested=stop_requested)
    worker: Worker | None = None
    try:
        worker = Worker(run, blocks, dataset.dataset(), links)
        for turns in worker.turns():
            if replaceable:
                entry = rings.entry(turns)
                life.journal.write(entry)
                rings.give_back(entry)
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
