"""The service in hard times: a cold start, too many callers, a job beside it, models and servers that are replaced."""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from benchmarks.record import Row, write
from benchmarks.serving import bodies, load, model
from benchmarks.serving.effort import Effort
from benchmarks.serving.processes import Serving, bll, serving, settled
from bll_client import Client, JobState, StateChange

_ROWS = 32
"""Of a call under overload: enough that the model, and not the generator of the load, is the limit."""
_DEADLINE_S = 0.5
_TWO_SERVERS = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{}],
                "waitForReady": True,
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)


def startup(effort: Effort) -> None:
    """From the start of the process to the first answer, and what it holds then."""
    times_s, held_mib = [], []
    for _ in range(max(effort.rounds, 1)):
        with tempfile.TemporaryDirectory(prefix="bll-bench-") as name:
            data_dir = model.published(Path(name) / "data")
            port = _free_port()
            target = bodies.native(f"127.0.0.1:{port}", 1)
            body = Path(target.body).read_bytes()
            started_s = time.perf_counter()
            with (
                serving(bll(data_dir, f"--port={port}"), Path(name) / "log") as server,
                grpc.insecure_channel(target.address) as channel,
            ):
                method: Any = channel.unary_unary(target.path)
                method(body, timeout=30, wait_for_ready=True)
                times_s.append(time.perf_counter() - started_s)
                held_mib.append(server.resident_mib())
    rows = [
        Row("cold start to first answer", statistics.median(times_s), "s", target=1.2, op="<="),
        Row(
            "resident memory of the serving process after it", statistics.median(held_mib), "MiB", target=150.0, op="<="
        ),
    ]
    _write(effort, "startup", rows, "Medians. A published model; the time has the load of its graph in it.")


def overload(effort: Effort) -> None:
    """Three times the calls that the server can answer."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as name:
        command = bll(model.published(Path(name) / "data"))
        with serving(command, Path(name) / "log") as server:
            target = bodies.native(server.address, _ROWS)
            settled(server)
            capacity = load.run(load.Load(target, effort.overload_s / 4, clients=16)).per_s
            before_mib = server.resident_mib()
            flood = load.Load(target, effort.overload_s, 16, rate=3 * capacity, timeout_s=_DEADLINE_S, warm_up_s=1)
            found = load.run(flood)
            after_mib = server.resident_mib()
    rows = [
        Row(f"capacity, {_ROWS} rows a call", capacity, "calls/s"),
        Row("goodput at three times that over capacity", found.per_s / capacity, "ratio", "capacity", target=0.9),
        Row("p99 of answered calls", found.p99_ms / 1000, "s", target=_DEADLINE_S, op="<="),
        Row("resident memory after over before", after_mib / before_mib, "ratio", target=1.1, op="<="),
        *(Row(f"not answered: {code}", count, "calls") for code, count in sorted(found.failures.items())),
    ]
    notes = f"{effort.overload_s:g} s of calls with a deadline of {_DEADLINE_S:g} s, begun whether others end or not."
    _write(effort, "overload", rows, notes)


def sharing(effort: Effort) -> None:
    """The slowest predictions while a job trains on the same machine, over those without one."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as name:
        command = bll(model.published(Path(name) / "data"))
        with serving(command, Path(name) / "log") as server, Client(server.address) as client:
            settled(server)
            asked = load.Load(bodies.native(server.address, 1), 4 * effort.window_s, clients=4, rate=50)
            idle = load.run(asked)
            job = client.create_job(_job())
            for event in client.watch_job(job.name):
                if isinstance(event.event, StateChange) and event.event.state is JobState.RUNNING:
                    break
            shared = load.run(asked)
            client.cancel_job(job.name)
            client.wait_for_job(job.name)
    rows = [
        Row("p99, idle", idle.p99_ms, "ms"),
        Row("p99 while a job trains", shared.p99_ms, "ms"),
        Row("p99 while a job trains over idle", shared.p99_ms / idle.p99_ms, "ratio", "idle", target=2.0, op="<="),
    ]
    _write(effort, "sharing", rows, "50 calls/s of batch 1. The job: two blocks in processes with a thread each.")


def stops(effort: Effort) -> None:
    """SIGTERM to one of two servers and a new one in its place, in turns, under load."""
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as name, ExitStack() as stack:
        ports = [_free_port(), _free_port()]
        commands = [
            bll(model.published(Path(name) / f"data-{i}"), f"--port={port}", "--pre-stop-s=2", "--drain-s=5")
            for i, port in enumerate(ports)
        ]
        logs = [Path(name) / f"log-{i}" for i in range(2)]
        servers = [stack.enter_context(serving(command, log)) for command, log in zip(commands, logs, strict=True)]
        address = ",".join(f"127.0.0.1:{port}" for port in ports)
        target = bodies.native(address, 1)
        target = load.Target(target.address, target.path, target.body, service_config=_TWO_SERVERS)
        seconds = 12.0 * effort.stops
        flood = load.start(load.Load(target, seconds, clients=8, timeout_s=10))
        statuses = []
        for number in range(effort.stops):
            which = number % 2
            statuses.append(servers[which].terminate())
            servers[which] = stack.enter_context(serving(commands[which], logs[which]))
            time.sleep(1.5)  # for the channels to find it
        found = load.outcome(flood)
    rows = [
        Row("servers stopped and replaced", effort.stops, "count"),
        Row("that ended with another status than 0", sum(map(bool, statuses)), "count", target=0, op="<="),
        Row("calls meanwhile", found.calls, "count"),
        Row("calls that failed", sum(found.failures.values()), "count", target=0, op="<="),
        Row("slowest call", found.max_ms, "ms"),
    ]
    notes = f"Eight clients over two servers, round robin, health checked, retried. {found.first_failure}"
    _write(effort, "stops", rows, notes.strip())


def soak(effort: Effort) -> None:
    """Mixed calls, good and bad, cancelled and not, for an hour."""
    from benchmarks.serving.mixture import Mixture

    with tempfile.TemporaryDirectory(prefix="bll-bench-") as name:
        command = bll(model.published(Path(name) / "data"), "--max-message-mb=4")
        with serving(command, Path(name) / "log") as server:
            mixture = Mixture(server.address)
            mixture.run(min(effort.soak_s / 10, 60.0))  # until all threads are there, and memory is what it will be
            settled = _held(server)
            samples_mib: list[float] = []
            over = threading.Event()

            def sample() -> None:
                while not over.wait(5):
                    samples_mib.append(server.resident_mib())

            sampler = threading.Thread(target=sample)
            sampler.start()
            mixture.run(effort.soak_s)
            over.set()
            sampler.join()
            mixture.close()
            time.sleep(2)  # for the last connections to be closed
            threads, descriptors, mib = _held(server)
            status = server.terminate()
        log = (Path(name) / "log").read_text()
    quarter = max(1, len(samples_mib) // 4)
    growth = statistics.median(samples_mib[-quarter:]) / statistics.median(samples_mib[:quarter])
    rows = [
        Row("calls", mixture.calls, "count"),
        *(Row(f"ended with {what}", count, "calls") for what, count in sorted(mixture.ends.items())),
        Row("ended otherwise than the caller asked for", len(mixture.wrong), "calls", target=0, op="<="),
        Row("resident memory, last quarter over first", growth, "ratio", target=1.05, op="<="),
        Row("threads more than after the warm-up", threads - settled[0], "count", target=0, op="<="),
        Row("descriptors more than after the warm-up", descriptors - settled[1], "count", target=0, op="<="),
        Row("resident memory at the end", mib, "MiB"),
        Row("exit status", status, "status", target=0, op="<="),
        Row("traces in the log", log.count("Traceback"), "count", target=0, op="<="),
    ]
    notes = f"{effort.soak_s:g} s. {'; '.join(mixture.wrong[:5])}"
    _write(effort, "soak", rows, notes.strip())


def _held(server: Serving) -> tuple[int, int, float]:
    return server.threads(), server.descriptors(), server.resident_mib()


def _job() -> dict[str, object]:
    return {
        "data": {"name": "fashion-mnist"},
        "network": {"architecture": "residual_cnn", "widths": [16, 16, 32, 32, 64, 64], "stem_stride": 2},
        "blocks": {"num_blocks": 2},
        "executor": {"name": "processes"},
        "epochs": 50,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _write(effort: Effort, name: str, rows: list[Row], notes: str) -> None:
    path = write("serving", name, f"python -m benchmarks.serving {name}", [0], rows, notes, effort.results)
    print(path.read_text(), flush=True)
