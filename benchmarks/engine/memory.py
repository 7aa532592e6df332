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

BACKPROP = "backprop"
IN_FLIGHT = (2, 4)
"""Messages that wait between two workers at most; the last is the default. Each takes memory in both."""

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
        contenders = {BACKPROP: Contender("backprop", spec, window)}
        for messages in IN_FLIGHT:
            executor = {"name": "processes", "messages_in_flight": messages}
            blocks = {"blocks": {"num_blocks": 4, "balance": "activation_bytes"}, "executor": executor}
            contenders[largest(messages)] = Contender("bll", merged(spec, blocks), window)
        rows += rows_of(name, run(contenders, effort.rounds, tally, name), target)
    notes = f"{_NOTES} Commits {', '.join(tally.commits())}."
    write("engine", "memory", "python -m benchmarks.engine memory", [0], rows, notes, effort.results)


def largest(messages: int) -> str:
    """What the contender with so many messages in flight is called."""
    return f"largest of 4 workers, {messages} messages in flight"


def rows_of(network: str, rounds: Rounds, target: float) -> Iterator[Row]:
    """Peaks in full and net, and their ratios."""
    for figure, name in (("peak_bytes", "in full"), ("net_bytes", "net")):
        yield Row(f"{network}: {BACKPROP}, {name}", rounds.median(BACKPROP, figure) / _MIB, "MiB")
        for messages in IN_FLIGHT:
            worker = largest(messages)
            yield Row(f"{network}: {worker}, {name}", rounds.median(worker, figure) / _MIB, "MiB")
            ratio = rounds.ratio(worker, BACKPROP, figure, figure)
            asked = target if figure == "net_bytes" else None
            yield Row(f"{network}: {worker}, {name}, over backprop", ratio, "ratio", target=asked, op="<=")
