"""Measures trials side by side, each in a process of its own. Killed at any moment, it goes on where it was.

`.bench/` (not in git) keeps what results need not carry: checkpoints, predictions row by row, probes, made-up data.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import io
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from benchmarks.method import made
from benchmarks.method.behaviour import behaviour_digest, code_digest
from benchmarks.method.measures import Task
from benchmarks.method.measuring import MEASURES
from benchmarks.method.trials import Store, Stored, Trial
from benchmarks.record import commit, machine
from bll.checkpoint import write_atomically
from bll.errors import BllError

CACHE = Path(__file__).parents[2] / ".bench"
PREDICTIONS = "predictions.npz"


class NotTrained(Exception):
    """A trial scores a network that no finished trial has left on this machine."""


@dataclass(frozen=True)
class Runner:
    """Where results and leftovers go, and how much is taken on trust."""

    store: Store = field(default_factory=Store)
    cache: Path = CACHE
    trust: bool = False
    """Skip a trial measured with the same spec even if the code has changed since and was not probed."""

    def run(self, trials: Sequence[Trial], jobs: int) -> list[Trial]:
        """Measure what is not measured yet, `jobs` at a time, in order; says so on one line each.

        Returns the trials that failed; the others went on.
        """
        os.environ["OMP_NUM_THREADS"] = "1"  # for the children, before they load torch
        context = multiprocessing.get_context("spawn")
        waiting, running, failed, done = list(trials), dict[int, _Job](), list[Trial](), 0
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop(0)
                self._make_data(trial)
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(self, trial, sender), daemon=True)
                process.start()
                sender.close()
                running[process.sentinel] = _Job(trial, process, receiver, time.monotonic())
            for sentinel in connection.wait(list(running)):
                assert isinstance(sentinel, int)
                job = running.pop(sentinel)
                done += 1
                job.process.join()
                said, ok = job.answer()
                if not ok:
                    failed.append(job.trial)
                clock = datetime.datetime.now().astimezone().strftime("%H:%M:%S")
                seconds = time.monotonic() - job.started
                print(f"{clock}  {done}/{len(trials)}  {job.trial.key:44}  {said}  ({seconds:.0f} s)", flush=True)
        return failed

    def measure(self, trial: Trial) -> str:
        """Train, score and store one trial, in this process, unless that was done; returns what to say of it."""
        stored, code = self.store.read(trial), code_digest()
        if stored and (self.trust or stored["code"] == code):
            return "kept: " + summary(stored)
        data_root = self._data_root(trial)
        bases = self._bases(trial)
        if bases:
            behaviour = _short("".join(base["behaviour"] for base in bases))
        else:
            behaviour = behaviour_digest(trial, code, self.cache, data_root)
        if stored and stored["behaviour"] == behaviour:
            return "kept, same behaviour: " + summary(stored)
        config = trial.config()
        run_dir = self.cache / "runs" / f"{trial.key}-{_short(trial.digest + code)}"
        run_dir.mkdir(parents=True, exist_ok=True)
        with (run_dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            start = datetime.datetime.now(datetime.UTC)
            seeds = tuple(base.seed for base in trial.bases)
            folders = tuple(self.cache / base["run"] for base in bases)
            measured = MEASURES[trial.measure](Task(config, run_dir, data_root, folders, seeds))
            if measured.arrays:
                buffer = io.BytesIO()
                np.savez_compressed(buffer, allow_pickle=False, **measured.arrays)
                write_atomically(run_dir / PREDICTIONS, buffer.getvalue())
            values: Stored = {
                "code": code,
                "behaviour": behaviour,
                "run": str(run_dir.relative_to(self.cache)),
                "epochs": config.epochs,
                "cuts": measured.cuts,
                "commit": commit(),
                "date": start.isoformat(timespec="seconds"),
                "machine": machine(),
                "figures": {name: float(f"{value:.8g}") for name, value in measured.figures.items()},
            }
            self.store.write(trial, values)
        return summary(values)

    def _bases(self, trial: Trial) -> list[Stored]:
        """The finished trials whose networks this one scores. Raises NotTrained if one is missing."""
        found = []
        for base in trial.bases:
            stored = self.store.read(base)
            if not (stored and (self.cache / stored["run"]).exists()):
                raise NotTrained(f"it scores the network of {base.key}, which is not there: measure that first")
            found.append(stored)
        return found

    def _data_root(self, trial: Trial) -> Path | None:
        return self.cache / "data" if trial.spec["data"]["name"] == "npz" else None

    def _make_data(self, trial: Trial) -> None:
        """In the parent: two children must not write one file."""
        if root := self._data_root(trial):
            made.write(root / trial.spec["data"]["path"])


def predictions(stored: Stored, cache: Path = CACHE) -> dict[str, np.ndarray] | None:
    """The arrays that the trial's measuring function kept, or None where this machine does not have them."""
    path = cache / stored["run"] / PREDICTIONS
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return dict(arrays)


def summary(stored: Stored) -> str:
    """The trial's main figures on one line."""
    shown = ("mixture.accuracy", "mixture.nll", "mixture.ece", "train_cpu_s")
    return "  ".join(f"{name} {stored['figures'][name]:.4g}" for name in shown if name in stored["figures"])


@dataclass(frozen=True)
class _Job:
    trial: Trial
    process: BaseProcess
    receiver: connection.Connection
    started: float

    def answer(self) -> tuple[str, bool]:
        """What the child said, and whether it did its work."""
        try:
            said, ok = self.receiver.recv()
        except EOFError:
            return f"FAILED: the process ended with code {self.process.exitcode}", False
        return said, ok


def _child(runner: Runner, trial: Trial, sender: connection.Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send((runner.measure(trial), True))
    except (BllError, BlockingIOError, NotTrained) as error:
        sender.send((f"FAILED: {type(error).__name__}: {error}", False))


def _end_with_parent() -> None:
    """A killed runner leaves no trial behind that would meet its successor in the same folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
