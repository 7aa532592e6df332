"""What a learning rule sets, and what fields of different sections must keep together. Torch is not imported here."""

from __future__ import annotations

from dataclasses import replace

from bll.choices import LossName, MixingSchedule, ReadoutName, Rule, TargetName
from bll.config import BlocksConfig, LossConfig, MixingConfig, TrainingConfig
from bll.errors import InvalidConfig, Violation

LOCAL_RULES = frozenset({Rule.BLL, Rule.LOCAL_CLASSIFIERS, Rule.PREDSIM, Rule.PROTOTYPE})
"""Rules under which a block learns from its own exit alone. The others run as one block."""

_SIMILARITY = 0.99
"""Weight of similarity matching that predsim was published with (Nokland and Eidnes 2019, section 3)."""


def settled(config: TrainingConfig) -> TrainingConfig:
    """`config` with what its rule means filled in: `loss` and `mixing`, and `blocks` of a rule that is not local, say
    nothing of their own under a rule but `bll`.

    Raises InvalidConfig if fields contradict each other.
    """
    if config.rule is not Rule.BLL:
        config = replace(config, loss=_LOSSES.get(config.rule, LossConfig()), mixing=_mixing(config.rule))
    if config.rule not in LOCAL_RULES:
        # One block whose loss, at m = 1, is the last exit's negative log-likelihood: nothing is detached in it.
        config = replace(config, blocks=BlocksConfig(num_blocks=1))
    loss, num_blocks, found = config.loss, config.blocks.num_blocks, []
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
    if config.rule in _RULES_OF_CLASSES and config.data.target is not TargetName.LABELS:
        rule = f"must be 'labels' for rule {config.rule.value!r}, got {config.data.target.value!r}"
        found.append(Violation("data.target", rule))
    if found:
        raise InvalidConfig(found)
    return config


_RULES_OF_CLASSES = frozenset({Rule.DIRECT_FEEDBACK_ALIGNMENT, Rule.SYNTHETIC_GRADIENTS})
"""Rules whose layers are told the error in each class, or the class."""

_LOSSES = {
    Rule.LOCAL_CLASSIFIERS: LossConfig(LossName.DISCRIMINATIVE),
    Rule.PREDSIM: LossConfig(LossName.DISCRIMINATIVE, similarity=_SIMILARITY),
    Rule.PROTOTYPE: LossConfig(LossName.PROTOTYPE),
}


def _mixing(rule: Rule) -> MixingConfig:
    """m = 0 where the latent's posterior plays no part."""
    return MixingConfig(MixingSchedule.CONSTANT, start=0.0) if rule in _LOSSES else MixingConfig()
