"""How fast predictions are: beside the graph in process, a bare loop, the peers, and ourselves with less to do."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.engine.tally import Tally
from benchmarks.record import Row, write
from benchmarks.serving import bodies, load, model, rivals
from benchmarks.serving.effort import Effort
from benchmarks.serving.inprocess import p50_ms
from benchmarks.serving.processes import Serving, bare, bll, serving, settled

Figures = dict[str, float]
BARE, NATIVE, KSERVE = "bare grpcio loop", "bll", "bll, KServe protocol"
IN_PROCESS, STRIPPED = "onnxruntime in process", "bll without metrics and uncertainties"
CLIENTS = (1, 32)


def rounds(tally: Tally, count: int, contenders: Mapping[str, Callable[[], Figures]]) -> dict[str, list[Figures]]:
    """Figures of contenders, measured in turns; every second round goes backwards."""
    found: dict[str, list[Figures]] = {name: [] for name in contenders}
    for number in range(count):
        order = list(contenders.items())
        for name, measure in reversed(order) if number % 2 else order:
            found[name].append(tally.once(f"round {number + 1}: {name}", measure))
    return found


def median(found: Sequence[Figures], figure: str) -> float:
    return statistics.median(figures[figure] for figures in found)


def ratio(of: Sequence[Figures], against: Sequence[Figures], figure: str) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a[figure] / b[figure] for a, b in zip(of, against, strict=True))


def latency(effort: Effort) -> None:
    """One client, against the graph in process."""
    tally = effort.tally("latency")
    rows: list[Row] = []
    for batch, target in ((1, 10.0), (32, 2.0)):
        found = rounds(
            tally,
            effort.rounds,
            {
                f"{IN_PROCESS}, batch {batch}": partial(_in_process, batch, effort.window_s),
                f"{NATIVE}, batch {batch}": partial(_ours, batch, 1, effort.window_s),
            },
        )
        ours, direct = found[f"{NATIVE}, batch {batch}"], found[f"{IN_PROCESS}, batch {batch}"]
        rows += [Row(f"p50 batch {batch}: {name}", median(of, "p50_ms"), "ms") for name, of in found.items()]
        what = f"p50 batch {batch}, 1 client, over in process"
        rows.append(Row(what, ratio(ours, direct, "p50_ms"), "ratio", IN_PROCESS, target=target, op="<="))
    _write(effort, tally, "latency", rows, "The native API, all outputs.")


def throughput(effort: Effort) -> None:
    """Requests a second and processor time a call, batch 1, against a bare loop on grpcio."""
    tally = effort.tally("throughput")
    rows: list[Row] = []
    for clients in CLIENTS:
        contenders = {
            f"{BARE}, {clients} clients": partial(_bare, 1, clients, effort.window_s),
            f"{NATIVE}, {clients} clients": partial(_ours, 1, clients, effort.window_s),
            f"{KSERVE}, {clients} clients": partial(_ours, 1, clients, effort.window_s, kserve=True),
        }
        found = rounds(tally, effort.rounds, contenders)
        loop = found[f"{BARE}, {clients} clients"]
        for name, of in found.items():
            rows.append(Row(name, median(of, "per_s"), "calls/s"))
            rows.append(Row(f"{name}: server CPU a call", median(of, "cpu_us"), "us"))
        for name in (NATIVE, KSERVE):
            of = found[f"{name}, {clients} clients"]
            what = f"calls/s over the bare loop's, {clients} clients: {name}"
            rows.append(Row(what, ratio(of, loop, "per_s"), "ratio", BARE, target=0.85))
            if clients > 1:
                what = f"server CPU a call over the bare loop's, {clients} clients: {name}"
                rows.append(Row(what, ratio(of, loop, "cpu_us"), "ratio", BARE, target=1.2, op="<="))
    notes = "Batch 1. Ours: validation, metrics, deadlines and all outputs. The bare loop: bytes in, probabilities out."
    _write(effort, tally, "throughput", rows, notes)


def peers(effort: Effort) -> None:
    """The same of other model servers in Python, ours beside them in every round."""
    tally = effort.tally("peers")
    there, missing = [], []
    for peer in rivals.PEERS:
        try:
            rivals.environment(peer)
            with tempfile.TemporaryDirectory() as folder, rivals.serving(peer, Path(folder) / "log", 1):
                there.append(peer)
        except rivals.NotInstalled as error:
            missing.append(str(error))
            print(error, flush=True)
    rows: list[Row] = []
    for clients in CLIENTS:
        contenders: dict[str, Callable[[], Figures]] = {
            f"{peer.name}, {clients} clients": partial(_peer, peer, clients, effort.window_s) for peer in there
        }
        ours = f"{KSERVE}, {clients} clients"
        contenders[ours] = partial(_ours, 1, clients, effort.window_s, kserve=True)
        found = rounds(tally, effort.rounds, contenders)
        rows += [Row(name, median(of, "per_s"), "calls/s") for name, of in found.items()]
        grpc = {peer.name: found[f"{peer.name}, {clients} clients"] for peer in there if peer.is_grpc}
        if grpc:
            best = max(grpc, key=lambda name: median(grpc[name], "per_s"))
            over = ratio(found[ours], grpc[best], "per_s")
            what = f"calls/s over the best gRPC peer's, {clients} clients"
            rows.append(Row(what, over, "ratio", best, target=1.0))
    http = ", ".join(peer.name for peer in there if not peer.is_grpc)
    notes = f"Batch 1. Over HTTP: {http or 'none'}. Not there: {'; '.join(missing) or 'none'}."
    _write(effort, tally, "peers", rows, notes)


def overhead(effort: Effort) -> None:
    """What metrics and uncertainty outputs cost, by a server that has neither."""
    tally = effort.tally("overhead")
    name = "{}, batch 1, 32 clients".format
    contenders = {
        name(STRIPPED): partial(_ours, 1, 32, effort.window_s, kserve=True, stripped=True),
        name(KSERVE): partial(_ours, 1, 32, effort.window_s, kserve=True),
    }
    found = rounds(tally, effort.rounds, contenders)
    rows = [Row(f"{what}: server CPU a call", median(of, "cpu_us"), "us") for what, of in found.items()]
    rows += [Row(what, median(of, "per_s"), "calls/s") for what, of in found.items()]
    over = ratio(found[name(STRIPPED)], found[name(KSERVE)], "per_s")
    rows.append(Row("calls/s of the stripped over the whole", over, "ratio", STRIPPED, target=1.1, op="<="))
    notes = "Stripped: a graph cut to its probabilities, and counters and histograms that do nothing."
    _write(effort, tally, "overhead", rows, notes)


def _in_process(rows: int, seconds: float) -> Figures:
    return {"p50_ms": p50_ms(model.graph(), rows, seconds)}


def _bare(rows: int, clients: int, seconds: float) -> Figures:
    with _folder() as folder, serving(bare(model.graph()), folder / "log") as server:
        return _figures(server, load.Load(bodies.raw(server.address, rows), seconds, clients))


def _ours(rows: int, clients: int, seconds: float, *, kserve: bool = False, stripped: bool = False) -> Figures:
    with _folder() as folder:
        command = bll(model.published(folder / "data"))
        if stripped:
            command = [sys.executable, "-m", "benchmarks.serving.stripped", *command[3:]]
        with serving(command, folder / "log") as server:
            target = (bodies.kserve if kserve else bodies.native)(server.address, rows)
            return _figures(server, load.Load(target, seconds, clients))


def _peer(peer: rivals.Peer, clients: int, seconds: float) -> Figures:
    with _folder() as folder, rivals.serving(peer, folder / "log", 1) as (server, target):
        return _figures(server, load.Load(target, seconds, clients))


def _figures(server: Serving, asked: load.Load) -> Figures:
    settled(server)
    before_s = server.cpu_s()
    found = load.run(asked)
    if found.failures:
        raise RuntimeError(f"{found.failures}: {found.first_failure}")
    cpu_us = 1e6 * (server.cpu_s() - before_s) / found.calls
    return {"per_s": found.per_s, "p50_ms": found.p50_ms, "p99_ms": found.p99_ms, "cpu_us": cpu_us}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bll-bench-") as name:
        yield Path(name)


def _write(effort: Effort, tally: Tally, name: str, rows: list[Row], notes: str) -> None:
    commits = ", ".join(tally.commits())
    notes += f" Medians of rounds, taken in turns; a ratio is the median of theirs. Commits {commits}."
    path = write("serving", name, f"python -m benchmarks.serving {name}", [0], rows, notes, effort.results)
    print(path.read_text(), flush=True)
