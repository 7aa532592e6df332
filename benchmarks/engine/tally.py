"""Single measurements, kept as they come, so that a benchmark that was cut short goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, commit
from bll.checkpoint import write_atomically

RUNS = RESULTS / "engine" / "runs"


class Tally:
    """What one benchmark has measured so far, by key: `runs/<name>.json`."""

    def __init__(self, name: str, folder: Path = RUNS) -> None:
        self._path = folder / f"{name}.json"
        self._runs: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._runs = json.loads(self._path.read_text())

    def once(self, key: str, measure: Callable[[], Any]) -> Any:
        """What was measured under `key`, by `measure()` if it has not been yet: a value that JSON can hold."""
        if key not in self._runs:
            self._runs[key] = {"value": measure(), "commit": commit()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._runs, indent=1).encode() + b"\n")
            print(f"{key}: {self._runs[key]['value']}", flush=True)
        return self._runs[key]["value"]

    def commits(self) -> list[str]:
        """What was checked out when the values were measured, shortened."""
        return sorted({run["commit"][:8] for run in self._runs.values()})

    def forget(self) -> None:
        """Measure everything anew."""
        self._runs = {}
        self._path.unlink(missing_ok=True)
