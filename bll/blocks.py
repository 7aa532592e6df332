"""Blocks: the part of the network that one worker owns, built from a plan.

Shapes: B batch, P natural parameters per unit, D units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bll.architectures import Layer, make_layers
from bll.architectures.layers import KeyedDropout
from bll.architectures.modules import UserPlan
from bll.choices import TwinName
from bll.families import make_family
from bll.plan import Plan
from bll.readouts import Readout, latent_units, make_readout
from bll.seeding import derive, global_generator
from bll.twins import ChainTwin, TableTwin, make_twin


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
    """Forward block f_k, its readout, and its backward twin g_k."""

    def __init__(self, layers: nn.Sequential, readout: Readout, twin: TableTwin | ChainTwin) -> None:
        super().__init__()
        self.layers = layers
        self.readout = readout
        self.twin = twin
        self._dropout_generator = torch.Generator()
        for module in layers.modules():
            if isinstance(module, KeyedDropout):
                module.generator = self._dropout_generator

    def forward_parameters(self) -> list[nn.Parameter]:
        """theta_k: everything but the twin."""
        return [*self.layers.parameters(), *self.readout.parameters()]

    def seed_dropout(self, seed: int) -> None:
        """Fix the masks of the next forward pass."""
        self._dropout_generator.manual_seed(seed)


def build_block(plan: Plan, index: int, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Block:
    """Block `index` of the plan with its initial weights.

    `statistics` (mean, std) of the inputs are for the first block; absence means that a checkpoint will bring them.
    """
    config = plan.config
    layers = plan.network.layers() if isinstance(plan, UserPlan) else make_layers(config.network, plan.input_shape)
    first = plan.blocks[index].first_layer
    last = plan.blocks[index + 1].first_layer if index + 1 < plan.num_blocks else len(layers)
    modules: list[nn.Module] = []
    if index == 0:
        modules.append(_normalize(plan.input_shape, statistics))
    modules += [_build_layer(layers[i], config.seed, i) for i in range(first, last)]
    family = make_family(config.latent)
    with global_generator(derive(config.seed, "readout", index)):
        readout = make_readout(plan.blocks[index].output_shape, family, config.latent)
    right_units = None
    if config.backward.twin is TwinName.CHAIN and index + 1 < plan.num_blocks:
        right_units = latent_units(plan.blocks[index + 1].output_shape, config.latent)
    with global_generator(derive(config.seed, "twin", index)):
        twin = make_twin(plan.num_classes, family, readout.units, right_units=right_units)
    return Block(nn.Sequential(*modules), readout, twin)


def _build_layer(layer: Layer, seed: int, index: int) -> nn.Module:
    with global_generator(derive(seed, "layer", index)):
        return layer.build()


def _normalize(input_shape: tuple[int, ...], statistics: tuple[np.ndarray, np.ndarray] | None) -> Normalize:
    """Per channel for images, per feature otherwise."""
    shape = (input_shape[0], 1, 1) if len(input_shape) == 3 else input_shape
    if statistics is None:
        return Normalize(torch.zeros(shape), torch.ones(shape))
    mean, std = (torch.from_numpy(values).float().reshape(shape) for values in statistics)
    return Normalize(mean, std)
