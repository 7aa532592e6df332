"""From a config to a plan: cuts, shapes, costs. Nothing is trained, and no weight is allocated."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bll import data
from bll.architectures import Layer, make_layers, with_widths
from bll.architectures.modules import Layers, UserNetwork, UserPlan, user_network
from bll.auxiliary import Auxiliary
from bll.balance import balanced_cuts
from bll.blocks import make_decoder, make_target_twin, normalize_layer
from bll.choices import Balance, ExecutorName, FamilyName, MessageName, ReadoutName, Rule, TargetName, TwinName
from bll.combinations import LOCAL_RULES, check_workers, settled
from bll.config import NetworkConfig, TrainingConfig
from bll.cores import usable_cores
from bll.costs import Cost, StepTimes, measure, step_times
from bll.credit import make_credit
from bll.data import DataInfo
from bll.devices import cluster_devices, resolved_devices
from bll.errors import InvalidConfig, Violation
from bll.families import make_family
from bll.intra_op import intra_op_threads
from bll.placement import crowding, num_workers
from bll.plan import BlockPlan, Plan
from bll.precision import Arithmetic
from bll.readouts import Readout, latent_units, make_readout
from bll.seeding import global_generator
from bll.sending import message_shape
from bll.twins import Twin, make_twin

_FLOAT_BYTES = 4
_RULES_OF_ROWS = {
    Rule.PREDSIM,
    Rule.PROTOTYPE,
    Rule.DIRECT_FEEDBACK_ALIGNMENT,
    Rule.TARGET_PROPAGATION,
    Rule.SYNTHETIC_GRADIENTS,
}


def resolve(
    config: TrainingConfig,
    root: Path | None = None,
    *,
    auto: ExecutorName = ExecutorName.PROCESSES,
    network: nn.Sequential | Layers | None = None,
) -> Plan:
    """The plan that `config` comes to.

    `root` is where data sets are looked for first, `auto` the executor meant by that name. `network` takes the place
    of the one that `config.network` describes; it is copied, and runs under `sequential` and `threads` only.

    Raises InvalidConfig if fields do not fit each other or the data, DataError if the data cannot be read.
    """
    config = settled(config)
    _check_installed(config)
    info = data.describe(config.data, config.seed, root)
    if config.data.target is TargetName.INPUTS:
        info = replace(info, class_names=(), target_shape=())
    if config.batch_size > info.train_rows:
        rule = f"must be at most the {info.train_rows} training rows, got {config.batch_size}"
        raise InvalidConfig([Violation("batch_size", rule)])
    _check_targets(config, info)
    user = None
    if network is None:
        config = replace(config, network=with_widths(config.network))
        layers = make_layers(config.network, info.input_shape)
    else:
        user = user_network(network, info.input_shape)
        config, auto = _with_user_network(config, user), ExecutorName.THREADS
        layers = user.layers()
    config = replace(config, executor=replace(config.executor, devices=_devices(config)))
    costs = _layer_costs(layers, info.input_shape)
    cuts = _cuts(config, layers, costs, info)
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
    check_workers(resolved)
    _check_messages(resolved, layers, costs)
    starts, ends = (0, *cuts), (*cuts, len(layers))
    right_shapes = [costs[end - 1].output_shape for end in ends[1:]]
    blocks = tuple(
        _block_plan(resolved, layers, costs, start, end, info, right_shape)
        for start, end, right_shape in zip(starts, ends, (*right_shapes, None), strict=True)
    )
    plan = Plan(
        config=resolved,
        blocks=blocks,
        input_shape=info.input_shape,
        class_names=info.class_names,
        steps_per_epoch=steps_per_epoch,
        dataset_digest=info.digest,
        target_shape=info.target_shape,
    )
    plan = replace(plan, warnings=_warnings(plan))
    return plan if user is None else UserPlan(**vars(plan), network=user)


def _check_installed(config: TrainingConfig) -> None:
    if config.executor.name is ExecutorName.RAY and importlib.util.find_spec("ray") is None:
        rule = "must be another where Ray is not installed (pip install 'bll[ray]'), got 'ray'"
        raise InvalidConfig([Violation("executor.name", rule)])


def _devices(config: TrainingConfig) -> tuple[str, ...]:
    """`executor.devices` with nothing left open. Raises InvalidConfig for what is not there."""
    executor = config.executor
    if executor.name is ExecutorName.RAY:
        return cluster_devices(executor.devices)
    return resolved_devices(executor.devices, config.blocks.num_blocks, apart=config.loss.span == 1)


def _with_user_network(config: TrainingConfig, user: UserNetwork) -> TrainingConfig:
    """`config` that names the user's network by its digest, so that checkpoints know whose they are."""
    described = NetworkConfig(architecture=f"module-{user.digest}")
    if config.network not in (NetworkConfig(), described):
        raise InvalidConfig([Violation("network", "says nothing about a network of your own: leave its fields out")])
    if config.executor.name in (ExecutorName.PROCESSES, ExecutorName.RAY):
        rule = (
            f"must be 'sequential' or 'threads' for a network given as a module, got '{config.executor.name}': its "
            "workers build their layers from the config; an architecture of entry point group 'bll.architectures' "
            "runs in all"
        )
        raise InvalidConfig([Violation("executor.name", rule)])
    return replace(config, network=described)


def _check_targets(config: TrainingConfig, info: DataInfo) -> None:
    """Raises InvalidConfig for what pairs a row's hidden values with one class, where a row has many."""
    if not info.target_shape:
        return
    where, found = f"for targets of shape {list(info.target_shape)}", []
    if config.rule in _RULES_OF_ROWS:
        found.append(
            Violation("rule", f"must be one that needs no class of the whole row {where}, got '{config.rule}'")
        )
    elif config.loss.similarity:
        found.append(Violation("loss.similarity", f"must be 0 {where}, got {config.loss.similarity:g}"))
    if found:
        raise InvalidConfig(found)


def _cuts(config: TrainingConfig, layers: Sequence[Layer], costs: Sequence[Cost], info: DataInfo) -> tuple[int, ...]:
    blocks, architecture, num_layers = config.blocks, config.network.architecture, len(layers)
    if blocks.num_blocks > num_layers:
        rule = f"must be between 1 and {num_layers} (the layers of this {architecture!r}), got {blocks.num_blocks}"
        raise InvalidConfig([Violation("blocks.num_blocks", rule)])
    if blocks.cuts:
        if blocks.cuts[-1] >= num_layers:
            rule = f"must be below {num_layers} (the layers of this {architecture!r}), got {list(blocks.cuts)}"
            raise InvalidConfig([Violation("blocks.cuts", rule)])
        return blocks.cuts
    match blocks.balance:
        case Balance.LAYERS:
            weights: Sequence[float] = [1] * num_layers
        case Balance.PARAMETERS:
            weights = [cost.parameters for cost in costs]
        case Balance.FLOPS:
            weights = [cost.flops for cost in costs]
        case Balance.ACTIVATION_BYTES:
            weights = [cost.activation_bytes for cost in costs]
        case Balance.MEASURED_TIME:
            times = _step_times(config, layers, costs, info)
            return balanced_cuts(times.layers_s, blocks.num_blocks, times.readouts_s)
    return balanced_cuts(weights, blocks.num_blocks)


def _step_times(config: TrainingConfig, layers: Sequence[Layer], costs: Sequence[Cost], info: DataInfo) -> StepTimes:
    """Times of every layer, and of the readout of its output if a block ended with it.

    Twin and loss take the same time in every block with the same units: they are left out.
    """
    executor, family = config.executor, make_family(config.latent)
    if executor.devices != ("cpu",):
        rule = (
            f"must be another than 'measured_time', which measures the CPU, for devices {list(executor.devices)}, got "
        )
        raise InvalidConfig([Violation("blocks.balance", f"{rule}'measured_time'")])
    reduced = Arithmetic(executor.precision, torch.device("cpu")).reduced()
    with global_generator(config.seed), intra_op_threads(executor.threads_per_block), reduced:
        modules = [layer.build() for layer in layers]
        readouts: list[Readout | None] = []
        for end, cost in enumerate(costs, start=1):
            try:
                next_layer = layers[end].build() if _copies_next_layer(config, layers, end) else None
                readout = make_readout(
                    cost.output_shape, family, config.latent, next_layer, target_shape=info.target_shape
                )
                readouts.append(readout)
            except InvalidConfig:  # no block can end here
                readouts.append(None)
        return step_times(modules, readouts, info.input_shape, config.batch_size)


def _copies_next_layer(config: TrainingConfig, layers: Sequence[Layer], end: int) -> bool:
    return config.latent.readout is ReadoutName.NEXT_LAYER and end < len(layers)


def _layer_costs(layers: Sequence[Layer], input_shape: tuple[int, ...]) -> list[Cost]:
    costs: list[Cost] = []
    shape = input_shape
    for layer in layers:
        try:
            with torch.device("meta"):
                costs.append(measure(layer.build().to("meta"), shape))
        except Exception as error:  # only a layer of the user's own can
            rule = f"{layer.name!r} cannot be measured without data, on the meta device: {error}"
            raise InvalidConfig([Violation("network", rule)]) from error
        shape = costs[-1].output_shape
    return costs


def _check_messages(config: TrainingConfig, layers: Sequence[Layer], costs: Sequence[Cost]) -> None:
    """Raises InvalidConfig if a layer after a cut cannot take messages of another shape than its block's output."""
    family = make_family(config.latent)
    if config.latent.message is not MessageName.NATURAL or family.num_parameters == 1:
        return
    for cut in config.blocks.cuts:
        shape = message_shape(costs[cut - 1].output_shape, family, config.latent)
        try:
            with torch.device("meta"):
                fits = measure(layers[cut].build().to("meta"), shape).output_shape == costs[cut].output_shape
        except RuntimeError:
            fits = False
        if not fits:
            rule = (
                f"must be another than 'natural' for a family of {family.num_parameters} parameters: layer {cut}, "
                f"{layers[cut].name!r}, cannot take messages of shape {list(shape)}, got 'natural'"
            )
            raise InvalidConfig([Violation("latent.message", rule)])


def _block_plan(
    config: TrainingConfig,
    layers: Sequence[Layer],
    costs: Sequence[Cost],
    start: int,
    end: int,
    info: DataInfo,
    right_shape: tuple[int, ...] | None,
) -> BlockPlan:
    """The plan of layers `start` to `end`; `right_shape` is the next block's output's."""
    family, output_shape = make_family(config.latent), costs[end - 1].output_shape
    received = message_shape(costs[start - 1].output_shape, family, config.latent) if start else info.input_shape
    chained = config.backward.twin is TwinName.CHAIN and right_shape is not None
    block = (0, *config.blocks.cuts).index(start)
    with torch.device("meta"):
        next_layer = layers[end].build().to("meta") if _copies_next_layer(config, layers, end) else None
        readout = make_readout(output_shape, family, config.latent, next_layer, target_shape=info.target_shape)
        right_units = latent_units(right_shape, config.latent) if chained and right_shape else None
        auxiliary = Auxiliary(received, output_shape, len(info.class_names), config.loss, config.latent, block)
        own = [*costs[start:end], *(measure(reader, output_shape) for reader in (readout, *auxiliary.readers()))]
        twin: Twin
        if config.data.target is TargetName.INPUTS:
            normalize = normalize_layer(info.input_shape, None)
            twin = make_target_twin(config, normalize, info.input_shape, family, readout.units)
            own.append(measure(make_decoder(config, normalize, info.input_shape, readout.units), (readout.units,)))
        else:
            twin = make_twin(len(info.class_names), family, readout.units, right_units=right_units)
    tables = [*twin.parameters(), *(auxiliary.prototypes.parameters() if auxiliary.prototypes else ())]
    return BlockPlan(
        first_layer=start,
        layers=tuple(layer.name for layer in layers[start:end]),
        parameters=sum(cost.parameters for cost in own)
        + sum(p.numel() for p in tables)
        + _credit_parameters(config.rule, layers[start:end], received, len(info.class_names)),
        flops=sum(cost.flops for cost in own),
        output_shape=output_shape,
        activation_bytes=math.prod(received) * _FLOAT_BYTES + sum(cost.activation_bytes for cost in own),
    )


def _credit_parameters(rule: Rule, layers: Sequence[Layer], input_shape: tuple[int, ...], num_classes: int) -> int:
    """Trainable parameters that `rule` sets between a block's exit and its layers."""
    if rule in LOCAL_RULES or rule is Rule.BACKPROP:
        return 0  # and the layers need not be built again
    with torch.device("meta"):
        stack = nn.Sequential(*(layer.build().to("meta") for layer in layers))
        credit = make_credit(rule, stack, input_shape, num_classes)
    return sum(p.numel() for p in credit.parameters())


def _warnings(plan: Plan) -> tuple[str, ...]:
    config, train_rows, found = plan.config, plan.config.data.train_rows, []
    if left := train_rows - plan.steps_per_epoch * config.batch_size:
        found.append(f"{left} of {train_rows} training rows are left out of each epoch: batches are full")
    if config.latent.family is FamilyName.UNIT_GAUSSIAN:
        found.append("latent.family 'unit_gaussian' is a linear classifier per block; its variance says nothing")
    if config.blocks.num_blocks > 4:
        found.append(f"blocks.num_blocks {config.blocks.num_blocks}: the gap to backprop grows with each block over 4")
    if config.loss.span > 1:
        found.append(f"loss.span {config.loss.span}: all blocks run in one worker, one after the other")
    cores = math.inf if config.executor.address else usable_cores()  # those of a cluster are not known here
    if crowded := crowding(plan, num_workers(plan), cores):
        found.append(crowded)
    return tuple(found)
