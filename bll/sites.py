"""Readouts of targets with positions: natural parameters for each *site*, one position of one sample's target.

The sites of a batch are laid out as rows, sample by sample, so that families, losses and scores, which know of rows
alone, serve them as they are. All sites share one readout and, at each boundary, one class table.
Shapes: B batch, T positions, F features, C channels, H and W height and width, S sites of one sample, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bll.choices import ReadoutName
from bll.config import LatentConfig
from bll.errors import InvalidConfig, Violation


def site_layers(
    output_shape: tuple[int, ...], target_shape: tuple[int, ...], outputs: int, config: LatentConfig
) -> nn.Sequential:
    """From a block's output of `output_shape` to `outputs` numbers for each site, shape (B * S, O).

    Raises InvalidConfig if the output does not have the positions of `target_shape`, or for another readout.
    """
    if config.readout not in (ReadoutName.LINEAR, ReadoutName.HIDDEN):
        rule = f"must be 'linear' or 'hidden' for targets of shape {list(target_shape)}, got '{config.readout}'"
        raise InvalidConfig([Violation("latent.readout", rule)])
    if len(target_shape) == 1:
        return _sequence_layers(output_shape, target_shape[0], outputs, config)
    return _pixel_layers(output_shape, target_shape, outputs, config)


def _sequence_layers(
    output_shape: tuple[int, ...], positions: int, outputs: int, config: LatentConfig
) -> nn.Sequential:
    """The same map at each position. Normalises first: a residual stream, as a transformer's, grows with depth."""
    if len(output_shape) != 2 or output_shape[0] != positions:
        raise _no_positions(f"a vector for each of the targets' {positions} positions", output_shape)
    features = output_shape[1]
    layers: list[nn.Module] = [nn.LayerNorm(features), nn.Flatten(0, 1)]
    if config.readout is ReadoutName.HIDDEN:
        layers += [nn.Linear(features, config.readout_units), nn.BatchNorm1d(config.readout_units), nn.ReLU()]
        features = config.readout_units
    return nn.Sequential(*layers, nn.Linear(features, outputs))


def _pixel_layers(
    output_shape: tuple[int, ...], target_shape: tuple[int, ...], outputs: int, config: LatentConfig
) -> nn.Sequential:
    """A 1x1 convolution on the block's own grid, after a 3x3 one where there is a hidden layer; then scaled up."""
    if len(output_shape) != 3:
        raise _no_positions(f"an image, for targets of {target_shape[0]}x{target_shape[1]} pixels", output_shape)
    channels, *grid = output_shape
    layers: list[nn.Module] = []
    if config.readout is ReadoutName.HIDDEN:
        layers += [
            nn.Conv2d(channels, config.readout_units, 3, padding=1, bias=False),
            nn.BatchNorm2d(config.readout_units),
            nn.ReLU(),
        ]
        channels = config.readout_units
    layers += [CellsLast(), nn.Linear(channels, outputs), NearestCells(grid, target_shape), nn.Flatten(0, 1)]
    return nn.Sequential(*layers)


class CellsLast(nn.Module):
    """Images of shape (B, C, H, W) as rows of cells, shape (B, H * W, C)."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(2).transpose(1, 2)


class NearestCells(nn.Module):
    """What the cell under each pixel holds: nearest-neighbour scaling between any two sizes.

    By an index that is counted in whole numbers, so that the exported graph takes exactly the same cells.
    """

    cells: Tensor

    def __init__(self, grid: tuple[int, ...] | list[int], pixels: tuple[int, ...]) -> None:
        super().__init__()
        rows, columns = (torch.arange(size) * cells // size for size, cells in zip(pixels, grid, strict=True))
        self.register_buffer("cells", (rows[:, None] * grid[1] + columns).flatten(), persistent=False)
        self.is_identity = tuple(grid) == tuple(pixels)

    def forward(self, cells_BSO: Tensor) -> Tensor:
        return cells_BSO if self.is_identity else cells_BSO.index_select(1, self.cells)


def _no_positions(wanted: str, output_shape: tuple[int, ...]) -> InvalidConfig:
    rule = f"must keep the positions of the targets: each block must give {wanted}, got shape {list(output_shape)}"
    return InvalidConfig([Violation("network", rule)])
