"""Many who watch one job: whether each sees every state, and what they cost the server."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.operate.serving import serving
from benchmarks.record import RESULTS, Row, write
from bll_client import Client, JobState, StateChange

_TRIAL = Path(__file__).parents[2] / ".bench"
_SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8] * 4},
    "blocks": {"num_blocks": 4},
    "latent": {"units": 4, "readout_units": 8},
    "executor": {"name": "sequential"},
}
_PROCESSES = 4
"""That the watchers are spread over: one process would be slower than the server."""
_PAUSES = 2
"""Of the job while it is watched: each makes five states."""

_NOTES = (
    "One server process, whose job tells of four blocks that train and is paused and resumed twice; watchers in four "
    "client processes on the same machine, which takes its part of the time that an event needs. Latency is from the "
    "time that the event carries to its arrival in the client. CPU is the server's alone, over the time that all "
    "watch; memory is its resident memory, before the first watcher and at its most."
)


def watchers(quick: bool) -> None:
    """Measure one watcher and two hundred, at two paces, and write the rows."""
    many, seconds = (20, 2.0) if quick else (200, 20.0)
    rows: list[Row] = []
    for count, interval_ms in ((1, 1000), (many, 1000), (many, 100)):
        rows += _rows(count, interval_ms, seconds)
    command = "python -m benchmarks.operate watchers"
    write("operate", "watchers", command, [], rows, _NOTES, _TRIAL if quick else RESULTS)


def _rows(count: int, interval_ms: int, seconds: float) -> Iterator[Row]:
    found = _measured(count, interval_ms, seconds)
    states, latencies_s = found["states"], sorted(found["latencies_s"])
    what = f"{count} watchers, {found['events_per_s']:.0f} events/s"
    whole = sum(watcher["states"] == states for watcher in found["watchers"])
    yield Row(f"{what}: saw every state of {len(states)}", whole, "watchers", target=count, op=">=")
    spared = sum(watcher["spared"] for watcher in found["watchers"])
    yield Row(f"{what}: reports that they were spared", spared, "events")
    yield Row(f"{what}: latency, median", 1e3 * statistics.median(latencies_s), "ms")
    yield Row(f"{what}: latency, 99th percentile", 1e3 * latencies_s[int(0.99 * len(latencies_s))], "ms")
    yield Row(f"{what}: CPU of the server", found["cores"], "cores")
    yield Row(f"{what}: memory more than without", found["memory_mib"], "MiB")
    yield Row(f"{what}: threads of the server", found["threads"], "threads")


def _measured(count: int, interval_ms: int, seconds: float) -> dict[str, Any]:
    with serving("benchmarks.operate.telling") as server, Client(server.address) as client, ExitStack() as stack:
        job = client.create_job(_SPEC, job_id=f"every-{interval_ms}-ms").name
        _reach(client, job, JobState.RUNNING)
        before = _status(server.pid)
        shares = [count // _PROCESSES + (number < count % _PROCESSES) for number in range(_PROCESSES)]
        children = [stack.enter_context(_child(server.address, job, share)) for share in shares if share]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "watching\n", "a watcher has ended"
        began, cpu_s, first = time.monotonic(), _cpu_s(server.pid), client.get_job(job).last_event
        most = _status(server.pid)
        for _ in range(_PAUSES):
            threading.Event().wait(seconds / (_PAUSES + 1))
            client.pause_job(job)
            _reach(client, job, JobState.PAUSED)
            client.resume_job(job)
            _reach(client, job, JobState.RUNNING)
            most = {name: max(most[name], value) for name, value in _status(server.pid).items()}
        threading.Event().wait(seconds / (_PAUSES + 1))
        wall_s, used_s = time.monotonic() - began, _cpu_s(server.pid) - cpu_s
        told = client.get_job(job).last_event - first
        client.cancel_job(job)
        found = [watcher for child in children for watcher in json.loads(child.communicate(timeout=120)[0])]
        seen = [event.event for event in client.watch_job(job)]
    states = [str(change.state) for change in seen if isinstance(change, StateChange)]
    return {
        "watchers": found,
        "states": states,
        "latencies_s": [latency for watcher in found for latency in watcher["latencies_s"]],
        "events_per_s": told / wall_s,
        "cores": used_s / wall_s,
        "memory_mib": (most["VmRSS"] - before["VmRSS"]) / 1024,
        "threads": most["Threads"],
    }


def _child(address: str, job: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.operate.watching", address, job, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _reach(client: Client, job: str, state: JobState) -> None:
    while client.get_job(job).state is not state:
        threading.Event().wait(0.02)


def _status(pid: int) -> dict[str, int]:
    """The kernel's numbers of a process; memory in KiB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) for name, *rest in lines if name in ("VmRSS:", "Threads:")}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
