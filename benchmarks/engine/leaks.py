"""What this process holds on to, so that what a run has left can be named."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.engine.resident import grandchildren

_RING = "/dev/shm/pym-"  # noqa: S108 - multiprocessing's
"""Shared memory without a name, which multiprocessing keeps and uses again."""

_NAMES = ("pym-", "psm_", "sem.mp-")


@dataclass(frozen=True)
class Held:
    """A look at this process."""

    workers: frozenset[int]
    threads: int
    open_files: Counter[str]
    """By kind."""
    names: frozenset[Path]
    """Of multiprocessing's in /dev/shm, and of anybody's in the folder of temporary files."""
    shared_bytes: int
    """Shared memory that is mapped, whoever uses it."""


def held() -> Held:
    """What this process holds now."""
    named = [path for path in Path("/dev/shm").iterdir() if path.name.startswith(_NAMES)]  # noqa: S108
    return Held(
        workers=frozenset(grandchildren(os.getpid())),
        threads=threading.active_count(),
        open_files=Counter(filter(None, map(_kind, Path("/proc/self/fd").iterdir()))),
        names=frozenset((*named, *Path(tempfile.gettempdir()).iterdir())),
        shared_bytes=sum(_mapped_bytes(line) for line in Path("/proc/self/maps").read_text().splitlines()),
    )


def left(before: Held, after: Held) -> list[str]:
    """What is there that was not there before, in words."""
    more = after.open_files - before.open_files
    return [
        *(f"process {pid}" for pid in sorted(after.workers - before.workers)),
        *([f"{after.threads - before.threads} threads"] if after.threads > before.threads else []),
        *(f"{count} open: {kind}" for kind, count in sorted(more.items())),
        *(str(path) for path in sorted(after.names - before.names)),
    ]


def _kind(descriptor: Path) -> str:
    """Of what an open file is; empty for shared memory that is kept, and for what is gone."""
    try:
        target = str(descriptor.readlink())
    except FileNotFoundError:  # the look itself
        return ""
    return "" if target.startswith(_RING) else target.partition(":[")[0]


def _mapped_bytes(line: str) -> int:
    if _RING not in line:
        return 0
    start, _, end = line.split()[0].partition("-")
    return int(end, 16) - int(start, 16)
