"""Samples a second of block-local learning on two cores, beside what a user would pick instead."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.engine.contenders import Contender, Window, measure
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN, HALVED_RESNET18
from benchmarks.engine.rounds import Rounds, run
from benchmarks.method.trials import Spec, merged
from benchmarks.record import Row, write

BACKPROP = "backprop, 2 threads"
ONE_THREAD = "backprop, 1 thread"
DDP = "DDP, 2 x 1 thread"
PIPELINES = {
    f"{title}, {microbatches} microbatches": (kind, microbatches)
    for title, kind in (("GPipe", "gpipe"), ("1F1B", "1f1b"))
    for microbatches in (2, 4, 8)
}
ALONE = "one block after the other"
"""Block-local learning in one thread."""


@dataclass(frozen=True)
class Race:
    """One network by every contender, in two processes or threads."""

    name: str
    spec: Spec
    num_blocks: tuple[int, ...]
    """In which BLL trains it; the first is what is held against the targets."""
    window: Window
    over_backprop: float | None = None
    over_ddp: float | None = None
    over_pipelines: float | None = None
    of_bound: float | None = None

    def contenders(self, cut: int) -> dict[str, Contender]:
        """All by name; `cut` is the first layer of the second of two stages or blocks."""
        backprop = Contender("backprop", self.spec, self.window)
        pipeline = replace(backprop, ranks=2, cuts=(cut,))
        found = {
            BACKPROP: replace(backprop, threads=2),
            ONE_THREAD: backprop,
            DDP: replace(backprop, kind="ddp", ranks=2),
        }
        for name, (kind, microbatches) in PIPELINES.items():
            found[name] = replace(pipeline, kind=kind, microbatches=microbatches)
        for num_blocks in self.num_blocks:
            spec = merged(self.spec, self._blocks(num_blocks, cut))
            for name, executor in executors(num_blocks).items():
                contender = Contender("bll", merged(spec, {"executor": executor}), self.window)
                found[f"BLL, {num_blocks} blocks, {name}"] = contender
        return found

    def _blocks(self, num_blocks: int, cut: int) -> Spec:
        return {"blocks": {"num_blocks": num_blocks, "cuts": [cut] if num_blocks == 2 else []}}


def executors(num_blocks: int) -> dict[str, Spec]:
    """Ways of running so many blocks on two cores, by name."""
    found: dict[str, Spec] = {ALONE: {"name": "sequential"}}
    for name in ("threads", "processes"):
        if num_blocks > 2:
            found[f"{num_blocks} {name}"] = {"name": name}
        found[f"2 {name}"] = {"name": name, "num_workers": 2}
    return found


RACES = (
    Race(
        "resnet18",
        HALVED_RESNET18,
        (2, 4),
        Window(3, 5),
        over_backprop=1.3,
        over_ddp=1.25,
        over_pipelines=1.35,
    ),
    # The spec whose accuracy group `cnn` of the method's benchmarks tells.
    Race("cnn", CNN, (4, 2), Window(20, 8), of_bound=0.95),
)

_NOTES = (
    "In rounds, each contender in processes of its own, which end with its turn; throughput over the steps of a window "
    "after a warm-up, by a clock outside the workers; figures are medians of rounds, and ratios medians of the rounds' "
    "ratios. The same rows, batches, augmentation, optimizer and environment for all. The rivals train what "
    "`rule: backprop` trains: the same layers with the last exit's readout. Two stages and two blocks are cut where "
    "layers and readouts take the same time here. The bound at equal work is 2 over backprop's gain from its second "
    "thread; that of BLL's own work is twice its throughput in one thread."
)


def throughput(effort: Effort) -> None:
    """Run every race, and write its rows."""
    tally = effort.tally("throughput")
    for race in RACES:
        race = replace(race, window=effort.window(race.window))
        cut = best_cut(race.name, race.spec, effort)
        rounds = run(race.contenders(cut), effort.rounds, tally, race.name)
        notes = f"{_NOTES} Here that is before layer {cut}. Commits {', '.join(tally.commits())}."
        command = "python -m benchmarks.engine throughput"
        write("engine", f"throughput_{race.name}", command, [0], [*rows_of(race, rounds)], notes, effort.results)


def best_cut(name: str, spec: Spec, effort: Effort) -> int:
    """First layer of the second of two blocks that take the same time on this machine; the same for every measurement.

    The median of as many measurements as there are rounds.
    """
    tally = effort.tally("cuts")
    balanced = merged(spec, {"blocks": {"num_blocks": 2, "balance": "measured_time"}})
    cutter = Contender("cut", balanced, Window(1, 1))
    found = [tally.once(f"{name}: cut {number + 1}", lambda: measure(cutter)) for number in range(effort.rounds)]
    return int(statistics.median_low(figures["cut"] for figures in found))


def rows_of(race: Race, rounds: Rounds) -> Iterator[Row]:
    """What each contender does, and what was asked of BLL."""
    for name in rounds.names:
        yield Row(name, rounds.median(name), "samples/s", BACKPROP, rounds.ratio(name, BACKPROP))
    blocks = race.num_blocks[0]
    best = rounds.fastest(f"BLL, {blocks} blocks, {name}" for name in executors(blocks) if name != ALONE)
    pipeline = rounds.fastest(PIPELINES)
    over_backprop = rounds.ratio(best, BACKPROP)
    yield Row(f"{best}, over {BACKPROP}", over_backprop, "ratio", target=race.over_backprop)
    yield Row(f"{best}, over {DDP}", rounds.ratio(best, DDP), "ratio", target=race.over_ddp)
    over_pipeline = rounds.ratio(best, pipeline)
    yield Row(f"{best}, over the best pipeline, {pipeline}", over_pipeline, "ratio", target=race.over_pipelines)
    bound = 2 / rounds.ratio(BACKPROP, ONE_THREAD)
    own_bound = 2 * rounds.ratio(f"BLL, {blocks} blocks, {ALONE}", BACKPROP)
    yield Row("bound over backprop at equal work", bound, "ratio")
    yield Row("bound over backprop of BLL's own work", own_bound, "ratio")
    yield Row(f"{best}, of the bound at equal work", over_backprop / bound, "ratio", target=race.of_bound)
    yield Row(f"{best}, of the bound of its own work", over_backprop / own_bound, "ratio", target=race.of_bound)
