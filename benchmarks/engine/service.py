"""What the service costs a training job: a job on a server of its own beside the same run in the library."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.engine.contenders import Contender, Figures, Window, environment, measure
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN, HALVED_RESNET18
from benchmarks.engine.rounds import Rounds, run
from benchmarks.engine.throughput import best_cut
from benchmarks.method.trials import merged
from benchmarks.record import Row, write
from bll_client import BlockProgress, Client, JobState, StateChange

TARGET = 0.97
NETWORKS = {"resnet18": (HALVED_RESNET18, Window(3, 5)), "cnn": (CNN, Window(20, 8))}
LIBRARY, SERVICE = "library", "service"

_FIGURE = "reported_samples_per_s"
_STOP_S = 60.0

_NOTES = (
    "Two blocks in processes. The service: a server in a process of its own, and a client that watches the job; the "
    "library: the same run without them. Throughput of the last block by its own clock, over the same window of steps "
    "after a warm-up; medians of rounds, the ratio the median of the rounds' ratios."
)


def service(effort: Effort) -> None:
    """Measure both networks, and write the rows."""
    tally = effort.tally("service")
    rows: list[Row] = []
    for name, (spec, full) in NETWORKS.items():
        two = {"blocks": {"num_blocks": 2, "cuts": [best_cut(name, spec, effort)]}, "executor": {"name": "processes"}}
        library = Contender("bll", merged(spec, two), effort.window(full))
        contenders = {LIBRARY: library, SERVICE: replace(library, kind="job")}
        rows += rows_of(name, run(contenders, effort.rounds, tally, name, _measure))
    notes = f"{_NOTES} Commits {', '.join(tally.commits())}."
    write("engine", "service", "python -m benchmarks.engine service", [0], rows, notes, effort.results)


def rows_of(network: str, rounds: Rounds) -> Iterator[Row]:
    """Throughputs, and their ratio."""
    for name in (LIBRARY, SERVICE):
        yield Row(f"{network}: {name}", rounds.median(name, _FIGURE), "samples/s")
    ratio = rounds.ratio(SERVICE, LIBRARY, _FIGURE, _FIGURE)
    yield Row(f"{network}: service over library", ratio, "ratio", target=TARGET)


def _measure(contender: Contender) -> Figures:
    return measure_job(contender) if contender.kind == "job" else measure(contender)


def measure_job(contender: Contender) -> Figures:
    """The throughput that the contender's last block reports over the window, of a job on a server of its own."""
    window = contender.window
    first, last = window.warm_up, window.warm_up + window.steps
    reported: list[float] = []
    with _serving(environment(contender.threads)) as address, Client(address) as client:
        job = client.create_job(contender.run_spec())
        assert job.plan, "a job is planned when it is created"
        for event in client.watch_job(job.name):
            found = event.event
            if isinstance(found, StateChange) and found.state is JobState.FAILED:
                raise RuntimeError(f"the job failed: {found}")
            if isinstance(found, BlockProgress) and found.block == len(job.plan.blocks) - 1 and found.step > first:
                reported.append(found.samples_per_s)
                if found.step == last:
                    break
        client.cancel_job(job.name)
        client.wait_for_job(job.name)
    return {_FIGURE: statistics.harmonic_mean(reported)}


@contextmanager
def _serving(variables: dict[str, str]) -> Iterator[str]:
    """The address of a server that is there as long as the context."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as folder:
        command = [sys.executable, "-m", "bll_server", "--port", "0", "--metrics-port", "0", "--data-dir", folder]
        log = Path(folder) / "log"
        with log.open("w") as errors:
            process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True)
        with process:
            try:
                assert process.stdout is not None
                match = re.match(r"bll: serving on (\S+),", process.stdout.readline())
                if match is None:
                    raise RuntimeError(f"the server did not start: {log.read_text()}")
                yield match[1]
            finally:
                process.terminate()  # it ends its runners
                try:
                    process.wait(_STOP_S)
                finally:
                    process.kill()
