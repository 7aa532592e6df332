"""Backward twins: from targets to messages log beta_k(z; y) = <b_k(y), T(z)> + d_k(y).

The messages of all classes of boundary k are one *class table*: they do not depend on x. Real-valued targets are no
finite set: the table of a step then has a row for each row of its batch.
Shapes: C classes, P natural parameters per unit, D units, Y the shape of one real-valued target.
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


class EncoderTwin(nn.Module):
    """b_k(y) = g_k(y) of real-valued targets: one hidden layer on the target itself."""

    def __init__(
        self, normalize: nn.Module, target_values: int, hidden_units: int, family: Family, units: int, *, offset: bool
    ) -> None:
        """`normalize` brings targets to unit scale; `offset`: d_k(y), which only a loss among targets can learn."""
        super().__init__()
        self.family = family
        self.units = units
        self.hidden = nn.Sequential(normalize, nn.Flatten(), nn.Linear(target_values, hidden_units), nn.ReLU())
        self.message = nn.Linear(hidden_units, family.num_parameters * units)
        if family.num_parameters == 2:
            nn.init.constant_(self.message.bias[units:], -3.0)  # as in a class table: hardly narrows the posterior
        self.offset = nn.Linear(hidden_units, 1) if offset else None

    def forward(self, right: Tensor | None) -> ClassTable:
        """The messages of the batch's targets, `right`, of shape (B, *Y): a row for each."""
        assert right is not None, "an encoder needs targets"
        hidden = self.hidden(right)
        raw = self.message(hidden).unflatten(1, (self.family.num_parameters, self.units))
        offset_C = self.offset(hidden).squeeze(1) if self.offset else torch.zeros_like(raw[:, 0, 0])
        return ClassTable(self.family.message(raw), offset_C)


class SilentTwin(nn.Module):
    """log beta_k = 0 whatever the target: for m = 0, where no loss would train an encoder."""

    def __init__(self, family: Family, units: int) -> None:
        super().__init__()
        self.family = family
        self.units = units

    def forward(self, right: Tensor | None) -> ClassTable:
        """A row for each row of the batch's targets, `right`."""
        assert right is not None, "a table needs to know the batch"
        return ClassTable(
            right.new_zeros(len(right), self.family.num_parameters, self.units), right.new_zeros(len(right))
        )


Twin = TableTwin | ChainTwin | EncoderTwin | SilentTwin


def make_twin(num_classes: int, family: Family, units: int, *, right_units: int | None) -> TableTwin | ChainTwin:
    """The twin of one block; `right_units`: units of the next block's latent, if tables come from there."""
    if right_units is None:
        return TableTwin(num_classes, family, units)
    return ChainTwin(num_classes, family, units, right_units)
