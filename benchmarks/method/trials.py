"""What is measured: groups of trials, a trial being a training spec under one seed, and the file that keeps its result.

A spec names only the fields it cares for; absent ones take their defaults. So a field that the project adds later
leaves the digests of earlier trials alone, and a default that changes shows in their behaviour (`behaviour.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from bll.checkpoint import write_atomically
from bll.config import TrainingConfig
from bll.plain import from_dict

Spec = Mapping[str, Any]
"""Plain values of a `TrainingConfig`, less its defaults, seed and executor."""

Stored = dict[str, Any]
"""A finished trial, as its file holds it."""


@dataclass(frozen=True)
class Contender:
    """One line of a group's table: a spec, trained once for each seed."""

    spec: Spec
    seeds: tuple[int, ...] = (0, 1, 2)
    measure: str = "classifier"
    """Name of the function in `benchmarks.method.measuring.MEASURES` that trains and scores it."""
    base: str = ""
    """Contender, as `group/name`, of the same spec whose trained networks are scored here; empty = one of its own."""
    members: tuple[int, ...] = ()
    """Seeds of the base that are scored together, as an ensemble; empty = the trial's own."""

    def bases(self, seed: int) -> tuple[Trial, ...]:
        """Trials that have trained what this one scores."""
        group, _, name = self.base.partition("/")
        return tuple(Trial(group, name, self.spec, s) for s in self.members or (seed,)) if self.base else ()


@dataclass(frozen=True)
class Claim:
    """What is to be compared, and what was asked of it.

    `of` and `against` name a contender (of another group as `group/name`), a colon, and a prediction: `mixture`,
    `product`, `first`, `last` (exits). Without `against`, the figure itself is held against the target.
    """

    of: str
    score: str
    against: str = ""
    target: float | None = None
    op: str = ">="
    as_ratio: bool = False
    """Compare by ratio and not by difference."""


@dataclass(frozen=True)
class Chart:
    """Accuracy of the mixture, drawn over a number that the contenders differ in."""

    x: str
    """What the number is."""
    lines: Mapping[str, Mapping[float, str]]
    """For each line, the contender at each number."""


@dataclass(frozen=True)
class Group:
    """One row of the table in issue 3: contenders under the same budget, and what they must reach."""

    name: str
    title: str
    contenders: Mapping[str, Contender]
    claims: tuple[Claim, ...] = ()
    also: tuple[str, ...] = ()
    """Contenders of other groups, as `group/name`, that the table repeats."""
    notes: str = ""
    chart: Chart | None = None

    def trials(self) -> Iterator[Trial]:
        """Every trial, first all contenders with their first seed: a run cut short leaves a complete table."""
        seeds = sorted({seed for contender in self.contenders.values() for seed in contender.seeds})
        for seed in seeds:
            for name, contender in self.contenders.items():
                if seed in contender.seeds:
                    bases = contender.bases(seed)
                    yield Trial(self.name, name, contender.spec, seed, contender.measure, bases)


@dataclass(frozen=True)
class Trial:
    """One training run to be measured."""

    group: str
    name: str
    spec: Spec
    seed: int
    measure: str = "classifier"
    bases: tuple[Trial, ...] = ()
    """Trials whose networks are scored; none: it trains its own."""

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}-seed{self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 of what the trial asks for, in hex; its names say nothing of that."""
        asked = [self.spec, self.seed, self.measure, *(base.digest for base in self.bases)]
        return _sha256(json.dumps(asked, sort_keys=True))

    def config(self) -> TrainingConfig:
        """The run, one-threaded. Raises InvalidConfig."""
        return from_dict(TrainingConfig, merged(self.spec, {"seed": self.seed, "executor": {"name": "sequential"}}))


class Store:
    """Results of trials below one folder, a small JSON file each."""

    def __init__(self, folder: Path = RESULTS / "method" / "trials") -> None:
        self.folder = folder

    def read(self, trial: Trial) -> Stored | None:
        """The finished trial, or None if it was never finished, or for another spec."""
        path = self._path(trial)
        if not path.exists():
            return None
        stored: Stored = json.loads(path.read_text())
        return stored if stored["digest"] == trial.digest else None

    def write(self, trial: Trial, values: Stored) -> None:
        """Keep the finished trial; after a crash there is the old file or the new, whole."""
        path = self._path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"group": trial.group, "name": trial.name, "seed": trial.seed, "measure": trial.measure}
        whole = {**head, "spec": trial.spec, "digest": trial.digest, **values}
        write_atomically(path, (json.dumps(whole, indent=1) + "\n").encode())

    def _path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.key}.json"


def merged(base: Spec, *changes: Spec) -> Spec:
    """`base` with the fields of `changes` in place of its own, section by section."""
    result = dict(base)
    for change in changes:
        for name, value in change.items():
            section = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
            result[name] = merged(result[name], value) if section else value
    return result


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
