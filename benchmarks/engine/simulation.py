"""N = 2 to 16 workers on a core each, simulated on recorded times: block-local learning beside 1F1B and GPipe.

Efficiency is the fraction of the N cores' time in which they compute: what imbalance, bubbles and jitter leave. How
fast that is, with what block-local learning computes more (readouts, twins) and what small microbatches cost, is in
the ratios of samples/s. At N = 2 the simulation is held against real runs.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN, HALVED_RESNET18, TRANSFORMER
from benchmarks.engine.recordings import MICROBATCHES, Recording, read, record, write_recordings
from benchmarks.engine.rounds import Rounds, run
from benchmarks.engine.schedules import (
    Order,
    block_local,
    gpipe,
    one_forward_one_backward,
    period_s,
    pipelined,
)
from benchmarks.engine.tally import Tally
from benchmarks.method.trials import Spec, merged
from benchmarks.record import Row, write
from bll.execution import ExecutorConfig
from bll.partition import resolve

SLOTS = ExecutorConfig().messages_in_flight
SEED = 0
RECORDED_STEPS = 16
SIMULATED_STEPS = 400
VALIDATED_MICROBATCHES = 4
_MAX_ROUNDS = 3
ORDERS = {"1F1B": one_forward_one_backward, "GPipe": gpipe}

_NOTES = (
    f"Parts recorded with one thread, {RECORDED_STEPS} steps each (benchmarks/engine/recorded/), drawn with "
    f"replacement for {SIMULATED_STEPS} simulated steps; a core for each worker, free hand-over, lines of {SLOTS} "
    "slots. Efficiency: the fraction of the cores' time in which they compute. 1F1B and GPipe with a flush a step and "
    f"the best of {', '.join(map(str, MICROBATCHES))} microbatches, each recorded at its own size. Cuts are the "
    "planner's, by FLOPs, the same for all. Measured at N = 2: in processes on this machine's two cores, medians of "
    "rounds."
)


class Network(NamedTuple):
    """One network at every N that it has layers for."""

    spec: Spec
    num_blocks: tuple[int, ...]
    window: Window
    """Of the real runs at N = 2."""

    def contender(self, num_blocks: int, window: Window) -> Contender:
        blocks = {"blocks": {"num_blocks": num_blocks}, "executor": {"name": "processes"}}
        return Contender("bll", merged(self.spec, blocks), window)


NETWORKS = {
    "cnn": Network(CNN, (2, 4), Window(20, 5)),
    "resnet18": Network(HALVED_RESNET18, (2, 4, 8), Window(4, 5)),
    # As many equal layers as the largest pipeline has workers.
    "transformer": Network(merged(TRANSFORMER, {"network": {"widths": [64] * 16}}), (2, 4, 8, 16), Window(4, 5)),
}


def recordings(effort: Effort) -> None:
    """Record every network at every N."""
    steps = 2 if effort.is_trial else RECORDED_STEPS
    for name, network in NETWORKS.items():
        found = {}
        for count in network.num_blocks:
            found[count] = record(resolve(network.contender(count, Window(2, 1)).config()), steps)
            print(f"{name}, N = {count}: {steps} steps recorded", flush=True)
        write_recordings(name, found, effort.recordings)


def simulation(effort: Effort) -> None:
    """Simulate what is recorded, run N = 2 for comparison, and write the rows."""
    tally = effort.tally("simulation")
    rows: list[Row] = []
    for name, network in NETWORKS.items():
        recorded = read(name, effort.recordings)
        for count, recording in recorded.items():
            rows += _efficiencies(f"{name}, N = {count}", recording)
        rows += _validation(name, network, recorded[2], effort, tally)
    notes = f"{_NOTES} Commits {', '.join(tally.commits())}."
    write("engine", "simulation", "python -m benchmarks.engine simulation", [SEED], rows, notes, effort.results)


class Simulated(NamedTuple):
    """A pipeline once it is full."""

    step_s: float
    """Time from step to step."""
    efficiency: float
    """Fraction of it in which the workers compute."""


def simulated(recording: Recording) -> Simulated:
    """Block-local learning."""
    steps = _drawn(recording.blocks)
    return _simulated(block_local(steps, SLOTS), [sum(map(sum, step)) for step in steps], len(steps[0]))


def simulated_pipeline(recording: Recording, parts: int, order: Order) -> Simulated:
    """Backpropagation with `parts` microbatches."""
    steps = _drawn(recording.stages[parts])
    busy_s = [sum(parts * (stage.forward_s + stage.backward_s) + stage.update_s for stage in step) for step in steps]
    return _simulated(pipelined(steps, parts, order), busy_s, len(steps[0]))


def _simulated(ended_at: Sequence[float], busy_s: Sequence[float], workers: int) -> Simulated:
    step_s = period_s(ended_at)
    return Simulated(step_s, statistics.fmean(busy_s[len(busy_s) // 2 + 1 :]) / workers / step_s)


def _efficiencies(what: str, recording: Recording) -> Iterator[Row]:
    own = simulated(recording)
    yield Row(f"{what}: efficiency of BLL", own.efficiency, "fraction")
    for name, order in ORDERS.items():
        found = {parts: simulated_pipeline(recording, parts, order) for parts in MICROBATCHES}
        parts, rival = min(found.items(), key=lambda item: item[1].step_s)
        over = own.efficiency / rival.efficiency
        yield Row(f"{what}: efficiency of {name}, {parts} microbatches", rival.efficiency, "fraction", "BLL", 1 / over)
        yield Row(f"{what}: samples/s of BLL over those of {name}", rival.step_s / own.step_s, "ratio")


def _validation(name: str, network: Network, recording: Recording, effort: Effort, tally: Tally) -> Iterator[Row]:
    """What real runs of two workers do, and what was expected of them."""
    bll = network.contender(2, effort.window(network.window))
    cuts = resolve(bll.config()).config.blocks.cuts
    rival = Contender("1f1b", network.spec, bll.window, ranks=2, cuts=cuts, microbatches=VALIDATED_MICROBATCHES)
    expected = {
        "BLL": simulated(recording),
        "1F1B": simulated_pipeline(recording, VALIDATED_MICROBATCHES, one_forward_one_backward),
    }
    rounds: Rounds = run({"BLL": bll, "1F1B": rival}, min(effort.rounds, _MAX_ROUNDS), tally, name)
    for contender, simulation in expected.items():
        measured, simulated_per_s = rounds.median(contender), recording.batch_size / simulation.step_s
        what = f"{name}, N = 2: {contender} measured"
        yield Row(what, measured, "samples/s", f"{simulated_per_s:.0f} simulated", measured / simulated_per_s)


Step = TypeVar("Step")


def _drawn(steps: Sequence[Step]) -> list[Step]:
    return random.Random(SEED).choices(steps, k=SIMULATED_STEPS)  # noqa: S311 - no secret
