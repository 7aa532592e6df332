"""One job, in a process of its own: `python -m bll_server.jobs.runner JOB_DIR DATASETS`.

It reads JOB_DIR/plan.json, trains in JOB_DIR/run, exports into JOB_DIR/staging, and tells of it on stdout, one JSON
object a line: the events of `bll.events`, and `{"event": "Started"}`, `{"event": "Exported"}`, `{"event": "Failed"}`.
On stdin, the line `stop` asks it to stop at the next marker; the end of stdin means that the server is gone, and ends
this process and all that it started at once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bll.errors import BllError
from bll.events import RunEnded, to_json
from bll_server.jobs.records import Failure, plan_from_json


class _Control:
    """Listens to the server on a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False
        self._stop: Callable[[], None] | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def on_stop(self, stop: Callable[[], None]) -> None:
        """Call `stop` when the server asks for it, or now if it already has."""
        with self._lock:
            self._stop = stop
            if self._stopped:
                stop()

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == "stop":
                with self._lock:
                    self._stopped = True
                    if self._stop:
                        self._stop()
        # The session is this process and its workers; none of them may outlive the server.
        os.killpg(os.getpid(), signal.SIGKILL)


def run(job_dir: Path, datasets: Path, tell: Callable[[str], None], control: _Control) -> None:
    """Train, evaluate and export the plan of `job_dir`; or train until told to stop."""
    from bll.data import describe
    from bll.export import export
    from bll.training import Training

    plan = plan_from_json((job_dir / "plan.json").read_text())
    training = Training(plan, job_dir / "run", datasets)
    control.on_stop(training.pause)
    tell(json.dumps({"event": "Started"}))
    finished = False
    for event in training.events():
        tell(to_json(event))
        finished = isinstance(event, RunEnded) and event.finished
    if not finished:
        return
    model = training.model()
    seconds = {"calibration": _seconds(lambda: model.calibration)}
    if describe(plan.config.data, plan.config.seed, datasets).test_rows:
        tell(to_json(model.evaluate("test")))
    staging = job_dir / "staging"
    shutil.rmtree(staging, ignore_errors=True)  # of an attempt that did not come to its end
    staging.mkdir()
    seconds["export"] = _seconds(lambda: export(model, staging))
    tell(json.dumps({"event": "Exported"} | seconds))


def main(job_dir: Path, datasets: Path) -> int:
    """The process's exit status."""
    # Whatever a library prints goes to the log: the pipe to the server is for events alone.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    control = _Control()

    def tell(line: str) -> None:
        channel.write(line + "\n")

    # A runner that a killed server left behind may still be ending: two must never write the same checkpoints.
    lock = (job_dir / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        run(job_dir, datasets, tell, control)
    except Exception as error:  # noqa: BLE001 - all leave as one line, which is what the server reads
        traceback.print_exc()
        tell(json.dumps({"event": "Failed", **_failure(error)}))
        return 1
    return 0


def _seconds(work: Callable[[], object]) -> float:
    """Time that `work` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _failure(error: Exception) -> dict[str, Any]:
    message = str(error) if isinstance(error, BllError) else f"{type(error).__name__}: {error}"
    return vars(Failure(type(error).__name__, message, getattr(error, "block", None)))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
