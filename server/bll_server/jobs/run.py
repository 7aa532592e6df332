"""A runner process, seen from the server: its pipes, what it has been told, and its end with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bll_server.jobs.capacity import Demand


class Run:
    """One started runner. `lines` ends when the process has ended; then `end` says how."""

    def __init__(self, command: Sequence[str], log_file: Path, owner: str, demand: Demand, ran_before_s: float) -> None:
        """Start `command`; its stderr is appended to `log_file`.

        It is a run of a job of `owner` whose earlier runs took `ran_before_s`, and holds `demand` until it ends.
        Raises OSError.
        """
        with log_file.open("ab") as log:
            # A session of its own, so that the runner and its workers can be killed together, and so that Ctrl-C in
            # the server's terminal does not reach them.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self.owner = owner
        self.demand = demand
        self.gives_way_to = ""
        """The job of a higher priority for which it has been told to stop."""
        self.is_over_time = False
        """It has been told to stop since the job has run for as long as it may."""
        self.was_late = False
        """It was killed since it had not stopped in time."""
        self._ran_before_s = ran_before_s
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self._reaped = False
        self._timers: list[threading.Timer] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def run_s(self) -> float:
        """Running time of the job up to now. No jump of the clock changes it."""
        return self._ran_before_s + time.monotonic() - self._started_s

    def lines(self) -> Iterator[str]:
        """What the runner tells, as it comes."""
        assert self._process.stdout is not None
        return iter(self._process.stdout)

    def stop(self, kill_after_s: float | None = None) -> None:
        """Ask it to stop at its next marker, and kill it if that takes too long. It may have ended already."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError):
            if self._reaped:
                return
            if kill_after_s is not None:
                timer = threading.Timer(kill_after_s, self._give_up)
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
            self._process.stdin.write("stop\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it and all its workers now. It may have ended already."""
        with self._lock:
            if not self._reaped:
                self._kill_session()

    def end(self) -> int:
        """Wait for the end and return the exit status, or the negative number of the signal that killed it."""
        # The process stays a zombie until its session is cleared, so that its number cannot be another's by then.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._kill_session()
            self._reaped = True
            for timer in self._timers:
                timer.cancel()
            with contextlib.suppress(BrokenPipeError):  # a "stop" that nobody read
                self._process.communicate()
        return self._process.returncode

    def _give_up(self) -> None:
        with self._lock:
            if not self._reaped:
                self.was_late = True
                self._kill_session()

    def _kill_session(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
