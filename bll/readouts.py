"""Readouts: from a block's output to the natural parameters of alpha_k(z_k).

The readout's latent is what is matched with the backward message; the next block receives the block's output itself.
Shapes: B batch, F features, P natural parameters per unit, D units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bll.choices import ReadoutName
from bll.config import LatentConfig
from bll.families import Family


class Readout(nn.Module):
    """Pools an image to a coarse grid, flattens, maps to natural parameters through zero or one hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], family: Family, config: LatentConfig) -> None:
        super().__init__()
        self.family = family
        self.units = config.units
        layers: list[nn.Module] = []
        features = math.prod(input_shape)
        if len(input_shape) == 3:
            channels, height, width = input_shape
            grid = (min(config.readout_grid, height), min(config.readout_grid, width))
            layers.append(GridPool((height, width), grid))
            features = channels * grid[0] * grid[1]
        layers.append(nn.Flatten())
        outputs = family.num_parameters * config.units
        if config.readout is ReadoutName.HIDDEN:
            layers += [nn.Linear(features, config.readout_units), nn.BatchNorm1d(config.readout_units), nn.ReLU()]
            features = config.readout_units
        layers.append(nn.Linear(features, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden: Tensor) -> Tensor:
        """alpha_k's natural parameters, shape (B, P, D)."""
        raw = self.layers(hidden).unflatten(1, (self.family.num_parameters, self.units))
        return self.family.natural(raw)


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
