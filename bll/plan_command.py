"""`bll plan SPEC`: what a job spec comes to on this machine, before anything is trained."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bll.choices import Balance
from bll.config import TrainingConfig
from bll.errors import BllError, InvalidConfig, Violation
from bll.forecast import Forecast, forecast
from bll.partition import resolve
from bll.plain import from_dict
from bll.plan import Plan

_OF_THE_SERVICE = "model_id"
"""The one field of a job spec that says nothing about training."""


def plan_command(argv: list[str]) -> int:
    """Print partition, forecast and warnings of the spec that `argv` names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bll plan", description=__doc__)
    parser.add_argument("spec", type=Path, help="YAML or JSON, as for bll train")
    parser.add_argument("--data-root", type=Path, help="folder in which data sets are looked for first")
    parser.add_argument("--workers", type=int, help="try this executor.num_workers instead of the spec's")
    parser.add_argument("--propose", action="store_true", help="also time every layer, and propose cuts that balance")
    arguments = parser.parse_args(argv)
    try:
        config = _config(arguments.spec)
        if arguments.workers is not None:
            config = replace(config, executor=replace(config.executor, num_workers=arguments.workers))
        plan = resolve(config, arguments.data_root)
        _print(plan, forecast(plan, arguments.data_root))
        if arguments.propose:
            _propose(plan, arguments.data_root)
    except (BllError, OSError) as error:
        print(f"bll plan: {error}", file=sys.stderr)
        return 2
    return 0


def _config(path: Path) -> TrainingConfig:
    """The config in the file at `path`. Raises InvalidConfig, OSError."""
    import yaml  # comes with the extra `cli`

    try:
        values: Any = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidConfig([Violation(str(path), f"must be YAML or JSON: {error}")]) from error
    if not isinstance(values, Mapping):
        raise InvalidConfig([Violation(str(path), f"must hold named fields, got {type(values).__name__}")])
    return from_dict(TrainingConfig, {name: value for name, value in values.items() if name != _OF_THE_SERVICE})


def _print(plan: Plan, expected: Forecast) -> None:
    _print_partition(plan, expected)
    for number, worker in enumerate(expected.workers):
        share, memory_mib = worker.step_s / expected.alone_s, worker.memory_bytes / 2**20
        print(f"worker {number}: {_named(worker.blocks)}, {share:.0%} of a step, {memory_mib:.1f} MiB")
    slowest = expected.slowest
    print(f"slowest: {_named(slowest.blocks)}, {slowest.step_s * 1e3:.1f} ms of {expected.alone_s * 1e3:.1f} ms a step")
    print(
        f"expected with {len(expected.workers)} workers on {expected.cores} cores: {expected.samples_per_s:.0f} "
        f"samples/s, {expected.speed_up:.2f} times one worker"
    )
    for warning in plan.warnings:
        print(f"warning: {warning}")


def _print_partition(plan: Plan, expected: Forecast) -> None:
    print("block  parameters    MFLOP  step, ms  memory, MiB  layers")
    for unit in expected.units:
        for index in unit.blocks:
            block, is_first = plan.blocks[index], index == unit.blocks[0]
            step = f"{unit.step_s * 1e3:8.1f}" if is_first else " " * 8
            memory = f"{unit.memory_bytes / 2**20:11.1f}" if is_first else " " * 11
            sizes = f"{index:5}  {block.parameters:10}  {block.flops / 1e6:7.2f}"
            print(f"{sizes}  {step}  {memory}  {', '.join(block.layers)}")


def _named(blocks: range) -> str:
    return f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]} to {blocks[-1]}"


def _propose(plan: Plan, root: Path | None) -> None:
    config = plan.config
    balanced = replace(config.blocks, cuts=(), balance=Balance.MEASURED_TIME)
    cuts = resolve(replace(config, blocks=balanced), root).config.blocks.cuts
    if cuts == config.blocks.cuts:
        print(f"cuts {list(cuts)} balance the measured time as they are")
    else:
        print(f"blocks.cuts {list(cuts)} would balance the measured time better than {list(config.blocks.cuts)}")
