"""Networks that earlier trials have trained, from their checkpoints.

A checkpoint is read by the config digest that it was written with: config fields added since have their defaults, and
the runner has made sure that the code behaves as it did.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from benchmarks.method.measures import Task
from bll.blocks import Block, build_block
from bll.checkpoint import below, load_block
from bll.choices import ExecutorName
from bll.model import TrainedModel
from bll.partition import resolve
from bll.plan import Plan


def trained_before(task: Task, index: int) -> TrainedModel:
    """The model of base `index`."""
    plan, (_, digest) = _plan(task, index), _cut(task.bases[index])
    return TrainedModel.load(plan, task.bases[index], digest, task.data_root)


def trained_blocks(task: Task, index: int) -> tuple[list[Block], list[Tensor], tuple[int, ...]]:
    """The blocks of base `index` with their twins, the class table of each boundary (C, P, D), and the cuts."""
    plan, (step, digest) = _plan(task, index), _cut(task.bases[index])
    blocks, tables = [], []
    for number in range(plan.num_blocks):
        tensors = load_block(task.bases[index], step, number, digest)
        block = build_block(plan, number)
        block.load_state_dict(below("block.", tensors))
        blocks.append(block.eval())
        tables.append(tensors["table.beta_CPD"])
    return blocks, tables, plan.config.blocks.cuts


def _plan(task: Task, index: int) -> Plan:
    return resolve(replace(task.config, seed=task.seeds[index]), task.data_root, auto=ExecutorName.THREADS)


def _cut(run_dir: Path) -> tuple[int, str]:
    """Step and config digest of the last checkpoint of a finished run."""
    folder = max((run_dir / "checkpoints").iterdir())
    manifest = json.loads((folder / "manifest.json").read_text())
    return manifest["step"], manifest["config"]
