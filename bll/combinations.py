"""What a learning rule sets, and what fields of different sections must keep together. Torch is not imported here."""

from __future__ import annotations

from dataclasses import replace

from bll.choices import (
    ExecutorName,
    FamilyName,
    LossName,
    MixingSchedule,
    PosteriorName,
    PrecisionName,
    ReadoutName,
    Recovery,
    Rule,
    TargetName,
    TwinName,
)
from bll.config import BlocksConfig, LossConfig, MixingConfig, TrainingConfig
from bll.errors import InvalidConfig, Violation

LOCAL_RULES = frozenset({Rule.BLL, Rule.LOCAL_CLASSIFIERS, Rule.PREDSIM, Rule.PROTOTYPE})
"""Rules under which a block learns from its own exit alone. The others run as one block."""

MIN_IN_BATCH_ROWS = 32
"""Targets among which `in_batch` normalises at least (method, section 4)."""

_SIMILARITY = 0.99
"""Weight of similarity matching that predsim was published with (Nokland and Eidnes 2019, section 3)."""


def settled(config: TrainingConfig) -> TrainingConfig:
    """`config` with what its rule means filled in: `loss` and `mixing`, and `blocks` of a rule that is not local, say
    nothing of their own under a rule but `bll`.

    Raises InvalidConfig if fields contradict each other.
    """
    if config.rule not in _RULES_OF_VALUES and config.data.target is not TargetName.LABELS:
        rule = f"must be 'labels' for rule {config.rule.value!r}, got {config.data.target.value!r}"
        raise InvalidConfig([Violation("data.target", rule)])
    if config.rule is not Rule.BLL:
        config = replace(config, loss=_loss(config), mixing=_mixing(config))
    if config.rule not in LOCAL_RULES:
        # One block whose loss, at m = 1, is the last exit's negative log-likelihood: nothing is detached in it.
        config = replace(config, blocks=BlocksConfig(num_blocks=1))
    loss, num_blocks = config.loss, config.blocks.num_blocks
    found = _target_violations(config)
    if loss.block_weights and len(loss.block_weights) != num_blocks:
        rule = f"must have blocks.num_blocks = {num_blocks} entries, got {list(loss.block_weights)}"
        found.append(Violation("loss.block_weights", rule))
    if loss.name is LossName.PROTOTYPE and config.rule is not Rule.PROTOTYPE:
        rule = "must be another for rule 'bll', which has a posterior, got 'prototype'; rule 'prototype' sets it"
        found.append(Violation("loss.name", rule))
    if loss.span > num_blocks:
        rule = f"must be at most blocks.num_blocks = {num_blocks}, got {loss.span}"
        found.append(Violation("loss.span", rule))
    if config.latent.readout is ReadoutName.NEXT_LAYER and config.blocks.normalize_messages:
        rule = "must be false with readout 'next_layer', whose copy reads a block's output as it is, got true"
        found.append(Violation("blocks.normalize_messages", rule))
    found += _executor_violations(config)
    if found:
        raise InvalidConfig(found)
    return config


def _executor_violations(config: TrainingConfig) -> list[Violation]:
    """Devices that blocks cannot have, and a precision that a rule cannot."""
    executor, num_blocks, found = config.executor, config.blocks.num_blocks, []
    if len(executor.devices) not in (1, num_blocks):
        rule = f"must have 1 or blocks.num_blocks = {num_blocks} entries, got {list(executor.devices)}"
        found.append(Violation("executor.devices", rule))
    if config.loss.span > 1 and len(set(executor.devices)) > 1:
        rule = f"must be one for all blocks with loss.span {config.loss.span}, whose blocks share a graph, got "
        found.append(Violation("executor.devices", rule + str(list(executor.devices))))
    if executor.precision is PrecisionName.BFLOAT16 and config.rule not in LOCAL_RULES | {Rule.BACKPROP}:
        rule = f"must be 'float32' for rule {config.rule.value!r}, which makes its gradients by itself, got 'bfloat16'"
        found.append(Violation("executor.precision", rule))
    return found


def check_workers(config: TrainingConfig) -> None:
    """Raises InvalidConfig if a settled `config`, whose executor has a name, asks for workers that it cannot have, or
    for what they cannot do."""
    found = []
    wanted, most = config.executor.num_workers, config.blocks.num_blocks
    if config.executor.name is ExecutorName.SEQUENTIAL:
        most, why = 1, "executor 'sequential' is one worker"
    elif config.loss.span > 1:
        most, why = 1, f"loss.span {config.loss.span} keeps all blocks in one worker"
    else:
        why = "a block is never divided"
    if wanted > most:
        found.append(Violation("executor.num_workers", f"must be at most {most}: {why}, got {wanted}"))
    if config.executor.pin_cpus and config.executor.name is not ExecutorName.PROCESSES:
        rule = f"must be false for executor {config.executor.name.value!r}, which has no processes to pin, got true"
        found.append(Violation("executor.pin_cpus", rule))
    name, recovery = config.executor.name, config.executor.recovery
    if recovery is Recovery.CONTINUE and name is not ExecutorName.PROCESSES:
        rule = f"must be 'exact' for executor {name.value!r}, whose workers cannot be lost one by one, got 'continue'"
        found.append(Violation("executor.recovery", rule))
    if found:
        raise InvalidConfig(found)


_RULES_OF_VALUES = frozenset({Rule.BLL, Rule.BACKPROP})
"""Rules that learn real-valued targets too: the others are defined, or compared, by an error in each class."""

_LOSSES = {
    Rule.LOCAL_CLASSIFIERS: LossConfig(LossName.DISCRIMINATIVE),
    Rule.PREDSIM: LossConfig(LossName.DISCRIMINATIVE, similarity=_SIMILARITY),
    Rule.PROTOTYPE: LossConfig(LossName.PROTOTYPE),
}


def _loss(config: TrainingConfig) -> LossConfig:
    if config.data.target is TargetName.INPUTS:
        return LossConfig(LossName.DECODER)
    return _LOSSES.get(config.rule, LossConfig())


def _mixing(config: TrainingConfig) -> MixingConfig:
    """m = 0 where the latent's posterior plays no part."""
    plays_no_part = config.rule in _LOSSES or config.data.target is TargetName.INPUTS
    return MixingConfig(MixingSchedule.CONSTANT, start=0.0) if plays_no_part else MixingConfig()


def has_messages(config: TrainingConfig) -> bool:
    """Whether real-valued targets have backward messages: `decoder` at m = 0 would never train them."""
    mixing = config.mixing
    ends_above = mixing.schedule is not MixingSchedule.CONSTANT and mixing.end > 0
    return config.loss.name is LossName.IN_BATCH or mixing.start > 0 or ends_above


def _target_violations(config: TrainingConfig) -> list[Violation]:
    """Fields that the kind of target forbids, or asks for."""
    loss, found = config.loss, []
    for_real = loss.name in (LossName.DECODER, LossName.IN_BATCH)
    if config.data.target is TargetName.LABELS:
        if for_real:
            rule = f"goes with data.target 'inputs': labels have a normaliser of their own, got '{loss.name}'"
            found.append(Violation("loss.name", rule))
        return found
    if not for_real:
        rule = f"must be 'decoder' or 'in_batch' for data.target 'inputs', got '{loss.name}'"
        found.append(Violation("loss.name", rule))
    if config.data.label_noise:
        rule = f"must be 0 for data.target 'inputs', which reads no labels, got {config.data.label_noise:g}"
        found.append(Violation("data.label_noise", rule))
    if config.backward.twin is TwinName.CHAIN:
        rule = (
            "must be 'direct' for data.target 'inputs': a chain would read its targets delay_steps ahead, got 'chain'"
        )
        found.append(Violation("backward.twin", rule))
    if config.latent.family is FamilyName.LAPLACE_SCALE:
        rule = "must have a mean to decode for data.target 'inputs', got 'laplace_scale', whose mean is always 0"
        found.append(Violation("latent.family", rule))
    if loss.similarity:
        rule = f"must be 0 for data.target 'inputs': it compares classes, got {loss.similarity:g}"
        found.append(Violation("loss.similarity", rule))
    if loss.name is LossName.DECODER and loss.posterior is PosteriorName.DETACHED:
        rule = "must be 'coupled' for loss 'decoder', which reaches the network through rho_k alone, got 'detached'"
        found.append(Violation("loss.posterior", rule))
    if loss.name is LossName.IN_BATCH and config.batch_size < MIN_IN_BATCH_ROWS:
        rule = f"must be at least {MIN_IN_BATCH_ROWS} for loss 'in_batch', whose normaliser is the batch, got "
        found.append(Violation("batch_size", rule + str(config.batch_size)))
    return found
