"""From kill -9 of a worker process to its next microbatch, and how many steps are done again (`recovery: exact`)."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.engine.effort import Effort
from benchmarks.engine.networks import CNN, UNEXAMINED
from benchmarks.engine.resident import grandchildren
from benchmarks.method.trials import merged
from benchmarks.record import Row, write
from bll import checkpoint
from bll.choices import ExecutorName, Recovery
from bll.config import TrainingConfig
from bll.events import BlockProgress, CheckpointSaved, Event, RolledBack
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan
from bll.progress import REPORTS_PER_EPOCH
from bll.training import Training

COMMAND = "python -m benchmarks.engine recovery"
KILLS = 20
SEED = 0
TARGET_S = 1.0


@dataclass(frozen=True)
class Kill:
    """One worker killed, and what came of it, by the clock of the process that runs the job."""

    block: int
    noticed_s: float
    """Until the run said so."""
    next_step_s: float
    """Until the same block has done a step again; its time is part of it."""
    redone_steps: int
    """Steps that the last block had reported, and does again."""
    redone_steps_ahead: int
    """The same of the block that was furthest ahead."""
    load_s: float
    """Reading and checking the block's part of the checkpoint, by itself."""


def recovery(effort: Effort) -> None:
    """Kill workers of the small CNN, and write the rows."""
    tally = effort.tally("recovery")
    count = KILLS if effort.rounds > 1 else 2
    stored = tally.once(f"{count} kills", lambda: [asdict(kill) for kill in killed(count)])
    kills = [Kill(**values) for values in stored]
    interval = _plan().config.executor.checkpoint_steps
    what = "to the next microbatch less checkpoint load"
    beyond = [kill.next_step_s - kill.load_s for kill in kills]
    waits = {
        "kill -9 to the next microbatch done": [kill.next_step_s for kill in kills],
        "kill -9 to its notice": [kill.noticed_s for kill in kills],
        "checkpoint load": [kill.load_s for kill in kills],
    }
    rows = [
        Row("kills", len(kills), "count"),
        Row(f"{what}, median", statistics.median(beyond), "s", target=TARGET_S, op="<="),
        Row(f"{what}, most", max(beyond), "s", target=TARGET_S, op="<="),
        Row("steps done again, most", max(k.redone_steps for k in kills), "steps", target=interval, op="<="),
        Row("the same of the block furthest ahead", max(k.redone_steps_ahead for k in kills), "steps"),
    ]
    for name, values in waits.items():
        rows += [Row(f"{name}, median", statistics.median(values), "s"), Row(f"{name}, most", max(values), "s")]
    notes = (
        f"The small CNN in two processes, a checkpoint every {interval} steps, a report of every step; victims and "
        "moments from the seed, a worker at a time. The next microbatch counts when it is done and reported. "
        f"Commits {', '.join(tally.commits())}."
    )
    write("engine", "recovery", COMMAND, [SEED], rows, notes, effort.results)


def killed(count: int) -> list[Kill]:
    """Kill a worker `count` times in one run, at steps and of blocks that the seed decides on."""
    draw = random.Random(SEED)  # noqa: S311 - no secret
    kills: list[Kill] = []
    plan = _plan()
    with tempfile.TemporaryDirectory(prefix="bll-recovery-") as folder:
        training = Training(plan, Path(folder))
        with closing(cast("Any", training.events())) as events:
            while len(kills) < count:
                _until_checkpoint(events)
                kills.append(_kill(events, plan, draw.randrange(plan.num_blocks), draw.randrange(1, 10), Path(folder)))
    return kills


def _until_checkpoint(events: Iterator[Event]) -> None:
    for event in events:
        if isinstance(event, CheckpointSaved):
            return


def _kill(events: Iterator[Event], plan: Plan, block: int, after: int, run_dir: Path) -> Kill:
    """Kill the worker of `block` after some more steps of it, and wait for its next one."""
    reached = [0] * plan.num_blocks
    killed_at = noticed_at = 0.0
    start = 0
    for event in events:
        match event:
            case BlockProgress() if not noticed_at:
                reached[event.block] = max(reached[event.block], event.step)
                after -= event.block == block
                if after == 0 and not killed_at:
                    os.kill(sorted(grandchildren(os.getpid()))[block], signal.SIGKILL)
                    killed_at = time.monotonic()
            case RolledBack():
                noticed_at, start = time.monotonic(), event.step
            case BlockProgress(block=at) if at == block:
                ended_at = time.monotonic()
                break
    return Kill(
        block=block,
        noticed_s=noticed_at - killed_at,
        next_step_s=ended_at - killed_at,
        redone_steps=reached[-1] - start,
        redone_steps_ahead=max(reached) - start,
        load_s=_load_s(run_dir, block),
    )


def _plan() -> Plan:
    config = from_dict(TrainingConfig, merged(CNN, UNEXAMINED))
    executor = replace(config.executor, name=ExecutorName.PROCESSES, recovery=Recovery.EXACT)
    # An epoch of as many steps as it has reports: every step is told.
    rows = REPORTS_PER_EPOCH * config.batch_size
    return resolve(
        replace(
            config,
            data=replace(config.data, train_rows=rows, validation_rows=config.batch_size),
            blocks=replace(config.blocks, num_blocks=2),
            executor=executor,
            epochs=1000,
        )
    )


def _load_s(run_dir: Path, block: int) -> float:
    """Time to read and check one block of the newest checkpoint."""
    newest = max((run_dir / "checkpoints").glob("step-*/manifest.json"))
    manifest = json.loads(newest.read_text())
    started = time.perf_counter()
    checkpoint.load_block(run_dir, manifest["step"], block, manifest["config"])
    return time.perf_counter() - started
