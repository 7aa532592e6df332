"""Where calls run: pools that do not queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BoundedThreads(ThreadPoolExecutor):
    """A thread for each call up to a number, and no queue behind them: `full` says that one more has to be refused."""

    def __init__(self, calls: int, thread_name_prefix: str) -> None:
        super().__init__(calls, thread_name_prefix)
        self._calls = calls
        self.open_calls = 0
        """Calls that wait for a thread or have one."""
        self._counting = threading.Lock()

    @property
    def full(self) -> bool:
        return self.open_calls >= self._calls

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._counting:
            self.open_calls += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._closed)
        return future

    def _closed(self, _: Future[Any]) -> None:
        with self._counting:
            self.open_calls -= 1


class AtOnce(ThreadPoolExecutor):
    """Runs on the thread that submits. Only for what never waits: that thread is grpc's, which serves all calls."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


AT_ONCE = AtOnce(1)  # it never starts a thread
