"""From a config to a plan: cuts, shapes, costs. Nothing is trained, and no weight is allocated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bll import data
from bll.architectures import Layer, make_layers
from bll.config import Balance, BlocksConfig, ExecutorName, FamilyName, MixingConfig, Rule, TrainingConfig, TwinName
from bll.errors import InvalidConfig, Violation
from bll.families import make_family
from bll.plan import BlockPlan, Plan
from bll.readouts import Readout
from bll.twins import make_twin


def resolve(config: TrainingConfig, root: Path | None = None, *, auto: ExecutorName = ExecutorName.PROCESSES) -> Plan:
    """The plan that `config` comes to.

    `root` is where data sets are looked for first, `auto` the executor meant by that name.

    Raises InvalidConfig if fields do not fit each other or the data, DataError if the data cannot be read.
    """
    info = data.describe(config.data, config.seed, root)
    if config.batch_size > info.train_rows:
        rule = f"must be at most the {info.train_rows} training rows, got {config.batch_size}"
        raise InvalidConfig([Violation("batch_size", rule)])
    layers = make_layers(config.network, info.input_shape)
    shapes, parameters, flops = _measure(layers, info.input_shape)
    if config.rule is Rule.BACKPROP:
        # One block whose loss, at m = 1, is the last exit's negative log-likelihood: nothing is detached in it.
        config = replace(config, blocks=BlocksConfig(num_blocks=1), mixing=MixingConfig())
    cuts = _cuts(config.blocks, len(layers), parameters, flops, config.network.architecture)
    steps_per_epoch = info.train_rows // config.batch_size
    resolved = replace(
        config,
        data=replace(config.data, train_rows=info.train_rows, validation_rows=info.validation_rows),
        blocks=replace(config.blocks, cuts=cuts),
        executor=replace(
            config.executor,
            name=auto if config.executor.name is ExecutorName.AUTO else config.executor.name,
            checkpoint_steps=config.executor.checkpoint_steps or steps_per_epoch,
        ),
    )
    starts, ends = (0, *cuts), (*cuts, len(layers))
    blocks = tuple(
        _block_plan(resolved, layers, start, end, shapes[end - 1], sum(parameters[start:end]), sum(flops[start:end]),
                    len(info.class_names), is_last=end == len(layers))
        for start, end in zip(starts, ends, strict=True)
    )  # fmt: skip
    return Plan(
        config=resolved,
        blocks=blocks,
        input_shape=info.input_shape,
        class_names=info.class_names,
        steps_per_epoch=steps_per_epoch,
        dataset_digest=info.digest,
        warnings=_warnings(resolved, info.train_rows, steps_per_epoch),
    )


def balanced_cuts(costs: Sequence[float], num_blocks: int) -> tuple[int, ...]:
    """Cuts of consecutive layers into `num_blocks` non-empty blocks with the smallest possible largest block.

    Exact, by dynamic programming; among equals the cuts that come first.
    """
    layers = len(costs)
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    # best[n][end]: (largest block, start of the last block) of the first `end` layers in n blocks.
    best = [{end: (before[end], 0) for end in range(1, layers + 1)}]
    for blocks in range(2, num_blocks + 1):
        previous = best[-1]
        best.append(
            {
                end: min(
                    (max(previous[start][0], before[end] - before[start]), start) for start in range(blocks - 1, end)
                )
                for end in range(blocks, layers + 1)
            }
        )
    cuts: list[int] = []
    end = layers
    for row in reversed(best[1:]):
        end = row[end][1]
        cuts.append(end)
    return tuple(reversed(cuts))


def _cuts(
    blocks: BlocksConfig, num_layers: int, parameters: list[int], flops: list[int], architecture: str
) -> tuple[int, ...]:
    if blocks.num_blocks > num_layers:
        rule = f"must be between 1 and {num_layers} (the layers of this {architecture!r}), got {blocks.num_blocks}"
        raise InvalidConfig([Violation("blocks.num_blocks", rule)])
    if blocks.cuts:
        if blocks.cuts[-1] >= num_layers:
            rule = f"must be below {num_layers} (the layers of this {architecture!r}), got {list(blocks.cuts)}"
            raise InvalidConfig([Violation("blocks.cuts", rule)])
        return blocks.cuts
    costs = {Balance.LAYERS: [1] * num_layers, Balance.PARAMETERS: parameters, Balance.FLOPS: flops}
    return balanced_cuts(costs[blocks.balance], blocks.num_blocks)


def _measure(layers: list[Layer], input_shape: tuple[int, ...]) -> tuple[list[tuple[int, ...]], list[int], list[int]]:
    """Output shape of one sample, parameters and forward FLOPs of each layer, computed without data."""
    shapes, parameters, flops = [], [], []
    shape = input_shape
    for layer in layers:
        with torch.device("meta"):
            module = layer.build().eval()
        shape, cost = _forward(module, shape)
        shapes.append(shape)
        parameters.append(sum(p.numel() for p in module.parameters()))
        flops.append(cost)
    return shapes, parameters, flops


def _forward(module: nn.Module, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module(torch.empty(1, *input_shape, device="meta"))
    return tuple(output.shape[1:]), counter.get_total_flops()


def _block_plan(
    config: TrainingConfig,
    layers: list[Layer],
    start: int,
    end: int,
    output_shape: tuple[int, ...],
    parameters: int,
    flops: int,
    num_classes: int,
    *,
    is_last: bool,
) -> BlockPlan:
    family = make_family(config.latent)
    chained = config.backward.twin is TwinName.CHAIN and not is_last
    with torch.device("meta"):
        readout = Readout(output_shape, family, config.latent).eval()
        twin = make_twin(num_classes, family, config.latent.units, has_right=chained)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        readout(torch.empty(1, *output_shape, device="meta"))
    own = sum(p.numel() for module in (readout, twin) for p in module.parameters())
    return BlockPlan(
        first_layer=start,
        layers=tuple(layer.name for layer in layers[start:end]),
        parameters=parameters + own,
        flops=flops + counter.get_total_flops(),
        output_shape=output_shape,
    )


def _warnings(config: TrainingConfig, train_rows: int, steps_per_epoch: int) -> tuple[str, ...]:
    found = []
    if left := train_rows - steps_per_epoch * config.batch_size:
        found.append(f"{left} of {train_rows} training rows are left out of each epoch: batches are full")
    if config.latent.family is FamilyName.UNIT_GAUSSIAN:
        found.append("latent.family 'unit_gaussian' is a linear classifier per block; its variance says nothing")
    if config.blocks.num_blocks > 4:
        found.append(f"blocks.num_blocks {config.blocks.num_blocks}: the gap to backprop grows with each block over 4")
    if config.executor.threads_per_block > (cores := len(os.sched_getaffinity(0))):
        found.append(f"executor.threads_per_block {config.executor.threads_per_block} exceeds the {cores} cores here")
    return tuple(found)
