"""Blocks: the part of the network that one worker owns, built from a plan.

Shapes: B batch, P natural parameters per unit, D units.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from bll.architectures import Layer, make_layers
from bll.architectures.layers import KeyedDropout
from bll.architectures.modules import UserPlan
from bll.auxiliary import Auxiliary
from bll.choices import LossName, ReadoutName, TwinName
from bll.combinations import has_messages
from bll.config import LossConfig, TrainingConfig
from bll.credit import Credit, make_credit
from bll.families import Family, make_family
from bll.losses import LocalLoss, Objective
from bll.plan import Plan
from bll.readouts import NextLayerReadout, Readout, latent_units, make_readout
from bll.regression.decoders import Decoder
from bll.regression.objective import RegressionLoss, RegressionObjective
from bll.seeding import derive, global_generator
from bll.sending import message_shape
from bll.twins import EncoderTwin, SilentTwin, Twin, make_twin
from bll.versions import Version


class Normalize(nn.Module):
    """(x - mean) / std with the training split's statistics, so that a served model takes plain samples."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.std


class Block(nn.Module):
    """Forward block f_k, its readout, its backward twin g_k, how errors reach the layers of f_k, what else it learns
    from and, where targets are real-valued, its decoder."""

    def __init__(
        self,
        layers: nn.Sequential,
        readout: Readout,
        twin: Twin,
        auxiliary: Auxiliary,
        credit: Credit | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.readout = readout
        self.twin = twin
        self.auxiliary = auxiliary
        self.decoder = decoder
        self.credit = credit or Credit()
        self._draw_from(torch.Generator())

    def place(self, device: torch.device, generator: torch.Generator) -> None:
        """Move to `device`, on which `generator` is the source of what training draws. Before anything holds its
        parameters."""
        self.to(device)
        self._draw_from(generator)

    def _draw_from(self, generator: torch.Generator) -> None:
        self._generator = self.credit.generator = generator
        for module in self.modules():
            if isinstance(module, KeyedDropout):
                module.generator = generator

    def forward_parameters(self) -> list[nn.Parameter]:
        """theta_k: what is trained in layers, readout, auxiliary terms and decoder."""
        parts = [self.layers, self.readout, self.auxiliary, *([] if self.decoder is None else [self.decoder])]
        return [p for part in parts for p in part.parameters() if p.requires_grad]

    def follow(self, right: Version) -> None:
        """Take over what the readout holds of the next block, from the version of it that is due."""
        if isinstance(self.readout, NextLayerReadout) and right.first_layer is not None:
            self.readout.follow(right.first_layer)

    def backward_parameters(self) -> dict[str, nn.Parameter]:
        """phi_k by name: the twin, and what the rule trains to send errors to the layers."""
        return {**dict(self.twin.named_parameters("twin")), **dict(self.credit.named_parameters("credit"))}

    def objective(
        self,
        local: LocalLoss | RegressionLoss,
        received: Tensor,
        output: Tensor,
        targets_B: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """What a training step descends: mean L_k with the block's auxiliary terms, a scalar."""
        first = self.layers[0]
        if isinstance(first, Normalize):  # plain samples may be of any scale; a decoder gives normalised ones
            received = first(received)
        loss: Tensor = self.auxiliary(local, received, output, targets_B, generator)
        return loss

    def seed_dropout(self, seed: int) -> None:
        """Fix the masks, and all else that is drawn, of the next training step."""
        self._generator.manual_seed(seed)


def build_block(plan: Plan, index: int, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Block:
    """Block `index` of the plan with its initial weights.

    `statistics` (mean, std) of the inputs are for the first block, and for all if the inputs are the targets; absence
    means that a checkpoint will bring them.
    """
    config = plan.config
    layers = _layers(plan)
    first = plan.blocks[index].first_layer
    last = plan.blocks[index + 1].first_layer if index + 1 < plan.num_blocks else len(layers)
    modules: list[nn.Module] = []
    if index == 0:
        modules.append(normalize_layer(plan.input_shape, statistics))
    modules += [_build_layer(layers[i], config.seed, i) for i in range(first, last)]
    family = make_family(config.latent)
    next_layer = None
    if config.latent.readout is ReadoutName.NEXT_LAYER and last < len(layers):
        next_layer = _build_layer(layers[last], config.seed, last)
    with global_generator(derive(config.seed, "readout", index)):
        readout = make_readout(
            plan.blocks[index].output_shape, family, config.latent, next_layer, target_shape=plan.target_shape
        )
    right_units = None
    if config.backward.twin is TwinName.CHAIN and index + 1 < plan.num_blocks:
        right_units = latent_units(plan.blocks[index + 1].output_shape, config.latent)
    twin: Twin
    decoder = None
    if plan.is_regression:
        normalize = normalize_layer(plan.input_shape, statistics)
        with global_generator(derive(config.seed, "twin", index)):
            twin = make_target_twin(config, normalize, plan.input_shape, family, readout.units)
        with global_generator(derive(config.seed, "decoder", index)):
            decoder = make_decoder(config, normalize, plan.input_shape, readout.units)
    else:
        with global_generator(derive(config.seed, "twin", index)):
            twin = make_twin(plan.num_classes, family, readout.units, right_units=right_units)
    output_shape, received_shape = plan.blocks[index].output_shape, plan.input_shape
    if index:
        received_shape = message_shape(plan.blocks[index - 1].output_shape, family, config.latent)
    with global_generator(derive(config.seed, "auxiliary", index)):
        auxiliary = Auxiliary(received_shape, output_shape, plan.num_classes, config.loss, config.latent, index)
    stack = nn.Sequential(*modules)
    with global_generator(derive(config.seed, "credit", index)):
        # The input's shape is right wherever it is read: rules that put something in backpropagation's place run as
        # one block.
        credit = make_credit(config.rule, stack, plan.input_shape, plan.num_classes)
    return Block(stack, readout, twin, auxiliary, credit, decoder)


def make_target_twin(
    config: TrainingConfig, normalize: Normalize, target_shape: tuple[int, ...], family: Family, units: int
) -> EncoderTwin | SilentTwin:
    """The twin of one block for real-valued targets."""
    if not has_messages(config):
        return SilentTwin(family, units)
    has_offset = config.loss.name is LossName.IN_BATCH
    hidden_units = config.latent.readout_units
    return EncoderTwin(normalize, math.prod(target_shape), hidden_units, family, units, offset=has_offset)


def make_decoder(config: TrainingConfig, normalize: Normalize, target_shape: tuple[int, ...], units: int) -> Decoder:
    """The local decoder of one block, with a hidden layer of a readout's width."""
    return Decoder(units, config.latent.readout_units, target_shape, normalize.mean, normalize.std)


def make_objective(block: Block, config: LossConfig) -> Objective | RegressionObjective:
    """What `block` learns from."""
    if block.decoder is None:
        return Objective(block.readout.family, config)
    return RegressionObjective(block.readout.family, config, block.decoder)


def first_layer_weights(plan: Plan, index: int) -> int:
    """W, the parameters of the first layer of block `index`, trained or not."""
    with torch.device("meta"):
        layer = _layers(plan)[plan.blocks[index].first_layer].build()
    return sum(parameter.numel() for parameter in layer.parameters())


def _layers(plan: Plan) -> list[Layer]:
    return plan.network.layers() if isinstance(plan, UserPlan) else make_layers(plan.config.network, plan.input_shape)


def _build_layer(layer: Layer, seed: int, index: int) -> nn.Module:
    with global_generator(derive(seed, "layer", index)):
        return layer.build()


def normalize_layer(input_shape: tuple[int, ...], statistics: tuple[np.ndarray, np.ndarray] | None) -> Normalize:
    """Per channel for images, per feature otherwise."""
    shape = (input_shape[0], 1, 1) if len(input_shape) == 3 else input_shape[-1:]
    if statistics is None:
        return Normalize(torch.zeros(shape), torch.ones(shape))
    mean, std = (torch.tensor(values, dtype=torch.float32).reshape(shape) for values in statistics)
    return Normalize(mean, std)
