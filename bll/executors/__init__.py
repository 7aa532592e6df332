"""Who runs the blocks of a run. Every executor gives the same weights, bit for bit; one test suite proves it."""

from __future__ import annotations

from bll.choices import ExecutorName
from bll.executors.base import Executor


def make_executor(name: ExecutorName) -> Executor:
    """The executor called `name`, not launched yet."""
    match name:
        case ExecutorName.SEQUENTIAL:
            from bll.executors.sequential import SequentialExecutor

            return SequentialExecutor()
        case ExecutorName.THREADS:
            from bll.executors.threads import ThreadExecutor

            return ThreadExecutor()
        case ExecutorName.PROCESSES:
            from bll.executors.processes import ProcessExecutor

            return ProcessExecutor()
        case ExecutorName.RAY:
            from bll.executors.ray import RayExecutor

            return RayExecutor()
        case ExecutorName.AUTO:
            raise ValueError("a resolved plan names its executor")


__all__ = ["Executor", "make_executor"]
