"""Calls a server as many clients do, from a process of its own.

python -m benchmarks.serving.load        reads a `Load` as JSON from stdin, prints what came of it as JSON
"""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Call = Callable[[], None]
"""One call; raises if it is not answered well."""


@dataclass(frozen=True)
class Target:
    """What is called."""

    address: str
    """Of a server, or of several by commas."""
    path: str
    """Of a gRPC method, or of a URL."""
    body: str
    """File of the request."""
    transport: str = "grpc"
    """Or `http`."""
    service_config: str = ""
    """Of the channel, as JSON."""


@dataclass(frozen=True)
class Load:
    """How it is called."""

    target: Target
    seconds: float
    clients: int = 1
    """Each with a connection of its own, and a call at a time unless `rate` is given."""
    rate: float = 0.0
    """Calls a second, whether others are answered or not."""
    timeout_s: float = 30.0
    warm_up_s: float = 0.5


@dataclass(frozen=True)
class Outcome:
    """What came of a load."""

    calls: int
    """With those of the warm-up."""
    answered: int
    """After the warm-up, within `seconds`."""
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failures: dict[str, int]
    """By status."""
    first_failure: str

    @property
    def per_s(self) -> float:
        return self.answered / self.seconds


def run(load: Load) -> Outcome:
    """Put `load` on its target, from another process."""
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving.load"],
        input=json.dumps(asdict(load)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Outcome(**json.loads(process.stdout))


def start(load: Load) -> subprocess.Popen[str]:
    """As `run`, without waiting for the end; `outcome` reads what came of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)))
    process.stdin.close()
    return process


def outcome(process: subprocess.Popen[str]) -> Outcome:
    """Of a load that was started, at its end."""
    assert process.stdout is not None
    with process:
        return Outcome(**json.loads(process.stdout.read()))


class _Notes:
    """What happened to calls, from any thread."""

    def __init__(self) -> None:
        self.begins_s = 0.0
        """Calls that end before are the warm-up's."""
        self._latencies_s: list[float] = []
        self._failures: Counter[str] = Counter()
        self._first = ""
        self._calls = itertools.count()

    def ended(self, started_s: float, error: BaseException | None) -> None:
        next(self._calls)
        now_s = time.perf_counter()
        if error is not None:
            self._failures[_status(error)] += 1
            self._first = self._first or repr(error)[:500]
        elif now_s >= self.begins_s:
            self._latencies_s.append(now_s - started_s)

    def outcome(self, seconds: float) -> Outcome:
        sorted_ms = sorted(1000 * value for value in self._latencies_s) or [float("nan")]
        return Outcome(
            calls=next(self._calls),
            answered=len(self._latencies_s),
            seconds=seconds,
            p50_ms=statistics.median(sorted_ms),
            p99_ms=sorted_ms[min(len(sorted_ms) - 1, int(0.99 * len(sorted_ms)))],
            max_ms=sorted_ms[-1],
            failures=dict(self._failures),
            first_failure=self._first,
        )


def _status(error: BaseException) -> str:
    code = getattr(error, "code", None)
    return code().name if callable(code) else type(error).__name__


def _closed(load: Load) -> Outcome:
    """Every client waits for an answer before it asks again."""
    notes = _Notes()
    opened = ExitStack()
    calls = [_caller(load, opened) for _ in range(load.clients)]
    notes.begins_s = time.perf_counter() + load.warm_up_s
    ends_s = notes.begins_s + load.seconds

    def ask(call: Call) -> None:
        while (started_s := time.perf_counter()) < ends_s:
            error = None
            try:
                call()
            except Exception as raised:  # noqa: BLE001 - it is counted
                error = raised
            notes.ended(started_s, error)

    threads = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - notes.begins_s
    opened.close()
    return notes.outcome(seconds)


def _open(load: Load) -> Outcome:
    """Calls begin at their times, however long others take. gRPC only."""
    notes = _Notes()
    body = Path(load.target.body).read_bytes()
    opened = ExitStack()
    channels = [opened.enter_context(_channel(load.target)) for _ in range(load.clients)]
    methods = itertools.cycle([channel.unary_unary(load.target.path) for channel in channels])
    first_s = time.perf_counter()
    notes.begins_s = first_s + load.warm_up_s
    ends_s = notes.begins_s + load.seconds
    left = threading.Semaphore(0)
    begun = 0
    while (due_s := first_s + begun / load.rate) < ends_s:
        if (wait_s := due_s - time.perf_counter()) > 0:
            time.sleep(wait_s)
        method: Any = next(methods)

        def done(future: Any, started_s: float = due_s) -> None:
            notes.ended(started_s, future.exception())
            left.release()

        method.future(body, timeout=load.timeout_s).add_done_callback(done)
        begun += 1
    for _ in range(begun):
        left.acquire()
    opened.close()
    return notes.outcome(load.seconds)


def _caller(load: Load, opened: ExitStack) -> Call:
    target = load.target
    body = Path(target.body).read_bytes()
    if target.transport == "http":
        connection = opened.enter_context(closing(http.client.HTTPConnection(target.address, timeout=load.timeout_s)))
        content = {"Content-Type": "application/json" if body.startswith(b"{") else "application/octet-stream"}

        def post() -> None:
            connection.request("POST", target.path, body, content)
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != http.client.OK:
                raise RuntimeError(f"{answer.status}: {data[:200]!r}")

        return post
    method: Any = opened.enter_context(_channel(target)).unary_unary(target.path)

    def ask() -> None:
        method(body, timeout=load.timeout_s)

    return ask


def _channel(target: Target) -> Any:
    import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    if target.service_config:
        options.append(("grpc.service_config", target.service_config))
    address = f"ipv4:{target.address}" if "," in target.address else target.address
    return grpc.insecure_channel(address, options)


def main() -> int:
    values = json.loads(sys.stdin.read())
    load = Load(**values | {"target": Target(**values["target"])})
    print(json.dumps(asdict(_open(load) if load.rate else _closed(load))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
