"""What this process uses of the memory that RLIMIT_DATA bounds."""

from __future__ import annotations

from pathlib import Path


def data_bytes() -> int:
    """What counts against RLIMIT_DATA now. (The peak of resident memory would be that of the server, by its fork.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
