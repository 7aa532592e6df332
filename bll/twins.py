"""Backward twins: from targets to messages log beta_k(z; y) = <b_k(y), T(z)> + d_k(y).

The messages of all classes of boundary k are one *class table*: they do not depend on x.
Shapes: C classes, P natural parameters per unit, D units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bll.families import Family


class ClassTable(NamedTuple):
    """The backward messages of every class at one boundary."""

    beta_CPD: Tensor
    offset_C: Tensor


class TableTwin(nn.Module):
    """b_k(y) = g_k(y): a free table. All of `direct`, and the rightmost block of `chain`."""

    def __init__(self, num_classes: int, family: Family, units: int) -> None:
        super().__init__()
        self.family = family
        raw = torch.empty(num_classes, family.num_parameters, units)
        nn.init.normal_(raw[:, 0], std=0.5)
        if family.num_parameters == 2:
            nn.init.constant_(raw[:, 1], -3.0)  # a message that at first hardly narrows the posterior
        self.table = nn.Parameter(raw)
        self.offset = nn.Parameter(torch.zeros(num_classes))

    def forward(self, right: Tensor | None) -> ClassTable:
        """The class table; `right` is not read."""
        return ClassTable(self.family.message(self.table), self.offset)


class ChainTwin(nn.Module):
    """b_k(y) = g_k(b_{k+1}(y)): one hidden layer between the tables of two neighbouring boundaries."""

    def __init__(self, num_classes: int, family: Family, units: int, right_units: int) -> None:
        super().__init__()
        self.family = family
        self.units = units
        right, width = family.num_parameters * right_units, family.num_parameters * units
        self.layers = nn.Sequential(nn.LayerNorm(right), nn.Linear(right, width), nn.GELU(), nn.Linear(width, width))
        self.offset = nn.Parameter(torch.zeros(num_classes))

    def forward(self, right: Tensor | None) -> ClassTable:
        """The class table from that of the block to the right, `right`, without a graph."""
        assert right is not None, "a chain twin needs the table of the next block"
        raw = self.layers(right.flatten(1)).unflatten(1, (self.family.num_parameters, self.units))
        return ClassTable(self.family.message(raw), self.offset)


def make_twin(num_classes: int, family: Family, units: int, *, right_units: int | None) -> TableTwin | ChainTwin:
    """The twin of one block; `right_units`: units of the next block's latent, if tables come from there."""
    if right_units is None:
        return TableTwin(num_classes, family, units)
    return ChainTwin(num_classes, family, units, right_units)
