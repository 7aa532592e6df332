"""What checkpoints cost: the small CNN's throughput with them over that without."""

from __future__ import annotations

from benchmarks.engine.contenders import Contender, Window
from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN
from benchmarks.engine.rounds import run
from benchmarks.method.trials import merged
from benchmarks.record import Row, write
from bll.config import TrainingConfig
from bll.partition import resolve
from bll.plain import from_dict

COMMAND = "python -m benchmarks.engine checkpoints"
WINDOW = Window(42, 8)
"""An epoch as long as the whole data set allows."""
NEVER, SELDOM, OFTEN = 10_000_000, 300, 100
"""Steps between checkpoints. `SELDOM` is once in the window, which is shorter than an epoch: the default and more."""
TARGET = 1.02


def checkpoints(effort: Effort) -> None:
    """Run with and without, and write the rows."""
    tally, window = effort.tally("checkpoints"), effort.window(WINDOW)
    two = merged(CNN, {"blocks": {"num_blocks": 2}, "executor": {"name": "processes"}})
    contenders = {
        _name(steps): Contender("bll", merged(two, {"executor": {"checkpoint_steps": steps}}), window)
        for steps in (NEVER, SELDOM, OFTEN)
    }
    rounds, without = run(contenders, effort.rounds, tally, "cnn"), _name(NEVER)
    rows = [Row(name, rounds.median(name), "samples/s", without, rounds.ratio(name, without)) for name in contenders]
    for steps, target in ((SELDOM, TARGET), (OFTEN, None)):
        cost = rounds.ratio(without, _name(steps))
        rows.append(Row(f"time {_name(steps)} over that {without}", cost, "ratio", target=target, op="<="))
    epoch = resolve(from_dict(TrainingConfig, CNN)).steps_per_epoch
    notes = (
        f"Two blocks in processes; {window.steps} steps after {window.warm_up} of warm-up. The default is a checkpoint "
        f"an epoch, which the whole data set makes {epoch} steps: {SELDOM} are more frequent, one in the window. "
        "Rounds in alternating order; ratios are medians of the rounds' ratios. "
        f"Commits {', '.join(tally.commits())}."
    )
    write("engine", "checkpoints", COMMAND, [0], rows, notes, effort.results)


def _name(steps: int) -> str:
    return "without checkpoints" if steps == NEVER else f"with one every {steps} steps"
