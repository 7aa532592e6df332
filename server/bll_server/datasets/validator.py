"""Has an uploaded file checked by a child process, `check.py`, that is limited in memory, time and disk."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from bll_server.datasets.records import Failure, Format, Report, report_from_dict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What checking one file may take."""

    memory_bytes: int
    """Beside the libraries themselves."""
    cpu_s: int
    wall_s: float
    disk_bytes: int
    """Unpacked."""


class Validator:
    """Checks files, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._closed = False

    def check(self, upload: Path, kind: Format, folder: Path, limits: Limits) -> Report | Failure | None:
        """What is in `upload`, whose content is then in `folder`, or what is wrong with it; None after `close`."""
        arguments = [str(upload), kind.value, str(folder), json.dumps(asdict(limits))]
        with self._lock:
            if self._closed:
                return None
            lifeline, held = os.pipe()  # its end tells the child that the server has died
            try:
                # A session of its own: Ctrl-C in the terminal is for the server, which ends its children in order.
                child = self._child = subprocess.Popen(
                    [sys.executable, "-m", "bll_server.datasets.check", *arguments],
                    stdin=lifeline,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
            except BaseException:
                os.close(held)
                raise
            finally:
                os.close(lifeline)
        timed_out = False
        try:
            line, _ = child.communicate(timeout=limits.wall_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            child.kill()
            line, _ = child.communicate()
        finally:
            os.close(held)
        if self._closed:
            return None
        return _verdict("" if timed_out else line, child.returncode, limits)

    def close(self) -> None:
        """End the child, and start no other."""
        with self._lock:
            self._closed = True
            if self._child and self._child.poll() is None:
                self._child.kill()


def _verdict(line: str, status: int, limits: Limits) -> Report | Failure:
    if status == 0 and line:
        answer = json.loads(line)
        if "report" in answer:
            return report_from_dict(answer["report"])
        if "no_room" in answer:
            return Failure(f"there is no room to unpack it: {answer['no_room']}", no_room=True)
        return Failure(answer["broken_rule"])
    if status < 0:
        log.warning("checking an upload was ended by %s", signal.Signals(-status).name)
        return Failure(
            f"must be readable in {limits.cpu_s} s of processor time, {limits.wall_s:g} s in all "
            f"and {limits.memory_bytes} bytes of memory"
        )
    log.error("checking an upload failed with status %d; its trace is above", status)
    return Failure("must be readable; the server's log has what went wrong")
