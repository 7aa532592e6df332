"""A scheduler with a small program in the runner's place, so that every fault comes at a chosen moment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bll.config import BlocksConfig, TrainingConfig
from bll.execution import ExecutorConfig
from bll.plan import BlockPlan, Plan
from bll_server.jobs.capacity import Capacity
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Job, StateChange
from bll_server.jobs.scheduler import Scheduler
from bll_server.jobs.states import FINAL, State
from bll_server.jobs.store import Store
from bll_server.metrics import Metrics

PLAN = Plan(
    config=TrainingConfig(blocks=BlocksConfig(num_blocks=2, cuts=(3,)), epochs=2),
    blocks=(BlockPlan(0, ("stem",), 100, 2000, (16, 28, 28), 4096), BlockPlan(3, ("conv",), 50, 1000, (64,), 4096)),
    input_shape=(1, 28, 28),
    class_names=("a", "b"),
    steps_per_epoch=10,
    dataset_digest="0" * 64,
)

# Does what the first word of the job's id says.
RUNNER = """
import json, os, pathlib, signal, subprocess, sys, threading, time
from bll.events import BlockProgress, CheckpointSaved, RunEnded, to_json
folder = pathlib.Path(sys.argv[1])
what = folder.name.split("-")[0]
def tell(text): print(text, flush=True)
tell(json.dumps({"event": "Started"}))
for block in (0, 1):
    tell(to_json(BlockProgress(block, 0, 5 + block, 1.2, 0.3, 0.5, 0.2, 0.7, 1.0, 1000.0 + block, 0.0)))
tell(to_json(CheckpointSaved(10, 0)))
if what == "succeed":
    (folder / "staging").mkdir()
    tell(to_json(RunEnded(20, True)))
    tell(json.dumps({"event": "Exported"}))
elif what == "fail":
    tell(json.dumps({"event": "Failed", "kind": "BlockFailed", "message": "block 1: no memory", "block": 1}))
    sys.exit(1)
elif what == "exit":
    sys.exit(7)
elif what == "nonsense":
    tell("this is not an event")
    time.sleep(1000)
elif what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "deaf":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdout=subprocess.DEVNULL)
    (folder / "child").write_text(str(child.pid))
    tell(to_json(CheckpointSaved(11, 0)))
    time.sleep(1000)
elif what == "stubborn":
    tell(to_json(CheckpointSaved(11, 0)))
    for line in sys.stdin:
        tell(to_json(CheckpointSaved(12, 0)))  # it has heard, and goes on
else:
    tell(to_json(CheckpointSaved(11, 0)))
    for line in sys.stdin:
        if line == "stop\\n":
            tell(to_json(CheckpointSaved(12, 0)))
            tell(to_json(RunEnded(12, False)))
            break
"""


@dataclass
class Bench:
    store: Store
    scheduler: Scheduler
    metrics: Metrics
    folder: Path

    def submit(self, job_id: str, threads: int = 2, owner: str = "", **metadata: Any) -> None:
        """A job that takes so many threads, in one worker."""
        executor = ExecutorConfig(threads_per_block=threads, num_workers=1)
        plan = replace(PLAN, config=replace(PLAN.config, executor=executor))
        self.scheduler.submit(job_id, "", b"", plan, owner=owner, metadata=Metadata(**metadata))

    def until(self, job_id: str, reached: Callable[[Job], bool]) -> Job:
        """The job, once `reached` holds for it; looked at after each event."""
        after = 0
        late = threading.Event()
        timer = threading.Timer(30, late.set)
        timer.start()
        try:
            while not late.is_set():
                job = self.store.get(job_id)
                if reached(job):
                    return job
                after = max(after, job.last_event)
                self.store.wait(job_id, after, 30, late.is_set)
        finally:
            timer.cancel()
        raise AssertionError(f"{self.store.get(job_id)} came no further")

    def end_of(self, job_id: str) -> Job:
        return self.until(job_id, lambda job: job.state in FINAL)

    def training(self, job_id: str) -> Job:
        """The job, once its runner has nothing left to tell before it is stopped."""
        return self.until(job_id, lambda job: job.state is State.RUNNING and job.checkpoint_step == 11)

    def heard(self, job_id: str) -> Job:
        """The stubborn job, once its runner has been told to stop."""
        return self.until(job_id, lambda job: job.checkpoint_step == 12)

    def standing(self, job_id: str) -> tuple[int, str]:
        """Its place in the queue, and what it waits for."""
        standing = self.scheduler.standing(self.store.get(job_id))
        return standing.position, standing.why

    def states(self, job_id: str) -> list[State]:
        """Those that the job has gone through."""
        return [e.event.state for e in self.store.events(job_id, 0) if isinstance(e.event, StateChange)]


def make(
    folder: Path, *, cancel_grace_s: float = 30.0, pause_grace_s: float = 30.0, max_watchers: int = 4, **capacity: Any
) -> Bench:
    """With room for one job of two threads, unless `capacity` has more."""
    (folder / "runner.py").write_text(RUNNER)
    metrics = Metrics()
    store = Store(folder / "bll.db", metrics=metrics)

    def publish(model: str, staging: Path, job: str) -> str:
        assert staging.is_dir()
        return f"models/{model}/versions/1"

    scheduler = Scheduler(
        store,
        publish,
        metrics,
        folder,
        [sys.executable, str(folder / "runner.py")],
        capacity=Capacity(**({"jobs": 1, "threads": 2} | capacity)),
        max_watchers=max_watchers,
        cancel_grace_s=cancel_grace_s,
        pause_grace_s=pause_grace_s,
    )
    return Bench(store, scheduler, metrics, folder)
