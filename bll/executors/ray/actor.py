"""A worker as an actor: it trains in a thread of its own; driver and neighbours call it meanwhile."""

from __future__ import annotations

import os
import queue
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import torch

from bll import data
from bll.errors import BllError, BlockFailed
from bll.executors.ray.channel import Header, RayChannel
from bll.turns import Worker
from bll.wiring import BlockEnded, WorkerEvent, wire
from bll.worker import Run

CONCURRENCY_GROUPS = {"lines": 1, "control": 1}
"""Threads beside the one of `events`: `lines` takes in packets and credit, and never waits; `control` answers the
driver."""

_FAR_ENDS = {"inbox": "outbox", "outbox": "inbox", "backward_in": "backward_out", "backward_out": "backward_in"}
_LEFT = ("inbox", "backward_out")
"""The lines to the left neighbour; the others lead to the right one."""


class BlockActor:
    """The worker at place `position` of a run, counted from the left."""

    def __init__(self, run: Run, position: int) -> None:
        self._run = run
        self._position = position
        self._stop = threading.Event()
        self._told: queue.SimpleQueue[WorkerEvent | BllError] = queue.SimpleQueue()
        workers = run.placement.workers
        every = wire(run.plan, workers, lambda slots, _size: RayChannel(slots), self._told.put, self._stop.is_set)
        self._links = every[position]
        self._blocks = workers[position]

    def events(self, left: Any, right: Any) -> Iterator[WorkerEvent]:
        """Train between the neighbours `left` and `right`, handles or None, telling events as they come.

        Raises what training raises, a BllError.
        """
        for name, far_end in _FAR_ENDS.items():
            channel = getattr(self._links, name)
            if isinstance(channel, RayChannel):
                channel.connect(left if name in _LEFT else right, far_end)
        threading.Thread(target=self._train, daemon=True).start()
        event: WorkerEvent | None = None
        while not isinstance(event, BlockEnded):
            told = self._told.get()
            if isinstance(told, BllError):
                raise told
            event = told
            yield event

    @ray.method(concurrency_group="lines")
    def deliver(self, line: str, number: int, header: Header, *arrays: Any) -> None:
        """Take in a packet from a neighbour."""
        getattr(self._links, line).deliver(number, header, arrays)

    @ray.method(concurrency_group="lines")
    def credit(self, line: str, taken: int) -> None:
        """Hear from a neighbour how many packets it has taken."""
        getattr(self._links, line).credit(taken)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Ask for an end at the next marker."""
        self._stop.set()

    @ray.method(concurrency_group="control")
    def beat(self) -> None:
        """Show that this process runs."""

    @ray.method(concurrency_group="control")
    def meet(self, question: Path) -> tuple[int, str]:
        """The number of this process and the address of its node.

        Copies the file `question`, which the driver wrote, beside it: so each sees what the other writes. Raises
        OSError if this process does not.
        """
        question.with_name(f"{question.name}-{self._position}").write_text(question.read_text())
        return os.getpid(), ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]

    def _train(self) -> None:
        # Arrays that lie in the object store are read-only, which torch says of each; nobody writes to a packet.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        run, worker = self._run, None
        torch.set_num_threads(run.plan.config.executor.threads_per_block)
        try:
            dataset = data.load(run.plan.config.data, run.plan.config.seed, run.data_root)
            worker = Worker(run, self._blocks, dataset, self._links)
            for _ in worker.turns():
                pass
        except BllError as error:
            self._told.put(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the driver must hear of it
            failed = BlockFailed(worker.turn if worker else self._blocks[0], repr(error))
            failed.__cause__ = error
            self._told.put(failed)
