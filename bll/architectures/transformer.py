"""Transformer encoder on sequences, with normalisation before each part of a layer.

Shapes: B batch, T positions, F features, W width, H heads, D width of a head.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bll.architectures.layers import Architecture, KeyedDropout, Layer
from bll.config import NetworkConfig
from bll.errors import InvalidConfig, Violation

_EXPANSION = 4
"""Width of a layer's feed-forward part, in widths of the model."""


def _layers(config: NetworkConfig, input_shape: tuple[int, ...]) -> list[Layer]:
    """The embedding of each position's vector, then one encoder layer per entry of `config.widths`.

    Raises InvalidConfig for samples that are no sequences, widths that differ, or heads that do not divide them.
    """
    if len(input_shape) != 2:
        rule = f"'transformer' needs sequences (positions, features), got samples of shape {list(input_shape)}"
        raise InvalidConfig([Violation("network.architecture", rule)])
    width, depth = config.widths[0], len(config.widths)
    if set(config.widths) != {width}:
        rule = f"must be equal for 'transformer', got {list(config.widths)}"
        raise InvalidConfig([Violation("network.widths", rule)])
    if width % config.heads:
        raise InvalidConfig([Violation("network.heads", f"must divide the width, {width}, got {config.heads}")])
    positions, features = input_shape
    embedding = Layer(f"embedding {features}->{width}", partial(Embedding, positions, features, width))
    encoder = Layer(f"encoder {width}", partial(EncoderLayer, width, config.heads, depth, config.dropout))
    return [embedding, *[encoder] * depth]


TRANSFORMER = Architecture(_layers, widths=(64,) * 20, has_heads=True)


class Embedding(nn.Module):
    """A linear map of each position's vector, and what is learned of the position itself."""

    def __init__(self, positions: int, features: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(features, width)
        self.positions = nn.Parameter(torch.randn(positions, width))

    def forward(self, sequences_BTF: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(sequences_BTF) + self.positions
        return embedded


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))  (Xiong et al. 2020, pre-norm; no causal mask)."""

    def __init__(self, width: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, _EXPANSION * width)
        self.output = nn.Linear(_EXPANSION * width, width)
        self.dropout = KeyedDropout(dropout)
        for linear in (self.query_key_value, self.attended, self.hidden, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Each of the 2 * depth parts adds its share to the stream, whose variance then stays of order 1 at any depth.
        for linear in (self.attended, self.output):
            with torch.no_grad():
                linear.weight /= math.sqrt(2 * depth)

    def forward(self, hidden_BTW: Tensor) -> Tensor:
        hidden_BTW = hidden_BTW + self.dropout(self.attended(self._attend(self.norm1(hidden_BTW))))
        transformed_BTW = self.output(F.gelu(self.hidden(self.norm2(hidden_BTW))))
        output_BTW: Tensor = hidden_BTW + self.dropout(transformed_BTW)
        return output_BTW

    def _attend(self, normed_BTW: Tensor) -> Tensor:
        split_BT3HD = self.query_key_value(normed_BTW).unflatten(-1, (3, self.heads, -1))
        query_BHTD, key_BHTD, value_BHTD = split_BT3HD.movedim(3, 1).unbind(3)
        attended_BHTD: Tensor = F.scaled_dot_product_attention(query_BHTD, key_BHTD, value_BHTD)
        return attended_BHTD.transpose(1, 2).flatten(2)
