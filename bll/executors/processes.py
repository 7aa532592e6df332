"""A process a worker, from a forkserver that has torch loaded; messages through shared-memory rings.

Who watches whom: the parent sees a worker's death by its sentinel and ends the others; a worker sees its parent's
death by the end of a pipe that only the parent holds, and ends itself. Nothing outlives the parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import NoReturn

import torch

from bll import data
from bll.errors import BllError, BlockFailed
from bll.executors.ring import RingChannel
from bll.placement import worker_name
from bll.turns import Worker
from bll.wiring import BlockEnded, Links, WorkerEvent, wire
from bll.worker import Run

_ENVIRONMENT = {
    # Waiting threads sleep: blocks share the cores.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Keep freed activations in the heap; giving them back costs about 2,000 page faults a step.
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the largest that glibc accepts
}


class ProcessExecutor:
    """Runs each worker in a process of its own."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._stop = self._context.RawValue(ctypes.c_bool, False)
        self._workers: tuple[range, ...] = ()
        self._processes: list[ForkServerProcess] = []
        self._events: list[Connection] = []
        self._lifelines: list[Connection] = []
        self._links: list[Links] = []

    def launch(self, run: Run) -> None:
        self._workers = run.placement.workers
        self._context.set_forkserver_preload([__name__])
        with _environment(_ENVIRONMENT):
            forkserver.ensure_running()
        # Kept: a child opens what channels are made of when it starts.
        self._links = wire(run.plan, self._workers, self.make_channel, emit=_unwired, stop_requested=_unwired)
        for blocks, link in zip(self._workers, self._links, strict=True):
            events, sender = self._context.Pipe(duplex=False)
            lifeline, held = self._context.Pipe(duplex=False)
            channels = (link.inbox, link.outbox, link.backward_in, link.backward_out)
            process = self._context.Process(
                target=_work,
                args=(run, blocks, channels, sender, lifeline, self._stop),
                name=worker_name(blocks),
                daemon=True,
            )
            process.start()
            sender.close()
            lifeline.close()
            self._processes.append(process)
            self._events.append(events)
            self._lifelines.append(held)

    def make_channel(self, slots: int, size_bytes: int) -> RingChannel:
        """A line between two workers. What a slower link would do to a run is measured with another kind of ring."""
        return RingChannel(self._context, slots, size_bytes)

    def events(self) -> Generator[WorkerEvent, None, None]:
        running = {events: index for index, events in enumerate(self._events)}
        try:
            while running:
                for ready in connection.wait(list(running)):
                    assert isinstance(ready, Connection)
                    index = running[ready]
                    try:
                        event = ready.recv()
                    except EOFError:
                        raise self._died(index) from None
                    if isinstance(event, BlockEnded):
                        del running[ready]
                    if isinstance(event, Exception):
                        raise event
                    yield event
        finally:
            self._end()

    def stop(self) -> None:
        self._stop.value = True

    def _died(self, index: int) -> BlockFailed:
        process, blocks = self._processes[index], self._workers[index]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        whose = "its process" if len(blocks) == 1 else f"the process of {worker_name(blocks)}"
        return BlockFailed(blocks[0], f"{whose} (pid {process.pid}) {how}")

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for end in (*self._events, *self._lifelines):
            end.close()


def _work(
    run: Run,
    blocks: range,
    channels: tuple[RingChannel | None, RingChannel | None, RingChannel | None, RingChannel | None],
    events: Connection,
    lifeline: Connection,
    stop: ctypes.c_bool,
) -> None:
    """The life of a worker process."""
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(run.plan.config.executor.threads_per_block)
    links = Links(*channels, emit=events.send, stop_requested=lambda: bool(stop.value))
    worker: Worker | None = None
    try:
        dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
        worker = Worker(run, blocks, dataset, links)
        for _ in worker.turns():
            pass
    except BllError as error:
        events.send(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        sys.excepthook(*sys.exc_info())  # the trace goes to the log; the parent gets one line
        events.send(BlockFailed(worker.turn if worker else blocks[0], repr(error)))


def _end_with_parent(lifeline: Connection) -> NoReturn:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
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
