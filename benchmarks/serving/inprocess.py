"""The graph in this process: what no server can undercut."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from benchmarks.serving.model import samples
from benchmarks.serving.peers.graph import load


def p50_ms(graph: Path, rows: int, seconds: float) -> float:
    """Median time of a run for `rows` on one thread, all outputs computed."""
    run, images = load(str(graph)), samples(rows)
    times_ms = []
    ends_s = time.perf_counter() + seconds
    while (started_s := time.perf_counter()) < ends_s:
        run(images)
        times_ms.append(1000 * (time.perf_counter() - started_s))
    return statistics.median(times_ms)
