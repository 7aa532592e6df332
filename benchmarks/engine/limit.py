"""How much of its own limit a pipeline of blocks reaches, and how well that was forecast.

The limit is what the slowest worker would do by itself: batch size over the time of its step, alone, in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN, HALVED_RESNET18
from benchmarks.engine.rounds import SPEED, Rounds, run
from benchmarks.engine.throughput import best_cut
from benchmarks.method.trials import merged
from benchmarks.record import Row, write

TARGET = 0.95
NETWORKS = {"resnet18": (HALVED_RESNET18, Window(3, 5)), "cnn": (CNN, Window(20, 8))}
FORECAST = "forecast"
EXECUTORS = ("processes", "threads")

_NOTES = (
    "Two blocks, a core each, cut where layers and readouts take the same time. In rounds: the workers' own steps, "
    "timed one at a time by `bll.forecast`, then the run itself in processes and in threads, over a window of steps "
    "after a warm-up. Medians of rounds, ratios medians of the rounds' ratios."
)


def limit(effort: Effort) -> None:
    """Measure both networks, and write the rows."""
    tally = effort.tally("limit")
    rows: list[Row] = []
    for name, (spec, full) in NETWORKS.items():
        window = effort.window(full)
        two = merged(spec, {"blocks": {"num_blocks": 2, "cuts": [best_cut(name, spec, effort)]}})
        contenders = {FORECAST: Contender("forecast", two, window)}
        for executor in EXECUTORS:
            contenders[executor] = Contender("bll", merged(two, {"executor": {"name": executor}}), window)
        rows += rows_of(name, run(contenders, effort.rounds, tally, name))
    notes = f"{_NOTES} Commits {', '.join(tally.commits())}."
    write("engine", "limit", "python -m benchmarks.engine limit", [0], rows, notes, effort.results)


def rows_of(network: str, rounds: Rounds) -> Iterator[Row]:
    """Forecast, limit and what was reached of them."""
    yield Row(f"{network}: limit", rounds.median(FORECAST, "limit_samples_per_s"), "samples/s")
    yield Row(f"{network}: forecast", rounds.median(FORECAST), "samples/s")
    for executor in EXECUTORS:
        of_limit = rounds.ratio(executor, FORECAST, SPEED, "limit_samples_per_s")
        yield Row(f"{network}, {executor}", rounds.median(executor), "samples/s", "limit", of_limit)
        yield Row(f"{network}, {executor}: of the limit", of_limit, "ratio", target=TARGET)
        yield Row(f"{network}, {executor}: of the forecast", rounds.ratio(executor, FORECAST), "ratio")
