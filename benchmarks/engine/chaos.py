"""Jobs whose workers are killed and stopped at random moments: all must end, with the same bits, and leave nothing.

Each job of the process executor (`recovery: exact`) is hit at least once: SIGKILL, or SIGSTOP, which only the missing
heartbeat tells. Jobs, moments, signals and victims are drawn from a seed; which line of code a hit finds its victim at
is up to the machine. A tally keeps what has been run, so that a soak that was cut short goes on where it was.
"""

from __future__ import annotations

import hashlib
import multiprocessing.util
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engine.effort import Effort
from benchmarks.engine.leaks import held, left
from benchmarks.engine.resident import grandchildren
from benchmarks.engine.tally import Tally
from benchmarks.record import Row, write
from bll.choices import ExecutorName, Recovery
from bll.config import TrainingConfig
from bll.errors import BllError
from bll.events import BlockProgress, RolledBack
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.training import Training

COMMAND = "python -m benchmarks.engine chaos"
SEED = 0
HITS = 100

_DIGITS: dict[str, Any] = {"data": {"name": "digits"}, "batch_size": 64, "epochs": 3}
SPECS: dict[str, dict[str, Any]] = {
    "MLP, 3 blocks": {
        **_DIGITS,
        "network": {"architecture": "mlp", "widths": [32, 32, 32]},
        "blocks": {"num_blocks": 3},
    },
    "CNN with chain, dropout and augmentation, 4 blocks": {
        **_DIGITS,
        "data": {"name": "digits", "augmentation": "shift_flip"},
        "network": {"widths": [4, 4, 8], "dropout": 0.2},
        "blocks": {"num_blocks": 4},
        "backward": {"twin": "chain", "delay_steps": 3},
        "executor": {"checkpoint_steps": 7},
    },
    "CNN with lines of one slot, 2 blocks": {
        **_DIGITS,
        "network": {"widths": [8, 8]},
        "blocks": {"num_blocks": 2},
        "executor": {"messages_in_flight": 1, "checkpoint_steps": 5},
    },
}


class Hit(NamedTuple):
    """A signal to a worker."""

    progress: float
    """Fraction of the job's steps after which it falls due; 0 = as soon as there is a worker."""
    delay_s: float
    """From then on."""
    signal: str
    victim: float
    """Which of the workers, as a fraction of their number."""


@dataclass(frozen=True)
class Outcome:
    """What became of one job."""

    spec: str
    struck: list[str]
    """Signals that found a worker, and the step that the job had come to."""
    rollbacks: int = 0
    identical: bool = False
    """Whether the job ended, with the bits of an undisturbed one."""
    left: Sequence[str] = ()
    error: str = ""
    """What the job failed with."""
    shared_bytes: int = 0
    """Shared memory that this process has mapped after it."""


class Finished(NamedTuple):
    """A run that has come to its end."""

    digest: str
    """SHA-256 of all that its last checkpoint holds of its blocks."""
    rollbacks: int
    strays: list[str]
    """Files in its folder that belong to no complete checkpoint."""


class Chaos:
    """Hits jobs, and compares them with undisturbed ones."""

    def __init__(self, specs: Mapping[str, dict[str, Any]] = SPECS, seed: int = SEED) -> None:
        self.plans = {name: _plan(spec) for name, spec in specs.items()}
        self._seed = seed
        self._undisturbed: dict[str, str] = {}

    def job(self, number: int) -> Outcome:
        """Run job `number` as the seed will have it, and look at what it left."""
        draw = random.Random(f"{self._seed}/{number}")  # noqa: S311 - no secret
        name = draw.choice(list(self.plans))
        hits = sorted(_drawn(draw) for _ in range(draw.choice((1, 1, 2))))
        plan = self.plans[name]
        if name not in self._undisturbed:
            self._undisturbed[name] = _run(plan, Assailant(plan, [])).digest
        before, assailant = held(), Assailant(plan, hits)
        try:
            finished = _run(plan, assailant)
        except BllError as error:
            return Outcome(name, assailant.struck, left=tuple(left(before, held())), error=repr(error))
        after = held()
        return Outcome(
            spec=name,
            struck=assailant.struck,
            rollbacks=finished.rollbacks,
            identical=finished.digest == self._undisturbed[name],
            left=(*left(before, after), *finished.strays),
            shared_bytes=after.shared_bytes,
        )

    def job_values(self, number: int) -> dict[str, Any]:
        """The same in plain values."""
        return asdict(self.job(number))


class Assailant:
    """Strikes the workers of the one run of this process."""

    def __init__(self, plan: Plan, hits: Sequence[Hit]) -> None:
        self.struck: list[str] = []
        self._hits = hits
        self._total_steps = plan.total_steps
        self._changed = threading.Condition()
        self._step, self._over = 0, False
        self._others: set[int] = set()
        """Processes that were there before the run: not its workers."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Strike while the context lasts. Hits that find no worker until then never do."""
        self._others = set(grandchildren(os.getpid()))
        thread = threading.Thread(target=self._strike, name="assailant")
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._over = True
                self._changed.notify()
            thread.join()

    def saw(self, step: int) -> None:
        """A block has done `step` steps."""
        with self._changed:
            self._step = max(self._step, step)
            self._changed.notify()

    def _strike(self) -> None:
        for hit in self._hits:
            self._wait_for(hit.progress * self._total_steps)
            with self._changed:
                self._changed.wait_for(lambda: self._over, hit.delay_s)
            while not self._over:
                if workers := sorted(set(grandchildren(os.getpid())) - self._others):
                    os.kill(workers[int(hit.victim * len(workers))], signal.Signals[hit.signal])
                    self.struck.append(f"{hit.signal} at step {self._step}")
                    break

    def _wait_for(self, step: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._step >= step)


def soak(num_hits: int, tally: Tally) -> list[Outcome]:
    """What became of jobs 0, 1, ... until so many hits have found a worker."""
    outcomes: list[Outcome] = []
    with private_temporaries():
        chaos = Chaos()
        while sum(len(outcome.struck) for outcome in outcomes) < num_hits:
            number = len(outcomes)
            outcomes.append(Outcome(**tally.once(f"job {number}", partial(chaos.job_values, number))))
    return outcomes


@contextmanager
def private_temporaries() -> Iterator[None]:
    """A folder of temporary files that nobody else leaves files in."""
    multiprocessing.util.get_temp_dir()  # this process's own, which lasts as long as it: not in there
    outer = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="bll-chaos-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = outer


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """What the jobs come to."""
    struck = [hit for outcome in outcomes for hit in outcome.struck]
    kills = sum(hit.startswith(signal.SIGKILL.name) for hit in struck)
    failed = {
        "jobs that did not end": sum(bool(outcome.error) for outcome in outcomes),
        "jobs without the bits of an undisturbed run": sum(not outcome.identical for outcome in outcomes),
        "jobs that left something": sum(bool(outcome.left) for outcome in outcomes),
    }
    # Multiprocessing keeps shared memory for the next run: it must come to an end of growing.
    shared_mib = [outcome.shared_bytes / 2**20 for outcome in outcomes if not outcome.error]
    half = len(shared_mib) // 2
    return [
        Row("jobs", len(outcomes), "count"),
        Row("workers killed or stopped", len(struck), "count", target=HITS),
        Row("of these killed", kills, "count"),
        Row("rollbacks", sum(outcome.rollbacks for outcome in outcomes), "count"),
        *(Row(what, count, "count", target=0, op="<=") for what, count in failed.items()),
        Row("shared memory kept for use, most in the second half", max(shared_mib[half:], default=0.0), "MiB"),
        Row("the same in the first half", max(shared_mib[:half], default=0.0), "MiB"),
    ]


def chaos(effort: Effort) -> None:
    """Soak, and write the rows."""
    tally = effort.tally("chaos")
    outcomes = soak(HITS if effort.rounds > 1 else 3, tally)
    notes = (
        "Executor processes, recovery exact, heartbeat 1 s; digits, jobs drawn from: "
        f"{'; '.join(SPECS)}. Bits are the SHA-256 of the last checkpoint of every block, moments and tables included. "
        "Looked for after each job: worker processes, threads, open files, names in /dev/shm, temporary files, and "
        f"files in its folder that belong to no complete checkpoint. Commits {', '.join(tally.commits())}."
    )
    write("engine", "chaos", COMMAND, [SEED], rows(outcomes), notes, effort.results)


def _drawn(draw: random.Random) -> Hit:
    signals = (signal.SIGKILL.name, signal.SIGSTOP.name)
    return Hit(max(0.0, draw.uniform(-0.1, 0.9)), draw.uniform(0, 0.05), draw.choice(signals), draw.random())


def _plan(spec: dict[str, Any]) -> Plan:
    config = from_dict(TrainingConfig, spec)
    executor = replace(config.executor, name=ExecutorName.PROCESSES, recovery=Recovery.EXACT, heartbeat_seconds=1.0)
    return resolve(replace(config, executor=executor))


def _run(plan: Plan, assailant: Assailant) -> Finished:
    rollbacks = 0
    with tempfile.TemporaryDirectory(prefix="bll-job-") as folder:
        with assailant.at_work():
            for event in Training(plan, Path(folder)).events():
                rollbacks += isinstance(event, RolledBack)
                if isinstance(event, BlockProgress):
                    assailant.saw(event.step)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        last = [path for path in files if path.parent.name == f"step-{plan.total_steps:09d}"]
        content = hashlib.sha256()
        for path in last:
            content.update(f"{path.name}\0".encode() + path.read_bytes())
        strays = [str(path.relative_to(folder)) for path in files if not _belongs(path, plan)]
    return Finished(content.hexdigest(), rollbacks, strays)


def _belongs(path: Path, plan: Plan) -> bool:
    """Whether `path` is part of a complete checkpoint."""
    names = {"manifest.json", *(f"block-{index}.safetensors" for index in range(plan.num_blocks))}
    return path.name in names and {each.name for each in path.parent.iterdir()} == names
