"""Readouts: from a block's output to the natural parameters of alpha_k(z_k).

The readout's latent is what is matched with the backward message; what the next block receives is made in
`bll.sending`. Shapes: B batch, F features, P natural parameters per unit, D units, W weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import accumulate

import torch
from torch import Tensor, nn

from bll.choices import FamilyName, ReadoutName
from bll.config import LatentConfig
from bll.errors import InvalidConfig, Violation
from bll.families import Family
from bll.precision import in_float32
from bll.sites import site_layers

_HIDDEN_LAYERS = {
    ReadoutName.LINEAR: 0,
    ReadoutName.HIDDEN: 1,
    ReadoutName.DEEP: 2,
    ReadoutName.CONV: 1,
    ReadoutName.NEXT_LAYER: 0,
}


class Readout(nn.Module, ABC):
    """Map from a block's output to alpha_k's natural parameters."""

    def __init__(self, family: Family, units: int) -> None:
        super().__init__()
        self.family = family
        self.units = units
        """D, units of the latent."""

    def forward(self, hidden: Tensor) -> Tensor:
        """alpha_k's natural parameters, shape (B, P, D)."""
        return self.family.natural(in_float32(self.raw(hidden)))

    @abstractmethod
    def raw(self, hidden: Tensor) -> Tensor:
        """Any real numbers, shape (B, P, D), of which the family makes natural parameters."""


class LayeredReadout(Readout):
    """Pools an image to a coarse grid, flattens, maps to natural parameters through up to two hidden layers.

    `conv` first runs a 3x3 convolution over the image, at its own resolution.
    """

    def __init__(self, input_shape: tuple[int, ...], family: Family, config: LatentConfig) -> None:
        super().__init__(family, config.units)
        layers: list[nn.Module] = []
        features, hidden = math.prod(input_shape), config.readout_units
        if len(input_shape) == 3:
            channels, height, width = input_shape
            if config.readout is ReadoutName.CONV:
                layers += [nn.Conv2d(channels, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
                channels = hidden
            grid = (min(config.readout_grid, height), min(config.readout_grid, width))
            layers.append(GridPool((height, width), grid))
            features = channels * grid[0] * grid[1]
        layers.append(nn.Flatten())
        for _ in range(_HIDDEN_LAYERS[config.readout]):
            layers += [nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            features = hidden
        layers.append(nn.Linear(features, family.num_parameters * config.units))
        self.layers = nn.Sequential(*layers)

    def raw(self, hidden: Tensor) -> Tensor:
        return torch.unflatten(self.layers(hidden), 1, (self.family.num_parameters, self.units))


class NextLayerReadout(Readout):
    """A running mean of the next block's first layer, then as `linear`: the block learns what its neighbour can use.

    Gradients pass through the copy and do not train it. The batch statistics of its normalisations are its own.
    """

    def __init__(
        self, input_shape: tuple[int, ...], next_layer: nn.Module, family: Family, config: LatentConfig
    ) -> None:
        """`next_layer` is a module of its own, with the weights that the neighbour's starts from."""
        super().__init__(family, config.units)
        self.decay = config.ema_decay
        self.copy = next_layer.requires_grad_(False)
        with torch.no_grad():
            output_shape = tuple(self.copy.eval()(torch.zeros(1, *input_shape)).shape[1:])
        self.copy.train()
        self.linear = LayeredReadout(output_shape, family, config)

    def raw(self, hidden: Tensor) -> Tensor:
        return self.linear.raw(self.copy(hidden))

    @torch.no_grad()
    def follow(self, parameters_W: Tensor) -> None:
        """Take one step of the mean towards the layer with `parameters_W`, as `flat_parameters` gives them."""
        mine = list(self.copy.parameters())
        ends = accumulate(parameter.numel() for parameter in mine)
        for parameter, end in zip(mine, ends, strict=True):
            theirs = parameters_W[end - parameter.numel() : end]
            parameter.lerp_(theirs.view_as(parameter), 1 - self.decay)


def flat_parameters(layer: nn.Module) -> Tensor:
    """All parameters of a layer in one vector of its own, shape (W,)."""
    parameters = [parameter.detach().flatten() for parameter in layer.parameters()]
    return torch.cat(parameters or [torch.empty(0)])


class IdentityReadout(Readout):
    """The block's output itself, flattened: each number is a unit, scaled and shifted on its own for each parameter.

    The paper's reading of a network: what a layer puts out are the natural parameters of its latent.
    """

    def __init__(self, input_shape: tuple[int, ...], family: Family) -> None:
        super().__init__(family, math.prod(input_shape))
        # Vectors, so that weight decay leaves them alone as it does those of a normalisation. A second parameter
        # starts from its shift alone: the same variance for every unit and sample.
        seconds = torch.zeros((family.num_parameters - 1) * self.units)
        self.scale = nn.Parameter(torch.cat((torch.ones(self.units), seconds)))
        self.shift = nn.Parameter(torch.zeros(family.num_parameters * self.units))

    def raw(self, hidden: Tensor) -> Tensor:
        shape = (self.family.num_parameters, self.units)
        return hidden.flatten(1).unsqueeze(1) * self.scale.view(shape) + self.shift.view(shape)


class SiteReadout(Readout):
    """A latent for each position of a target, (B * positions, P, D) of a batch of B, as `bll.sites` lays them out."""

    def __init__(
        self, input_shape: tuple[int, ...], family: Family, config: LatentConfig, target_shape: tuple[int, ...]
    ) -> None:
        super().__init__(family, config.units)
        self.layers = site_layers(input_shape, target_shape, family.num_parameters * config.units, config)

    def raw(self, hidden: Tensor) -> Tensor:
        return torch.unflatten(self.layers(hidden), 1, (self.family.num_parameters, self.units))


def make_readout(
    input_shape: tuple[int, ...],
    family: Family,
    config: LatentConfig,
    next_layer: nn.Module | None = None,
    *,
    target_shape: tuple[int, ...] = (),
) -> Readout:
    """The readout of a block whose output has `input_shape`. Raises InvalidConfig if it cannot have that readout, or
    lacks the positions of targets of `target_shape`.

    `next_layer` is for `next_layer`, which the last block, where there is none, has without.
    """
    if target_shape:
        return SiteReadout(input_shape, family, config, target_shape)
    if next_layer is not None:
        return NextLayerReadout(input_shape, next_layer, family, config)
    if config.readout is ReadoutName.IDENTITY:
        if config.family is FamilyName.CATEGORICAL and math.prod(input_shape) % config.group_size:
            rule = f"must divide a block's {math.prod(input_shape)} outputs with readout 'identity'"
            raise InvalidConfig([Violation("latent.group_size", f"{rule}, got {config.group_size}")])
        return IdentityReadout(input_shape, family)
    if config.readout is ReadoutName.CONV and len(input_shape) != 3:
        rule = f"must be another than 'conv' where a block's output is no image but {list(input_shape)}, got 'conv'"
        raise InvalidConfig([Violation("latent.readout", rule)])
    return LayeredReadout(input_shape, family, config)


def latent_units(output_shape: tuple[int, ...], config: LatentConfig) -> int:
    """D of the latent of a block whose output has `output_shape`."""
    return math.prod(output_shape) if config.readout is ReadoutName.IDENTITY else config.units


class GridPool(nn.Module):
    """Mean over the cells of a grid, as adaptive average pooling defines them.

    One matrix product over all pixels instead of the adaptive operator: the same numbers, with a graph that ONNX has
    for every ratio of sizes, in about a third of the time of a product along each axis.
    """

    cells: Tensor

    def __init__(self, size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (_cell_means(length, cells) for length, cells in zip(size, grid, strict=True))
        self.register_buffer("cells", torch.kron(rows, columns).T.contiguous(), persistent=False)
        self.grid = grid

    def forward(self, images_BCHW: Tensor) -> Tensor:
        means = images_BCHW.flatten(2) @ self.cells
        return means.view(*means.shape[:2], *self.grid)


def _cell_means(size: int, cells: int) -> Tensor:
    """Matrix (cells, size) whose product with a vector is the mean of each cell."""
    matrix = torch.zeros(cells, size)
    for cell in range(cells):
        start, end = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:end] = 1 / (end - start)
    return matrix
