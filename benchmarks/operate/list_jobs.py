"""How long ListJobs takes with 10,000 jobs in the store, through a server and a client, while jobs change."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.postgres import Cluster
from benchmarks.record import RESULTS, Row, write
from bll.choices import ExecutorName
from bll.config import DataConfig, NetworkConfig, TrainingConfig
from bll.events import Evaluation, Scores
from bll.execution import ExecutorConfig
from bll.partition import resolve
from bll.plan import Plan
from bll_client import Client
from bll_server.convert import spec_message
from bll_server.jobs.metadata import Metadata
from bll_server.jobs.records import Failure, Progress
from bll_server.jobs.states import State
from bll_server.jobs.store import Store

TARGET_MS = 50.0
SEED = 0

_TRIAL = Path(__file__).parents[2] / ".bench"
_PAGE = 50
_STOP_S = 60.0
_WRITE_EVERY_S = 0.05
"""Time between two updates of a job while lists are read."""
_PATHS = {
    State.SUCCEEDED: (State.STARTING, State.RUNNING, State.SUCCEEDED),
    State.FAILED: (State.STARTING, State.RUNNING, State.FAILED),
    State.CANCELLED: (State.CANCELLED,),
    State.PAUSED: (State.PAUSED,),
    State.QUEUED: (),
}
_WEIGHTS = (50, 20, 20, 5, 5)
_LISTS = {
    "everything": [("", "")],
    "filters": [
        ("state=SUCCEEDED", ""),
        ("state=QUEUED,RUNNING", ""),
        ("model_id=model-7", ""),
        ("labels.team=team-3", ""),
        ("labels.team=team-3,team-4 state=FAILED", ""),
        ("labels.rare=yes", ""),
        ("labels.none=here", ""),
    ],
    "orders": [("", "priority desc"), ("", "model_id"), ("", "create_time")],
    "filters and orders": [
        ("state=SUCCEEDED", "priority desc"),
        ("labels.team=team-3", "model_id desc"),
        ("state=CANCELLED,FAILED labels.team=team-3", "priority"),
        ("model_id=model-7 state=PAUSED", "priority"),
    ],
}
"""Filter and order of the lists, by what is asked of them."""

_NOTES = (
    "A server in a process of its own and bll_client on the same machine; pages of 50. First pages, and in turn the "
    "following pages of every list by their tokens, to its end and from its beginning again. Meanwhile one job trains "
    "on the server, which writes its events, and another client updates labels and priorities of jobs, 20 a second at "
    "most. Times include client and network; PostgreSQL with its default settings."
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    jobs: int
    rounds: int


FULL, QUICK = Size(jobs=10_000, rounds=100), Size(jobs=200, rounds=3)


def list_jobs(quick: bool) -> None:
    """Measure both databases, and write the rows; `quick`: few jobs and rounds, to see that it runs."""
    size, results = (QUICK, _TRIAL) if quick else (FULL, RESULTS)
    rows: list[Row] = []
    notes = [_NOTES]
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as folder, Cluster(durable=True) as cluster:
        for name, url in (("SQLite", ""), ("PostgreSQL", cluster.database("jobs"))):
            data_dir = Path(folder) / name
            data_dir.mkdir()
            _fill(sa.make_url(url) if url else data_dir / "bll.db", size.jobs)
            with _serving(data_dir, url) as address, _writing(address) as updates, Client(address) as client:
                times_ms = _measure(client, size.rounds)
                notes.append(f"{name}: {updates()} updates meanwhile.")
            rows += _rows(name, times_ms)
    command = "python -m benchmarks.operate list_jobs"
    write("operate", "list_jobs", command, [SEED], rows, " ".join(notes), results)


def _fill(where: Path | sa.URL, number: int) -> None:
    """Store `number` jobs as a busy server has them: most are over, a few wait."""
    draw = random.Random(SEED)  # noqa: S311 - no secret
    plan = _endless()
    store = Store(where)
    for i in range(number):
        (state,) = draw.choices(tuple(_PATHS), _WEIGHTS)
        labels = {"team": f"team-{draw.randrange(10)}", "stage": draw.choice(("trial", "final"))}
        if i % 1000 == 500:
            labels["rare"] = "yes"
        model_id, metadata = f"model-{draw.randrange(50)}", Metadata(f"Job {i}", labels, draw.randrange(5))
        spec = spec_message(plan.config, model_id).SerializeToString()
        job_id = store.create("", model_id, spec, plan, metadata=metadata).job_id
        for step in _PATHS[state]:
            if step in (State.SUCCEEDED, State.FAILED):
                store.append(job_id, _EVALUATION, Progress(1000, 9, 1000.0, 0.0))
            failure = Failure("BlockFailed", "block 2 ran out of memory", 2) if step is State.FAILED else None
            version = f"models/{model_id}/versions/{i}" if step is State.SUCCEEDED else ""
            store.transition(job_id, step, failure.message if failure else "", failure=failure, model_version=version)
    store.close()


_SCORES = Scores(0.9123, 0.2812, 0.0123, 0.1312)
_EVALUATION = Evaluation("validation", 9, 1000, 1000, _SCORES, _SCORES, (_SCORES,) * 4, 0.0123)


def _endless() -> Plan:
    """What every job trains; whichever has the slot is not over before the measurement."""
    config = TrainingConfig(
        data=DataConfig("digits"),
        network=NetworkConfig(architecture="mlp", widths=(64, 64, 64, 64)),
        executor=ExecutorConfig(name=ExecutorName.SEQUENTIAL),
        epochs=100_000,
    )
    return resolve(config)


def _measure(client: Client, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each page that was read, by what was asked for."""
    times_ms: dict[str, list[float]] = defaultdict(list)
    lists = [(kind, asked) for kind, several in _LISTS.items() for asked in several]
    pages = {asked: _pages(client, *asked) for _, asked in lists}
    for _, (kind, asked) in itertools.product(range(rounds), lists):
        times_ms[f"first pages of {kind}"].append(next(_pages(client, *asked)))
        times_ms[f"following pages of {kind}"].append(next(pages[asked]))
    return times_ms


def _pages(client: Client, filter: str, order_by: str) -> Iterator[float]:
    """Milliseconds that each page of the list takes, over and over."""
    while True:
        jobs = client.list_jobs(filter, order_by)
        for page in itertools.count():
            started = time.perf_counter()
            first = next(jobs, None)
            elapsed_ms = 1000 * (time.perf_counter() - started)
            if first is None and page > 0:  # the page before was the last: nothing was asked for
                break
            yield elapsed_ms
            if len(list(itertools.islice(jobs, _PAGE - 1))) < _PAGE - 1:
                break


def _rows(name: str, times_ms: dict[str, list[float]]) -> Iterator[Row]:
    for what, told in times_ms.items():
        yield Row(f"{name}: {what}, median", statistics.median(told), "ms")
        yield Row(f"{name}: {what}, p99", _p99(told), "ms", target=TARGET_MS, op="<=")
    yield Row(f"{name}: all pages, p99", _p99([*itertools.chain(*times_ms.values())]), "ms", target=TARGET_MS, op="<=")


def _p99(values: list[float]) -> float:
    """The smallest value that 99 of 100 are not above."""
    return sorted(values)[-(-99 * len(values) // 100) - 1]


@contextmanager
def _serving(data_dir: Path, url: str) -> Iterator[str]:
    """The address of a server that is there as long as the context."""
    command = [sys.executable, "-m", "bll_server", "--port=0", "--metrics-port=0", f"--data-dir={data_dir}"]
    variables = os.environ | ({"BLL_DATABASE_URL": url} if url else {})
    log = data_dir / "log"
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
            process.terminate()  # it ends its runner
            try:
                process.wait(_STOP_S)
            finally:
                process.kill()


class _Updates:
    """A process that updates jobs, and how many it has updated."""

    def __init__(self, address: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._count = context.Value("q", 0)
        self._process = context.Process(target=_update, args=(address, self._count), daemon=True)
        self._process.start()

    def __call__(self) -> int:
        return int(self._count.value)

    def end(self) -> None:
        self._process.terminate()
        self._process.join()


@contextmanager
def _writing(address: str) -> Iterator[_Updates]:
    """Jobs are being updated as long as the context."""
    updates = _Updates(address)
    try:
        while not updates():
            time.sleep(0.1)
        yield updates
    finally:
        updates.end()


def _update(address: str, count: object) -> None:
    draw = random.Random(SEED)  # noqa: S311 - no secret
    with Client(address) as client:
        names = [job.name for job in client.list_jobs()]
        while True:
            labels = {"team": f"team-{draw.randrange(10)}", "stage": draw.choice(("trial", "final"))}
            client.update_job(draw.choice(names), labels=labels, priority=draw.randrange(5))
            count.value += 1  # type: ignore[attr-defined]
            time.sleep(_WRITE_EVERY_S)
