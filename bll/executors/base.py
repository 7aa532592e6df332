"""The small interface of every executor."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from bll.wiring import WorkerEvent
from bll.worker import Run


class Executor(Protocol):
    """Runs every block of a run, and of the run again from another step."""

    def launch(self, run: Run) -> None:
        """Start the blocks; again once `events` has ended, forgetting earlier requests to stop.

        Raises DataError or CheckpointError if one cannot be built.
        """
        ...

    def events(self) -> Generator[WorkerEvent, None, None]:
        """What the workers tell, until all have ended; closing the iterator ends them.

        WorkerMissing is told where a lost worker is to be replaced: asking for the next event replaces it.
        Raises BlockFailed or Diverged once a worker has, and else WorkerLost where one is no more, after the others
        were ended and all that they had told was passed on.
        """
        ...

    def stop(self) -> None:
        """Ask for an end at the next marker, with a checkpoint. From any thread or signal handler; repeatable."""
        ...

    def cancel(self) -> None:
        """Let `events` end the workers now, and end. From any thread or signal handler; repeatable."""
        ...
