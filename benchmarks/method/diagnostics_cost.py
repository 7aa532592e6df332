"""What diagnostics add to a training step: the demo's network with them and without, in turns.

python -m benchmarks.method.diagnostics_cost
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.method.demo_network import demo_config
from benchmarks.record import Row, write
from bll.choices import ExecutorName
from bll.config import TrainingConfig
from bll.events import BlockDiagnostics, BlockProgress, Evaluation
from bll.execution import DiagnosticsConfig
from bll.partition import resolve
from bll.training import Training

TRAIN_ROWS = 13_500
"""A quarter of the demo's: a quarter of the steps for the same two examinations, so the cost is told four times."""
ROUNDS = 3
TARGET = 1.03


def epoch_s(config: TrainingConfig) -> tuple[float, int]:
    """Processor seconds from the first report of one epoch to its evaluation, and examinations meanwhile.

    Of the processor, since all blocks run in this thread: what else the machine does counts for little.
    """
    examined = 0
    with tempfile.TemporaryDirectory() as folder:
        events = Training(resolve(config), Path(folder)).events()
        # A tenth of the epoch: what is prepared once has been by then.
        next(event for event in events if isinstance(event, BlockProgress))
        started = time.process_time()
        for event in events:
            examined += isinstance(event, BlockDiagnostics)
            if isinstance(event, Evaluation):
                break
        seconds = time.process_time() - started
        events.close()  # type: ignore[attr-defined]
    return seconds, examined


def main() -> None:
    config = demo_config()
    config = replace(
        config,
        epochs=1,
        data=replace(config.data, train_rows=TRAIN_ROWS, validation_rows=128),
        executor=replace(config.executor, name=ExecutorName.SEQUENTIAL),
    )
    without = replace(config, diagnostics=DiagnosticsConfig(per_epoch=0))
    times: dict[str, list[float]] = {"with": [], "without": []}
    examined = 0
    for turn in range(ROUNDS):
        order = (("with", config), ("without", without))
        for name, run in order if turn % 2 else reversed(order):
            seconds, count = epoch_s(run)
            times[name].append(seconds)
            examined = max(examined, count)
        print(f"round {turn}: with {times['with'][-1]:.2f} s, without {times['without'][-1]:.2f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["with"], times["without"], strict=True))
    rows = [
        Row("epoch with diagnostics, median", medians["with"], "s", against="without", ratio=ratio),
        Row("epoch without, median", medians["without"], "s"),
        Row("with over without, median of the rounds' ratios", ratio, "ratio", target=TARGET, op="<="),
        Row("examinations, of all blocks", examined, "count"),
    ]
    path = write(
        "method",
        "diagnostics_cost",
        "python -m benchmarks.method.diagnostics_cost",
        [config.seed],
        rows,
        f"One epoch of {TRAIN_ROWS} rows at diagnostics.per_epoch {config.diagnostics.per_epoch}: a quarter of the "
        "demo's rows, so that examinations are four times as frequent. Processor time, from the first report to the "
        f"evaluation, all blocks in one loop on one thread; {ROUNDS} rounds in alternating order, on a busy machine: "
        "rounds differ by 1 to 3 %, more than diagnostics cost.",
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
