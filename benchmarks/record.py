"""Writes what a benchmark measured, in the one form that documents and notes quote from.

`benchmarks/results/<area>/<name>.json`; a row that misses its target stays in the file.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measured figure, and what it is held against."""

    what: str
    value: float
    unit: str
    against: str = ""
    """What `ratio` compares with."""
    ratio: float | None = None
    target: float | None = None
    """As the work was asked for."""
    op: str = ">="
    holds: bool | None = None
    """Computed from value, op and target."""


def write(
    area: str, name: str, command: str, seeds: list[int], rows: list[Row], notes: str, folder: Path = RESULTS
) -> Path:
    """Write the rows and where they come from; returns the file."""
    values = {
        "name": name,
        "command": command,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "seeds": seeds,
        "rows": [asdict(row) | {"holds": holds(row)} for row in rows],
        "notes": notes,
    }
    path = folder / area / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    return path


def commit() -> str:
    """What is checked out, and whether source differs from it; results written since are no such change."""
    changed = _git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results", ":!docs/results.md")
    return _git("rev-parse", "HEAD") + ("+changes" if changed else "")


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
    }


def holds(row: Row) -> bool | None:
    """Whether the row reaches its target; None if it has none."""
    if row.target is None:
        return None
    return row.value >= row.target if row.op == ">=" else row.value <= row.target


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()
