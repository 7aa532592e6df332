"""Peak memory of the largest of four workers against that of backpropagation, cut by what steps keep in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import RESNET18, TRANSFORMER
from benchmarks.engine.rounds import Rounds, run
from benchmarks.method.trials import Spec, merged
from benchmarks.record import Row, write

NETWORKS: Mapping[str, tuple[Spec, float]] = {"transformer": (TRANSFORMER, 0.40), "resnet18": (RESNET18, 0.60)}
"""And the most that the largest worker may take, as a share of backpropagation's memory."""

BLL, BACKPROP = "largest of 4 workers", "backprop"

_WINDOW = Window(2, 2)
_NOTES = (
    "Most that a process held resident over the steps of a window after a warm-up, as the kernel counts it: weights, "
    "gradients, moments, activations, messages and the data set. Net of what a process of the same kind holds with its "
    "modules loaded and nothing built. Backpropagation is the plain loop, in one process; both in one thread."
)
_MIB = 2**20


def memory(effort: Effort) -> None:
    """Measure both networks, and write the rows."""
    tally = effort.tally("memory")
    rows: list[Row] = []
    for name, (spec, target) in NETWORKS.items():
        window = effort.window(_WINDOW)
        blocks = {"blocks": {"num_blocks": 4, "balance": "activation_bytes"}, "executor": {"name": "processes"}}
        contenders = {
            BLL: Contender("bll", merged(spec, blocks), window),
            BACKPROP: Contender("backprop", spec, window),
        }
        rows += rows_of(name, run(contenders, effort.rounds, tally, name), target)
    notes = f"{_NOTES} Commits {', '.join(tally.commits())}."
    write("engine", "memory", "python -m benchmarks.engine memory", [0], rows, notes, effort.results)


def rows_of(network: str, rounds: Rounds, target: float) -> Iterator[Row]:
    """Peaks in full and net, and their ratio."""
    for name in (BLL, BACKPROP):
        yield Row(f"{network}: {name}, in full", rounds.median(name, "peak_bytes") / _MIB, "MiB")
        yield Row(f"{network}: {name}, net", rounds.median(name, "net_bytes") / _MIB, "MiB")
    yield Row(f"{network}: in full, over backprop", rounds.ratio(BLL, BACKPROP, "peak_bytes", "peak_bytes"), "ratio")
    net = rounds.ratio(BLL, BACKPROP, "net_bytes", "net_bytes")
    yield Row(f"{network}: net, over backprop", net, "ratio", target=target, op="<=")
