"""The processor cores that a run may use. Torch is not imported here."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that this process and its children can keep busy at a time, by affinity and cgroup quota: 1 or more."""
    quota = min(_quotas(_OWN_CGROUPS, _CGROUPS), default=math.inf)
    return max(1, math.floor(min(len(os.sched_getaffinity(0)), quota)))


def dealt(num_workers: int, threads: int) -> tuple[tuple[int, ...], ...]:
    """The cores of each worker, `threads` each as far as there are so many, of those that this process may use.

    Workers share cores where there are too few, as evenly as can be.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = min(threads, len(cores))
    return tuple(
        tuple(sorted(cores[(worker * each + number) % len(cores)] for number in range(each)))
        for worker in range(num_workers)
    )


def _quotas(own: Path, root: Path) -> Iterator[float]:
    """CPU quotas of the process's cgroups and those above them, in cores; of versions 1 and 2."""
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            base = root / "cpu" if controllers else root
            group = base / path.lstrip("/")
            for folder in (group, *group.parents):
                yield from _quota(folder)
                if folder == base:
                    break


def _quota(folder: Path) -> Iterator[float]:
    """The quota that a cgroup's folder tells; nothing where it has none, or is another's."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        yield int(quota) / int(period)  # "max" is no number
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        if quota_us > 0:
            yield quota_us / int((folder / "cpu.cfs_period_us").read_text())
