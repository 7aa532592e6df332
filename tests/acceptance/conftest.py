"""A server in a process of its own, and one short real job on it. Clients and tools come from outside."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
import pytest

from bll_proto.v1 import training_pb2, training_pb2_grpc

SERVING = re.compile(r"bll: serving on (?P<address>\S+), metrics on (?P<metrics>\S+)")
START_S = 30.0
STOP_S = 60.0


@dataclass
class ServerProcess:
    """`python -m bll_server` on loopback, with ports of its own choosing."""

    process: subprocess.Popen[str]
    address: str
    metrics_url: str
    log: Path

    def terminate(self) -> None:
        """Ask the server to drain; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code, after the drain."""
        return self.process.wait(STOP_S)

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as reply:
            return str(reply.read().decode())


StartServer = Callable[..., ServerProcess]


def _first_line(stream: IO[str], timeout_s: float) -> str:
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    return lines.get(timeout=timeout_s)


@contextmanager
def _serving(data_dir: Path, log: Path, *flags: str) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "bll_server", "--port", "0", "--metrics-port", "0", "--data-dir", str(data_dir)]
    with log.open("a") as errors:
        process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    with process:
        try:
            match = SERVING.match(_first_line(process.stdout, START_S))
            assert match, f"no serving line; the log: {log.read_text()}"
            yield ServerProcess(process, match["address"], match["metrics"], log)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_S) == 0, f"the server did not end well; the log: {log.read_text()}"
        finally:
            process.kill()


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts a server on `tmp_path / "data"`, as often as asked; each must end with code 0."""
    with ExitStack() as servers:

        def start(*flags: str) -> ServerProcess:
            return servers.enter_context(_serving(tmp_path / "data", tmp_path / "server.log", *flags))

        yield start


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests that leave it running."""
    directory = tmp_path_factory.mktemp("server")
    with _serving(directory / "data", directory / "server.log") as process:
        yield process


@pytest.fixture(scope="session")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def job(channel: grpc.Channel) -> training_pb2.Job:
    """A finished job: four blocks on digits, its model published as models/digits."""
    stub = training_pb2_grpc.TrainingServiceStub(channel)
    spec = training_pb2.JobSpec(
        model_id="digits",
        data=training_pb2.DataSpec(name="digits"),
        network=training_pb2.NetworkSpec(architecture="mlp", widths=[32, 32, 32, 32]),
        blocks=training_pb2.BlocksSpec(num_blocks=4),
        epochs=4,
    )
    request = training_pb2.CreateJobRequest(job=training_pb2.Job(spec=spec), job_id="short")
    name = stub.CreateJob(request, timeout=60).job.name
    for _ in stub.WatchJob(training_pb2.WatchJobRequest(name=name), timeout=110):
        pass
    job = stub.GetJob(training_pb2.GetJobRequest(name=name), timeout=10).job
    assert job.state == training_pb2.JOB_STATE_SUCCEEDED, job
    return job


Eventually = Callable[[Callable[[], bool], float], None]


@pytest.fixture
def eventually() -> Eventually:
    """Waits for a condition that nothing announces, in another process; fails after `timeout_s`."""

    def wait(holds: Callable[[], bool], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end, f"not within {timeout_s} s"
            threading.Event().wait(0.1)

    return wait
