"""A runner process, seen from the server: its pipes, and its end with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path


class Run:
    """One started runner. `lines` ends when the process has ended; then `end` says how."""

    def __init__(self, command: Sequence[str], log_file: Path) -> None:
        """Start `command`; its stderr is appended to `log_file`. Raises OSError."""
        with log_file.open("ab") as log:
            # A session of its own, so that the runner and its workers can be killed together, and so that Ctrl-C in
            # the server's terminal does not reach them.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        self._lock = threading.Lock()
        self._reaped = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def lines(self) -> Iterator[str]:
        """What the runner tells, as it comes."""
        assert self._process.stdout is not None
        return iter(self._process.stdout)

    def stop(self) -> None:
        """Ask it to stop at its next marker. It may have ended already."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError):
            if not self._reaped:
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
            with contextlib.suppress(BrokenPipeError):  # a "stop" that nobody read
                self._process.communicate()
        return self._process.returncode

    def _kill_session(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
