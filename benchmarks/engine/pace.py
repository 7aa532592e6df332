"""How fast a run goes once its pipeline is full, by the reports of its last block."""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from bll.choices import ExecutorName
from bll.config import TrainingConfig
from bll.events import BlockProgress
from bll.executors import Executor
from bll.partition import resolve
from bll.placement import Placement
from bll.plain import from_dict
from bll.plan import Plan
from bll.worker import Run


def short_plan(spec: dict[str, Any], steps: int, num_blocks: int, messages_in_flight: int) -> Plan:
    """`spec` in processes for one epoch of `steps` steps, which nothing but training and its reports is part of."""
    config = from_dict(TrainingConfig, spec)
    config = replace(
        config,
        data=replace(config.data, train_rows=steps * config.batch_size, validation_rows=config.batch_size),
        blocks=replace(config.blocks, num_blocks=num_blocks),
        executor=replace(config.executor, name=ExecutorName.PROCESSES, messages_in_flight=messages_in_flight),
        diagnostics=replace(config.diagnostics, per_epoch=0),
        epochs=1,
    )
    return resolve(config)


def samples_per_s(plan: Plan, executor: Executor) -> float:
    """Training rows a second in the first epoch, from the last block's first report to its last."""
    reports: list[tuple[int, float]] = []
    with tempfile.TemporaryDirectory(prefix="bll-pace-") as folder:
        executor.launch(Run(plan, "", Path(folder), data_root=None, start_step=0, placement=Placement(plan.units)))
        with closing(executor.events()) as events:
            for event in events:
                if isinstance(event, BlockProgress) and event.block == plan.num_blocks - 1:
                    reports.append((event.step, time.monotonic()))
                    if event.step == plan.steps_per_epoch:
                        break
    (first_step, first_s), (last_step, last_s) = reports[0], reports[-1]
    return plan.config.batch_size * (last_step - first_step) / (last_s - first_s)
