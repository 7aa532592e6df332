"""What is left of the throughput when the workers are far from each other: links of 0 to 50 ms round trip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.effort import Effort
from benchmarks.engine.network import is_possible
from benchmarks.engine.networks import CNN, HALVED_RESNET18
from benchmarks.engine.rounds import Rounds, run
from benchmarks.method.trials import Spec, merged
from benchmarks.record import Row, write
from bll.config import TrainingConfig
from bll.execution import ExecutorConfig
from bll.partition import resolve
from bll.plain import from_dict

ROUND_TRIPS_MS = (0.0, 1.0, 10.0, 50.0)
FARTHEST_MS = ROUND_TRIPS_MS[-1]
ENDS_MS = (0.0, FARTHEST_MS)
NETWORKS = {"cnn": (CNN, Window(20, 5)), "resnet18": (HALVED_RESNET18, Window(3, 5))}
VARIED = "cnn"
"""The network on which other numbers of messages in flight, and a chain of twins, are measured too."""
MICROBATCHES = 4
IN_FLIGHT = ExecutorConfig().messages_in_flight
WINDOWS = (1, 2, 8)
"""Messages in flight that the default is compared with."""
TARGET = 0.97
_MAX_ROUNDS = 3

_NOTES = (
    "In rounds, each in processes of its own; throughput over a window of steps after a warm-up, beside the same at "
    "0 ms by the median of the rounds' ratios. TCP: the kernel's, between network namespaces, whose packets a process "
    "carries half a round trip later, some 150 MB/s, windows of 128 MB; the rivals' gloo, and for BLL a connection for "
    "each line, between the rings of its ends. Rings: those in shared memory, which hand a packet over, and tell of a "
    "freed slot, half a round trip later, at memory's bandwidth: no more messages are under way than "
    f"messages_in_flight, by default {IN_FLIGHT}; other numbers, and the chain, in 2 blocks. Pipelines with "
    f"{MICROBATCHES} microbatches. Blocks and stages are cut alike, by the planner. A thread for each worker, on the "
    "machine's cores."
)


@dataclass(frozen=True)
class Line:
    """One way of training, at every round trip that it is measured at."""

    name: str
    contender: Contender
    round_trips_ms: tuple[float, ...] = ROUND_TRIPS_MS
    target: float | None = None
    """Of what it keeps at the farthest."""

    def contenders(self) -> dict[str, Contender]:
        return {
            self.at(round_trip_ms): replace(self.contender, round_trip_ms=round_trip_ms)
            for round_trip_ms in self.round_trips_ms
        }

    def at(self, round_trip_ms: float) -> str:
        return f"{self.name}, {round_trip_ms:g} ms"

    def rows(self, rounds: Rounds) -> Iterator[Row]:
        near = self.at(self.round_trips_ms[0])
        for round_trip_ms in self.round_trips_ms:
            far = self.at(round_trip_ms)
            yield Row(far, rounds.median(far), "samples/s", near, rounds.ratio(far, near))
        if self.target is not None:
            far = self.at(FARTHEST_MS)
            yield Row(f"{far}: kept", rounds.ratio(far, near), "ratio", target=self.target)


def links(effort: Effort) -> None:
    """Measure both networks, and write the rows."""
    tally, rounds = effort.tally("links"), min(effort.rounds, _MAX_ROUNDS)
    for network, (spec, window) in NETWORKS.items():
        lines = [line for workers in (2, 4) for line in _lines(spec, effort.window(window), workers)]
        if network == VARIED:
            lines += _variants(lines[0].contender)
        contenders = {name: contender for line in lines for name, contender in line.contenders().items()}
        found = run(contenders, rounds, tally, network)
        rows = [row for line in lines for row in line.rows(found)]
        notes = f"{_NOTES} {_missing()}Commits {', '.join(tally.commits())}."
        write("engine", f"links_{network}", "python -m benchmarks.engine links", [0], rows, notes, effort.results)


def _lines(spec: Spec, window: Window, workers: int) -> Iterator[Line]:
    """Everybody with so many workers, BLL first."""
    cuts = resolve(from_dict(TrainingConfig, merged(spec, {"blocks": {"num_blocks": workers}}))).config.blocks.cuts
    blocks = {"blocks": {"num_blocks": workers, "cuts": list(cuts)}, "executor": {"name": "processes"}}
    bll = Contender("bll", merged(spec, blocks), window)
    yield Line(f"BLL over rings, {workers} blocks", bll, target=TARGET)
    if is_possible():
        yield Line(f"BLL over TCP, {workers} blocks", replace(bll, kind="hosted"), target=TARGET)
        rival = Contender("ddp", spec, window, ranks=workers)
        pipeline = replace(rival, cuts=cuts, microbatches=MICROBATCHES)
        yield Line(f"DDP, {workers} ranks", rival)
        yield Line(f"1F1B, {workers} stages", replace(pipeline, kind="1f1b"))
        yield Line(f"GPipe, {workers} stages", replace(pipeline, kind="gpipe"), ENDS_MS)


def _variants(bll: Contender) -> Iterator[Line]:
    """What bears on how far BLL reaches: messages in flight, and messages that go left."""
    for slots in WINDOWS:
        changed = merged(bll.spec, {"executor": {"messages_in_flight": slots}})
        yield Line(f"BLL over rings, {slots} in flight", replace(bll, spec=changed), ENDS_MS)
    chain = merged(bll.spec, {"backward": {"twin": "chain"}})
    yield Line("BLL over rings, a chain of twins", replace(bll, spec=chain), ENDS_MS)


def _missing() -> str:
    return "" if is_possible() else "TCP was not measured: it takes root and /dev/net/tun. "
